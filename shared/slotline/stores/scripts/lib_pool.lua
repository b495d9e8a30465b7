-- Shared by the pool scripts, which include it.
--
-- The keys of a pool, all under one hash tag, in the order in which every script takes them:
--   slots  zset  token -> when it no longer counts (ms)
--   line   zset  waiting token -> its place
--   state  hash  max, declared, fence, place, and for every token
--                "h:<token>": a holder,  "fence|acquired_ms|cap_at_ms|owner"  (cap_at_ms: slot_exp's end, 0: none)
--                "w:<token>": a waiter,  "alive_until_ms|lease_ms|cap_ms|channel|owner"
-- Every key has a TTL: as long as it may be needed, and a minute.

local SLACK_MS = 60000
local STATE_MS = 7 * 24 * 3600 * 1000
local PASSED_OVER = 64

local slots, line, state = KEYS[1], KEYS[2], KEYS[3]
local clock, now_ms

local function tell_time()
  clock = redis.call('TIME')
  now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
end

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
local function fence_after(last) return text(math.max(tonumber(last or 0) + 1, clock[1] * 1000000 + clock[2])) end

-- Gives `token` a slot, unless it has one; returns whether it had none.
local function take(token, owner, fence, life, cap_ms)
  if redis.call('ZADD', slots, 'NX', text(now_ms + life), token) == 0 then return false end
  local cap_at = cap_ms >= 0 and now_ms + cap_ms or 0
  redis.call('HSET', state, 'fence', fence,
    'h:' .. token, fence .. '|' .. text(now_ms) .. '|' .. text(cap_at) .. '|' .. owner)
  keep_key(slots, life)
  return true
end

local function drop_expired()
  local gone = redis.call('ZRANGEBYSCORE', slots, '-inf', now_ms, 'LIMIT', 0, 1000)
  if #gone > 0 then
    redis.call('ZREM', slots, unpack(gone))
    for at, token in ipairs(gone) do gone[at] = 'h:' .. token end
    redis.call('HDEL', state, unpack(gone))
  end
end

local function leave_line(token)
  redis.call('HDEL', state, 'w:' .. token)
  redis.call('ZREM', line, token)
end

-- Hands free slots to the longest waiters, up to `me`, whose call this is. A waiter whose process does not listen just
-- now keeps its place and is passed over; one that has not looked for longer than its patience is out.
-- Returns how many slots are still free.
local function serve(me)
  drop_expired()
  local known = redis.call('HMGET', state, 'max', 'fence')
  local free, fence = tonumber(known[1] or 0) - redis.call('ZCARD', slots), known[2]
  local from = 0
  while free > 0 and from < PASSED_OVER do
    local heads = redis.call('ZRANGE', line, from, from + 15)
    if #heads == 0 then break end
    for _, token in ipairs(heads) do
      if free <= 0 or token == me then return free end
      local record = redis.call('HGET', state, 'w:' .. token) or ''
      local alive, lease, cap, channel, owner = string.match(record, '^(%d+)|(%d+)|(-?%d+)|([^|]*)|(.*)$')
      if not alive or tonumber(alive) <= now_ms then
        leave_line(token)
      else
        local cap_ms = tonumber(cap)
        local life = life_of(tonumber(lease), cap_ms)
        local given = fence_after(fence)
        if redis.call('PUBLISH', channel, token .. ' ' .. given .. ' ' .. text(life) .. ' ' .. text(now_ms)) > 0 then
          leave_line(token)
          take(token, owner, given, life, cap_ms)
          free, fence = free - 1, given
        else
          from = from + 1
        end
      end
    end
  end
  return free
end
