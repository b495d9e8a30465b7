-- Lets a slot count for another lease, but not beyond the end that slot_exp set.
--
-- KEYS  slots, line, state, claims, ring
-- ARGV  1 token   2 lease_ms
-- Returns  milliseconds that the slot counts from now, negative if its holder is to end; 0 if it no longer counts
-- include: lib_pool

local token = ARGV[1]
tell_time()
if tonumber(redis.call('ZSCORE', slots, token) or 0) <= now_ms then return 0 end
local life = prolong(token, tonumber(ARGV[2]))
keep_key(state, STATE_MS - 2 * SLACK_MS)
return redis.call('HEXISTS', state, 'e:' .. token) == 1 and -life or life
