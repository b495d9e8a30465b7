-- Asked by room_pass before anything else. Most slots pass on in a pool that is full, has no limit but its size, and in
-- which only messages of one lane wait, on nobody's account. That needs none of the libraries, whose setting up takes
-- longer than all the rest.

-- The reply of room_pass where it is so; nil, and nothing is changed, where there is more to decide: also for the last
-- message, and now and then, so that what the libraries look after by the way is done.
local function pass_plainly()
  local token, lane, freed = ARGV[1], ARGV[4], ARGV[3]
  local clock = redis.call('TIME')
  if ARGV[5] or clock[2] % 16 == 0 then return nil end
  local now_us = clock[1] * 1000000 + clock[2]
  local now_ms = math.floor(now_us / 1000)
  local known = redis.call('HMGET', KEYS[3], 'max', 'fence', 'rate', 'paused', 'share', 'extra',
    'h:' .. freed, 'k:' .. freed, 'x:' .. token)
  if not known[1] or known[3] or known[4] or known[5] or (known[6] or '0') ~= '0' then return nil end
  if not known[7] or not string.find(known[7], '^%d+|%d+|%d+|1||') or known[8] or known[9] then return nil end
  local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
  if redis.call('ZCARD', KEYS[1]) ~= tonumber(known[1]) or tonumber(first[2]) <= now_ms then return nil end
  local claimed = tonumber(redis.call('ZRANGEBYSCORE', KEYS[4], 0, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2])
  if claimed and claimed <= now_ms then return nil end
  local ring = redis.call('ZRANGE', KEYS[5], 0, 1)
  if #ring ~= 1 or string.match(ring[1], '^([^|]*)|%x+|$') ~= lane then return nil end
  local heads = redis.call('ZRANGEBYLEX', KEYS[2], '[' .. lane .. '||', '(' .. lane .. '||\255', 'LIMIT', 0, 2)
  if not heads[2] then return nil end
  local stood, place, digest = string.match(heads[1], '^([^|]*||(%x+)|)|([^|]*)$')
  local record = digest and redis.call('HGET', KEYS[3], 'm:' .. digest)
  if not record or not redis.call('ZSCORE', KEYS[1], freed) then return nil end
  local cap, owned, rest = string.match(record, '^(-?%d+)|[^|]*|(%d+)|(.*)$')
  local lease_ms, cap_ms = tonumber(ARGV[2]), tonumber(cap)
  local life = (cap_ms < 0 or (lease_ms > 0 and lease_ms < cap_ms)) and lease_ms or cap_ms
  local owner = string.sub(rest, 1, owned)
  local fence = string.format('%.0f', math.max((known[2] or 0) + 1, now_us))

  redis.call('HDEL', KEYS[3], 'h:' .. freed, 'x:' .. freed, 'e:' .. freed, 'c:' .. lane, 'c:+' .. lane)
  redis.call('ZREM', KEYS[1], freed)
  redis.call('ZADD', KEYS[1], now_ms + life, token)
  if redis.call('PTTL', KEYS[1]) < life + 30000 then redis.call('PEXPIRE', KEYS[1], life + 60000) end
  redis.call('HSET', KEYS[3], 'fence', fence, 'o:' .. digest, token .. '|' .. stood, 'x:' .. token, digest,
    'h:' .. token, string.format('%s|%.0f|%.0f|1||%s', fence, now_ms, cap_ms >= 0 and now_ms + cap_ms or 0, owner))
  redis.call('ZREM', KEYS[2], heads[1])
  redis.call('ZADD', KEYS[4], now_ms + lease_ms, digest)
  if redis.call('PTTL', KEYS[4]) < 60 * 24 * 3600 * 1000 then
    redis.call('PEXPIRE', KEYS[4], 60 * 24 * 3600 * 1000 + 60000)
  end
  local expiry = tonumber(redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2])
  local due = math.min(claimed or math.huge, now_ms + lease_ms, expiry)
  return {1, fence, life, digest, lane, owner, cap_ms, string.sub(rest, owned + 1), place, math.max(1, due - now_ms)}
end
