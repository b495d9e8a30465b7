-- Reads a pool's state; changes nothing.
--
-- KEYS  slots, line, state, claims
-- ARGV  1 most holders to list (0: only counts)   2 declared size of the caller
-- Returns  {max, used, waiting, now_ms, {token, expires_ms, record, ...}, 1 if it is paused else 0}
-- include: lib_pool

tell_time()
max = tonumber(redis.call('HGET', state, 'max') or ARGV[2])
local used = redis.call('ZCOUNT', slots, '(' .. text(now_ms), '+inf')
local listed, most = {}, tonumber(ARGV[1])
if most > 0 then
  local found = redis.call('ZRANGEBYSCORE', slots, '(' .. text(now_ms), '+inf', 'WITHSCORES', 'LIMIT', 0, most)
  for i = 1, #found, 2 do
    listed[#listed + 1] = found[i]
    listed[#listed + 1] = found[i + 1]
    listed[#listed + 1] = redis.call('HGET', state, 'h:' .. found[i]) or '0|0|0|'
  end
end
return {max, used, redis.call('ZCARD', line), now_ms, listed, redis.call('HEXISTS', state, 'paused')}
