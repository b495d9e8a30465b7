-- Removes a value; a creator at work for it no longer counts, and those who wait are woken to start anew.
--
-- KEYS  entry, claim, waiters, kept
-- ARGV  1 the channel on which copies elsewhere are told
-- Returns  1 there was a value, 0 there was none
-- include: cache_lib

local had = redis.call('UNLINK', entry)
redis.call('UNLINK', kept)
void_claim()
ring('a')
redis.call('PUBLISH', ARGV[1], entry)
return had
