-- Gives a slot back, or a caller's place in line, and hands what is free to the longest waiters.
-- Safe to repeat: a token that has neither changes nothing.
--
-- KEYS  slots, line, state, claims
-- ARGV  1 token
-- Returns  1 if the token had a slot, else 0
-- include: lib_pool

local token = ARGV[1]
local had = redis.call('ZREM', slots, token)
redis.call('HDEL', state, 'h:' .. token, 'x:' .. token, 'e:' .. token)
if redis.call('ZCARD', line) > 0 then
  tell_time()
  leave_line(token)
  serve('')
end
return had
