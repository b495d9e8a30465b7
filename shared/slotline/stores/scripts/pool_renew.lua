-- Lets a slot count for another lease, but not beyond the end that slot_exp set.
--
-- KEYS  slots, holders, line, waiters, meta
-- ARGV  1 token   2 lease_ms
-- Returns  milliseconds that the slot counts from now; 0 if it no longer does
-- include: lib_pool

local token, lease_ms = ARGV[1], tonumber(ARGV[2])
local until_ms = tonumber(redis.call('ZSCORE', slots, token) or 0)
if until_ms <= now_ms then return 0 end
local cap_at = tonumber(string.match(redis.call('HGET', holders, token) or '', '^[^|]*|[^|]*|(%d+)|') or 0)
local life = lease_ms
if cap_at > 0 then life = math.min(life, cap_at - now_ms) end
redis.call('ZADD', slots, 'XX', text(now_ms + life), token)
keep_key(slots, life)
keep_key(holders, life)
keep_key(meta, META_MS)
return life
