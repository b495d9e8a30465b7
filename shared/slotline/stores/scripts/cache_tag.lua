-- Notes that an entry carries a tag; forgets entries that have ended.
-- The score of a member is the time in microseconds until which it may exist.
--
-- KEYS  tag (zset: entry -> end_us)
-- ARGV  1 entry   2 life_ms
-- Returns  1

local now = redis.call('TIME')
local now_us = tonumber(now[1]) * 1000000 + tonumber(now[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('(%.0f', now_us))
redis.call('ZADD', KEYS[1], 'GT', string.format('%.0f', now_us + tonumber(ARGV[2]) * 1000), ARGV[1])
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 1
