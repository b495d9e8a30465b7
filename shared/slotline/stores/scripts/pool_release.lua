-- Gives a slot back, or a place in line, and hands what is free to the longest waiters.
-- Safe to repeat: a token that has neither changes nothing.
--
-- KEYS  slots, holders, line, waiters, meta
-- ARGV  1 token
-- Returns  1 if the token had a slot that still counted, else 0
-- include: lib_pool

drop_expired()
local had = redis.call('ZREM', slots, ARGV[1])
redis.call('HDEL', holders, ARGV[1])
if redis.call('ZCARD', line) > 0 then
  leave_line(ARGV[1])
  serve('')
end
return had
