-- Takes a slot, or a place in line, or neither.
-- Safe to repeat with the same token: it answers with the slot or the place that the token already has.
--
-- KEYS  slots, line, state
-- ARGV  1 token   2 owner   3 max_size of this declaration   4 declare (1: the first call of this declaration)
--       5 lease_ms (0: none)   6 cap_ms (-1: none)   7 patience_ms (0: do not wait)   8 channel ('': do not wait)
-- Returns  {1, fence, life_ms, max, declared_before}       the token has a slot
--          {0, place from 0, ms until the first slot expires, max, declared_before, now_ms}   the token stands in line
--          {-1, max, owners of at most 100 slots, declared_before}   full
-- include: lib_pool

local token, owner, size = ARGV[1], ARGV[2], tonumber(ARGV[3])
local lease_ms, cap_ms, patience_ms, channel = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
tell_time()

local known = redis.call('HMGET', state, 'max', 'declared', 'fence')
local max, declared = tonumber(known[1] or size), known[2] or ''
if not known[1] or (ARGV[4] == '1' and declared ~= ARGV[3]) then
  -- The newest declaration wins; one that repeats the last leaves a live resize alone.
  max = size
  redis.call('HSET', state, 'max', ARGV[3], 'declared', ARGV[3])
  redis.call('PEXPIRE', state, STATE_MS)
elseif clock[2] % 16 == 0 then
  keep_key(state, STATE_MS - 2 * SLACK_MS)
end

local function won(fence)
  local life = life_of(lease_ms, cap_ms)
  if not take(token, owner, fence, life, cap_ms) then
    life = redis.call('ZSCORE', slots, token) - now_ms
    fence = string.match(redis.call('HGET', state, 'h:' .. token) or fence, '^(%d+)')
  end
  return {1, fence, life, max, declared}
end

local free = max - redis.call('ZCARD', slots)
if free > 0 and redis.call('ZCARD', line) == 0 then return won(fence_after(known[3])) end

drop_expired()
if redis.call('ZSCORE', slots, token) then
  leave_line(token)
  return won(fence_after(known[3]))
end
if serve(token) > 0 then
  leave_line(token)
  return won(fence_after(redis.call('HGET', state, 'fence')))
end

if patience_ms == 0 then
  local owners = {}
  for _, held in ipairs(redis.call('ZRANGE', slots, 0, 99)) do
    local record = redis.call('HGET', state, 'h:' .. held) or '|||'
    owners[#owners + 1] = string.match(record, '^[^|]*|[^|]*|[^|]*|(.*)$')
  end
  return {-1, max, owners, declared}
end

if not redis.call('ZSCORE', line, token) then
  redis.call('ZADD', line, redis.call('HINCRBY', state, 'place', 1), token)
end
redis.call('HSET', state, 'w:' .. token,
  text(now_ms + patience_ms) .. '|' .. ARGV[5] .. '|' .. ARGV[6] .. '|' .. channel .. '|' .. owner)
keep_key(line, patience_ms)
local first = redis.call('ZRANGE', slots, 0, 0, 'WITHSCORES')
return {0, redis.call('ZRANK', line, token), (tonumber(first[2]) or now_ms) - now_ms, max, declared, now_ms}
