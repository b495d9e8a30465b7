-- Lets a slot count for another lease, but not beyond the end that slot_exp set.
--
-- KEYS  slots, line, state, claims, ring
-- ARGV  1 token   2 lease_ms
-- Returns  milliseconds that the slot counts from now, negative if its holder is to end; 0 if it no longer counts
-- include: lib_pool

local token, life = ARGV[1], tonumber(ARGV[2])
tell_time()
if tonumber(redis.call('ZSCORE', slots, token) or 0) <= now_ms then return 0 end
local known = redis.call('HMGET', state, 'h:' .. token, 'e:' .. token)
local cap_at = tonumber(string.match(known[1] or '', '^[^|]*|[^|]*|(%d+)|') or 0)
if cap_at > 0 then life = math.min(life, cap_at - now_ms) end
redis.call('ZADD', slots, 'XX', text(now_ms + life), token)
keep_key(slots, life)
keep_key(state, STATE_MS - 2 * SLACK_MS)
return known[2] and -life or life
