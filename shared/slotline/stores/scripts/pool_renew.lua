-- Lets a slot count for another lease, but not beyond the end that slot_exp set.
--
-- KEYS  slots, line, state, claims, ring
-- ARGV  1 token   2 lease_ms   3 fence and 4 owner of who holds it now, where it has passed from one to the next
-- Returns  milliseconds that the slot counts from now, negative if its holder is to end; 0 if it no longer counts
-- include: lib_pool

local token = ARGV[1]
-- A fence says when its holder began (us).
local function pass_on(token, fence, owner)
  local cap_at, rest = string.match(redis.call('HGET', state, 'h:' .. token) or '', '^%d+|%d+|(%d+)|(%d+|[^|]*|)')
  if not rest then return end
  local began_ms = math.min(now_ms, math.floor(fence / 1000))
  redis.call('HSET', state, 'h:' .. token, table.concat({fence, text(began_ms), cap_at, rest .. owner}, '|'))
  if tonumber(redis.call('HGET', state, 'fence') or 0) < tonumber(fence) then redis.call('HSET', state, 'fence', fence) end
end

tell_time()
if tonumber(redis.call('ZSCORE', slots, token) or 0) <= now_ms then return 0 end
if ARGV[3] then pass_on(token, ARGV[3], ARGV[4]) end
local life = prolong(token, tonumber(ARGV[2]))
keep_key(state, STATE_MS - 2 * SLACK_MS)
local known = redis.call('HMGET', state, 'e:' .. token, 'h:' .. token)
local meant, fence = tonumber(string.match(known[1] or '', '|(%d+)$')), tonumber(string.match(known[2] or '', '^%d+') or 0)
if meant and meant < fence then redis.call('HDEL', state, 'e:' .. token) end  -- who was to end has ended
return meant == fence and -life or life
