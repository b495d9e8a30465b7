-- Changes a pool's limit. A smaller one takes nothing from its holders; a larger one serves waiters at once.
--
-- KEYS  slots, line, state, claims, ring
-- ARGV  1 max_size   2 declaration of the caller, as in pool_acquire
-- Returns  the limit before (the caller's declared one where the pool was unknown)
-- include: lib_pool
-- include: lib_line

tell_time()
declare(ARGV[2], '0')
local before = max
redis.call('HSET', state, 'max', ARGV[1])
keep_key(state, ROOM_MS)
serve('')
return before
