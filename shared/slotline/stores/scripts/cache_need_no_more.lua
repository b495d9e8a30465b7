-- Takes back what cache_need has noted.
--
-- KEYS  needs (see cache_need)
-- ARGV  1 token   2 entry that was waited for
-- Returns  1 taken back, 0 it was not there

if redis.call('HGET', KEYS[1], ARGV[2]) ~= ARGV[1] then return 0 end
return redis.call('HDEL', KEYS[1], ARGV[2])
