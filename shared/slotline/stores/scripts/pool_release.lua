-- Gives a slot back, or a caller's place in line, and hands what is free to the longest waiters.
-- Safe to repeat: a token that has neither changes nothing.
--
-- KEYS  slots, line, state, claims, ring
-- ARGV  1 token   2 the fence of its last holder, where it has passed from one to the next ('': it has not)
--       3 the fence of the holder that is meant, where it is no other's slot that is to be free
-- Returns  1 if the token had a slot, else 0; minus the ms after which it is known whether that holder has it: ask again

local token, meant = ARGV[1], ARGV[3]
if (ARGV[2] or '') ~= '' and tonumber(redis.call('HGET', KEYS[3], 'fence') or ARGV[2]) < tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[3], 'fence', ARGV[2])
end
-- Most holders are plain ones, and nobody waits: the libraries are not even set up.
if not meant and redis.call('ZCARD', KEYS[2]) == 0 and
  string.find(redis.call('HGET', KEYS[3], 'h:' .. token) or '', '^%d+|%d+|%d+|1||') then
  redis.call('HDEL', KEYS[3], 'h:' .. token, 'x:' .. token, 'e:' .. token)
  return redis.call('ZREM', KEYS[1], token)
end
-- include: lib_pool
-- include: lib_line
if meant then
  tell_time()
  local known, since, rest = string.match(redis.call('HGET', state, 'h:' .. token) or '', '^(%d+)|(%d+)|%d+|(.*)$')
  if known ~= meant or tonumber(redis.call('ZSCORE', slots, token) or 0) <= now_ms then return 0 end
  know()
  local held_ms = now_ms - since
  local passes = held_ms >= 0 and held_ms < UNSURE_MS and max > 1 and not interval_us and string.find(rest, '^1||')
  if passes then return held_ms - UNSURE_MS end
end
local had = let_go(token)
if redis.call('ZCARD', line) > 0 then
  tell_time()
  leave_line(token, CALLERS)
  serve('')
end
return had
