-- Reads a pool's state; changes nothing.
--
-- KEYS  slots, line, state, claims, ring
-- ARGV  1 most holders to list (0: only counts)   2 declared size of the caller
-- Returns  {max, used, waiting, now_ms, {token, expires_ms, record, ...}, 1 if it is paused else 0,
--          rate: "interval_us/burst", or '', most that a partition may have, or ''}
--          used is what the holders weigh; a record is "fence|acquired_ms|cap_at_ms|weight|partition|owner"
-- include: lib_pool

tell_time()
max = tonumber(redis.call('HGET', state, 'max') or ARGV[2])
local used = redis.call('ZCOUNT', slots, '(' .. text(now_ms), '+inf')
local heavier = used > 0 and tonumber(redis.call('HGET', state, 'extra') or 0) or 0
if heavier > 0 then
  for _, token in ipairs(redis.call('ZRANGEBYSCORE', slots, '-inf', now_ms, 'LIMIT', 0, 1000)) do
    heavier = heavier + 1 - (string.match(redis.call('HGET', state, 'h:' .. token) or '', '^%d+|%d+|%d+|(%d+)|') or 1)
  end
end
local listed, most = {}, tonumber(ARGV[1])
if most > 0 then
  local found = redis.call('ZRANGEBYSCORE', slots, '(' .. text(now_ms), '+inf', 'WITHSCORES', 'LIMIT', 0, most)
  for i = 1, #found, 2 do
    listed[#listed + 1] = found[i]
    listed[#listed + 1] = found[i + 1]
    listed[#listed + 1] = redis.call('HGET', state, 'h:' .. found[i]) or '0|0|0|1||'
  end
end
-- Who waits for several pools is counted in the queue at the first of them, and not where it stands.
local waiting = redis.call('ZCARD', line)
if waiting > 0 then waiting = waiting - redis.call('ZLEXCOUNT', line, '[+', '(,') end
local known = redis.call('HMGET', state, 'paused', 'rate', 'share')
return {max, used + heavier, waiting, now_ms, listed, known[1] and 1 or 0, known[2] or '', known[3] or ''}
