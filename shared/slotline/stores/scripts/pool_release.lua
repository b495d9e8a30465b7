-- Gives a slot back, or a caller's place in line, and hands what is free to the longest waiters.
-- Safe to repeat: a token that has neither changes nothing.
--
-- KEYS  slots, line, state, claims, ring
-- ARGV  1 token   2 the fence of its last holder, where it has passed from one to the next
-- Returns  1 if the token had a slot, else 0

local token = ARGV[1]
if ARGV[2] and tonumber(redis.call('HGET', KEYS[3], 'fence') or ARGV[2]) < tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[3], 'fence', ARGV[2])
end
-- Most holders are plain ones, and nobody waits: the libraries are not even set up.
if redis.call('ZCARD', KEYS[2]) == 0 and
  string.find(redis.call('HGET', KEYS[3], 'h:' .. token) or '', '^%d+|%d+|%d+|1||') then
  redis.call('HDEL', KEYS[3], 'h:' .. token, 'x:' .. token, 'e:' .. token)
  return redis.call('ZREM', KEYS[1], token)
end
-- include: lib_pool
-- include: lib_line
local had = let_go(token)
if redis.call('ZCARD', line) > 0 then
  tell_time()
  leave_line(token, CALLERS)
  serve('')
end
return had
