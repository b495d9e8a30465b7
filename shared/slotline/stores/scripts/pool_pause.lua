-- Lets nobody in, or lets everybody in again: waiters are served at once. Holders are left alone.
--
-- KEYS  slots, line, state, claims, ring
-- ARGV  1 pause: 1 or 0   2 declaration of the caller, as in pool_acquire
-- Returns  1 if that changed anything, else 0
-- include: lib_pool
-- include: lib_line

tell_time()
declare(ARGV[2], '0')
keep_key(state, ROOM_MS)
if ARGV[1] == '1' then return redis.call('HSETNX', state, 'paused', now_ms) end
local was = redis.call('HDEL', state, 'paused')
serve('')
return was
