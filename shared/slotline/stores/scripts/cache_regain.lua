-- Takes a claim again that a server lost with everything else, if nobody has taken or made anything since.
--
-- KEYS  entry, claim
-- ARGV  1 token   2 lease_ms
-- Returns  1 the token has the claim, 0 it has not

if redis.call('GET', KEYS[2]) == ARGV[1] then return 1 end
if redis.call('EXISTS', KEYS[1], KEYS[2]) > 0 then return 0 end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return 1
