-- Prolongs a claim that the token still has.
--
-- KEYS  claim
-- ARGV  1 token   2 lease_ms
-- Returns  lease_ms, or 0 when the claim is gone

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return tonumber(ARGV[2])
