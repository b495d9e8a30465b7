-- Stores a value that somebody has; a creator at work for it no longer counts, and those who wait are woken.
--
-- KEYS  entry, claim, waiters, kept
-- ARGV  1 value   2 life_ms (0: no expiry)   3 the channel on which copies elsewhere are told
--       4 keep_ms, see cache_lib
-- Returns  1
-- include: cache_lib

store(ARGV[1], ARGV[2], ARGV[4])
void_claim()
ring('v')
redis.call('PUBLISH', ARGV[3], entry)
return 1
