-- Changes a pool's limit. A smaller one takes nothing from its holders; a larger one serves waiters at once.
--
-- KEYS  slots, holders, line, waiters, meta
-- ARGV  1 max_size   2 declared size of the caller
-- Returns  the limit before (the caller's declared one where the pool was unknown)
-- include: lib_pool

local before = redis.call('HGET', meta, 'max') or ARGV[2]
redis.call('HSET', meta, 'max', ARGV[1])
redis.call('HSETNX', meta, 'declared', ARGV[2])
keep_key(meta, META_MS)
drop_expired()
serve('')
return tonumber(before)
