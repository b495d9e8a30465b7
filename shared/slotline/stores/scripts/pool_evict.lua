-- Marks a holder that is to end: the one that is named, or the one that has held its slot longest, for one who waits.
-- Its slot counts until it is released or its lease ends. Its process hears of it now, and at its next renewal.
-- Safe to repeat: a holder is marked once, and no more of them are than there are who wait.
--
-- KEYS  slots, line, state, claims, ring
-- ARGV  1 token of the holder ('': the longest, if the pool is full and somebody waits for whom none is marked yet)
--       2 channel on which the processes of holders listen
-- Returns  the token of the holder that is marked, '' if there is none to mark
-- include: lib_pool
-- include: lib_line

local token = ARGV[1]
tell_time()
drop_expired()

local function longest()
  if not know() or paused or redis.call('ZCARD', slots) + extra < max then return '' end
  local waiting, found, least = redis.call('ZCARD', line), '', nil
  for _, holder in ipairs(redis.call('ZRANGE', slots, 0, -1)) do
    local known = redis.call('HMGET', state, 'h:' .. holder, 'e:' .. holder)
    local fence = tonumber(string.match(known[1] or '', '^(%d+)|'))
    if known[2] then
      waiting = waiting - 1
    elseif fence and (not least or fence < least) then
      found, least = holder, fence
    end
  end
  return waiting > 0 and found or ''
end

if token == '' then token = longest() end
if token == '' or not redis.call('ZSCORE', slots, token) then return '' end
redis.call('HSETNX', state, 'e:' .. token, text(now_ms))
redis.call('PUBLISH', ARGV[2], token)
return token
