-- Shared by the pool scripts, which include it.
--
-- The keys of a pool, all under one hash tag, in the order in which every script takes them:
--   slots    zset  token -> when it no longer counts (ms)
--   holders  hash  token -> "fence|acquired_ms|cap_at_ms|owner"; cap_at_ms: the end that slot_exp sets, 0 for none
--   line     zset  waiting token -> its place
--   waiters  hash  waiting token -> "alive_until_ms|lease_ms|cap_ms|channel|owner"
--   meta     hash  max, declared, fence, place
-- Every key has a TTL: as long as it may be needed, and a minute.

local SLACK_MS = 60000
local META_MS = 7 * 24 * 3600 * 1000
local PASSED_OVER = 64

local slots, holders, line, waiters, meta = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)

local function text(number) return string.format('%.0f', number) end

-- Most calls find half the slack still there and write nothing.
local function keep_key(key, ms)
  if redis.call('PTTL', key) < ms + SLACK_MS / 2 then redis.call('PEXPIRE', key, text(ms + SLACK_MS)) end
end

-- Milliseconds that a new slot counts, by its lease and its cap (0 and -1: none), at least one of which is set.
local function life_of(lease_ms, cap_ms)
  if cap_ms < 0 then return lease_ms end
  if lease_ms == 0 then return cap_ms end
  return math.min(lease_ms, cap_ms)
end

-- Grows whatever happens to the data: beyond the last one, and never behind the server's clock (microseconds).
local function next_fence()
  local last = tonumber(redis.call('HGET', meta, 'fence') or 0)
  return text(math.max(last + 1, clock[1] * 1000000 + clock[2]))
end

local function take(token, owner, fence, life, cap_ms)
  local cap_at = cap_ms >= 0 and now_ms + cap_ms or 0
  redis.call('ZADD', slots, text(now_ms + life), token)
  redis.call('HSET', holders, token, fence .. '|' .. text(now_ms) .. '|' .. text(cap_at) .. '|' .. owner)
  redis.call('HSET', meta, 'fence', fence)
  keep_key(slots, life)
  keep_key(holders, life)
  keep_key(meta, META_MS)
end

local function drop_expired()
  local gone = redis.call('ZRANGEBYSCORE', slots, '-inf', now_ms, 'LIMIT', 0, 1000)
  if #gone > 0 then
    redis.call('ZREM', slots, unpack(gone))
    redis.call('HDEL', holders, unpack(gone))
  end
end

local function leave_line(token)
  redis.call('HDEL', waiters, token)
  return redis.call('ZREM', line, token)
end

-- Hands free slots to the longest waiters, except `me`, whose call this is. A waiter whose process does not listen just
-- now keeps its place and is passed over; one that has not looked for longer than its patience is out.
-- Returns how many slots are still free, and whether somebody who waits longer than `me` can be reached.
local function serve(me)
  local max = tonumber(redis.call('HGET', meta, 'max') or 0)
  local free = max - redis.call('ZCARD', slots)
  local from = 0
  while free > 0 and from < PASSED_OVER do
    local heads = redis.call('ZRANGE', line, from, from + 15)
    if #heads == 0 then break end
    for _, token in ipairs(heads) do
      if free <= 0 or token == me then return free end
      local record = redis.call('HGET', waiters, token) or ''
      local alive, lease, cap, channel, owner = string.match(record, '^(%d+)|(%d+)|(-?%d+)|([^|]*)|(.*)$')
      if not alive or tonumber(alive) <= now_ms then
        leave_line(token)
      else
        local cap_ms = tonumber(cap)
        local life = life_of(tonumber(lease), cap_ms)
        local fence = next_fence()
        if redis.call('PUBLISH', channel, token .. ' ' .. fence .. ' ' .. text(life) .. ' ' .. text(now_ms)) > 0 then
          leave_line(token)
          take(token, owner, fence, life, cap_ms)
          free = free - 1
        else
          from = from + 1
        end
      end
    end
  end
  return free
end
