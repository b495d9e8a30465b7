-- Changes a pool's limit. A smaller one takes nothing from its holders; a larger one serves waiters at once.
--
-- KEYS  slots, line, state, claims
-- ARGV  1 max_size   2 declared size of the caller
-- Returns  the limit before (the caller's declared one where the pool was unknown)
-- include: lib_pool

tell_time()
local before = redis.call('HGET', state, 'max') or ARGV[2]
redis.call('HSET', state, 'max', ARGV[1])
redis.call('HSETNX', state, 'declared', ARGV[2])
redis.call('PEXPIRE', state, STATE_MS)
serve('')
return tonumber(before)
