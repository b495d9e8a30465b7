-- Takes a slot, or a place in line, or neither.
-- Safe to repeat with the same token: it answers with the slot or the place that the token already has.
--
-- KEYS  slots, holders, line, waiters, meta
-- ARGV  1 token   2 owner   3 max_size of this declaration   4 declare (1: the first call of this declaration)
--       5 lease_ms (0: none)   6 cap_ms (-1: none)   7 patience_ms (0: do not wait)   8 channel ('': do not wait)
-- Returns  {1, fence, life_ms, max, declared_before}       the token has a slot
--          {0, place from 0, ms until the first slot expires, max, declared_before, now_ms}   the token stands in line
--          {-1, max, owners of at most 100 slots, declared_before}   full
-- include: lib_pool

local token, owner, size = ARGV[1], ARGV[2], tonumber(ARGV[3])
local lease_ms, cap_ms, patience_ms, channel = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]

local known = redis.call('HMGET', meta, 'max', 'declared')
local max, declared = tonumber(known[1] or size), known[2] or ''
if not known[1] or (ARGV[4] == '1' and declared ~= ARGV[3]) then
  -- The newest declaration wins; one that repeats the last leaves a live resize alone.
  max = size
  redis.call('HSET', meta, 'max', ARGV[3], 'declared', ARGV[3])
  keep_key(meta, META_MS)
end

drop_expired()

local mine = redis.call('ZSCORE', slots, token)
if mine then
  leave_line(token)
  local fence = string.match(redis.call('HGET', holders, token) or '0|', '^(%d+)|')
  return {1, fence, tonumber(mine) - now_ms, max, declared}
end

local free
if redis.call('ZCARD', line) == 0 then
  free = max - redis.call('ZCARD', slots)
else
  free = serve(token)
end

if free > 0 then
  leave_line(token)
  local life = life_of(lease_ms, cap_ms)
  local fence = next_fence()
  take(token, owner, fence, life, cap_ms)
  return {1, fence, life, max, declared}
end

if patience_ms == 0 then
  local owners = {}
  for _, held in ipairs(redis.call('ZRANGE', slots, 0, 99)) do
    local record = redis.call('HGET', holders, held) or '|||'
    owners[#owners + 1] = string.match(record, '^[^|]*|[^|]*|[^|]*|(.*)$')
  end
  return {-1, max, owners, declared}
end

if not redis.call('ZSCORE', line, token) then
  redis.call('ZADD', line, redis.call('HINCRBY', meta, 'place', 1), token)
end
redis.call('HSET', waiters, token,
  text(now_ms + patience_ms) .. '|' .. ARGV[5] .. '|' .. ARGV[6] .. '|' .. channel .. '|' .. owner)
keep_key(line, patience_ms)
keep_key(waiters, patience_ms)
local first = redis.call('ZRANGE', slots, 0, 0, 'WITHSCORES')
return {0, redis.call('ZRANK', line, token), (tonumber(first[2]) or now_ms) - now_ms, max, declared, now_ms}
