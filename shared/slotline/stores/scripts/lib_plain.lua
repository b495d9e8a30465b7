-- Shared by the scripts that admit, which ask it before anything else: most calls want one slot of a pool that is known,
-- has no limit but its size, and in which nobody waits. They need none of the libraries, whose setting up takes as long.

-- The reply of pool_acquire for a token that gets a slot so; nil where there is more to decide. Its last part is 1 where
-- the pool is roomy: at most half of it is used, no message of it is in the room, or was just now, and all who have asked
-- in the last hour wait if they have to.
local function take_plainly()
  if ARGV[4] ~= '0' or ARGV[7] ~= '1' or ARGV[8] ~= '' then return nil end
  local others = redis.call('EXISTS', KEYS[2], KEYS[4])
  if others > 0 and redis.call('EXISTS', KEYS[2]) > 0 then return nil end
  local known = redis.call('HMGET', KEYS[3], 'max', 'declared', 'fence', 'rate', 'paused', 'extra', 'impatient')
  if not known[1] or known[4] or known[5] or (known[6] or '0') ~= '0' then return nil end
  local max, held = tonumber(known[1]), redis.call('ZCARD', KEYS[1])
  if held >= max then return nil end
  local clock = redis.call('TIME')
  if held + others == 0 and clock[2] % 16 == 0 and redis.call('HLEN', KEYS[3]) > 64 then return nil end  -- it is cleared
  local now_us = clock[1] * 1000000 + clock[2]
  local now_ms = math.floor(now_us / 1000)
  local impatient_ms = tonumber(known[7] or 0) - now_ms
  if (ARGV[9] or '0') == '0' and impatient_ms < 1800000 then return nil end  -- it is noted
  local life, cap_ms = tonumber(ARGV[5]), tonumber(ARGV[6])
  if cap_ms >= 0 and (life == 0 or cap_ms < life) then life = cap_ms end
  if redis.call('ZADD', KEYS[1], 'NX', now_ms + life, ARGV[1]) == 0 then return nil end
  local fence = string.format('%.0f', math.max((known[3] or 0) + 1, now_us))
  redis.call('HSET', KEYS[3], 'fence', fence, 'h:' .. ARGV[1],
    string.format('%s|%.0f|%.0f|1||%s', fence, now_ms, cap_ms >= 0 and now_ms + cap_ms or 0, ARGV[2]))
  if held == 0 or redis.call('PTTL', KEYS[1]) < life + 30000 then redis.call('PEXPIRE', KEYS[1], life + 60000) end
  local days = string.match(known[2] or '', '^%d+') ~= known[1] and 60 or clock[2] % 16 == 0 and 7  -- see declare
  if days and redis.call('PTTL', KEYS[3]) < (days - 1) * 24 * 3600 * 1000 then
    redis.call('PEXPIRE', KEYS[3], days * 24 * 3600 * 1000)
  end
  return {1, fence, life, max, known[2], 2 * (held + 1) <= max and others == 0 and impatient_ms <= 0 and 1 or 0}
end
