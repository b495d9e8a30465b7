-- Stores what the holder of the claim created, gives the claim back and wakes those who wait.
-- Repeated, it answers 0 and changes nothing.
--
-- KEYS  entry, claim, waiters, kept
-- ARGV  1 token   2 value   3 life_ms (0: no expiry)   4 keep_ms, see cache_lib
-- Returns  1 stored, 0 the token has not the claim: somebody took over, or the value was set or invalidated
-- include: cache_lib

if redis.call('GET', claim) ~= ARGV[1] then return 0 end
store(ARGV[2], ARGV[3], ARGV[4])
redis.call('DEL', claim)
ring('v')
return 1
