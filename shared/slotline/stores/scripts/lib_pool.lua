-- Shared by the pool scripts, which include it.
--
-- The keys of a pool, all under one hash tag, in the order in which every script takes them:
--   slots   zset  token -> when it no longer counts (ms)
--   line    zset  all scores 0: "<lane>|<place>|<token>"; lane "-" is for callers, any other for parked messages
--   state   hash  max, declared, fence, place; rate ("interval_us/burst") and arrival, which is GCRA's theoretical arrival
--                 time (us); paused; name and wake (what to publish, and where, when a lane is called); of a cache
--                 entry's line also verdict ("place|payload": what messages up to that place get) and fleeting (nothing
--                 is kept of it when it is empty);
--                 "h:<token>"  a holder            "fence|acquired_ms|cap_at_ms|owner"  (cap_at_ms: slot_exp's end, 0: none)
--                 "w:<token>"  a waiting caller    "place|alive_until_ms|lease_ms|cap_ms|channel|owner"
--                 "m:<digest>" a parked message    "cap_ms|token that parked it|bytes of owner|", owner, message
--                 "o:<digest>" who has taken it    "token|place|lane"
--                 "x:<token>"  the digest of the message that the holder `token` has taken
--                 "e:<token>"  since when the holder is to end (ms)
--                 "c:<lane>"   since when a lane has been called without an answer (ms)
--   claims  zset  digest of a taken message -> until when its taker has said that it lives (ms); and "!<token>" -> minus
--                 the time (ms) until which a message that was parked by this token is known to have been run
-- Every key has a TTL: as long as it may be needed, and a minute.

local SLACK_MS = 60000
local STATE_MS = 7 * 24 * 3600 * 1000
local ROOM_MS = 60 * 24 * 3600 * 1000
local PASSED_OVER = 512
local CALL_MS = 1000
local REPEATED_MS = 60000
local MARKS = 10000
local CALLERS = '-'

local slots, line, state, claims = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local clock, now_ms

local function tell_time()
  clock = redis.call('TIME')
  now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
end

local function text(number) return string.format('%.0f', number) end

-- Most calls find half the slack still there and write nothing; a TTL is never shortened.
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

-- What is known of the pool's limit, read once a script by know().
local max, declared, fence, paused, interval_us, burst, arrival_us

-- Returns whether the pool is known.
local function know()
  local known = redis.call('HMGET', state, 'max', 'declared', 'fence', 'rate', 'arrival', 'paused')
  max, declared, fence, paused = tonumber(known[1] or 0), known[2] or '', known[3], known[6]
  if known[4] then
    interval_us, burst = string.match(known[4], '^(%d+)/(%d+)$')
    interval_us, burst = tonumber(interval_us), tonumber(burst)
    arrival_us = math.max(tonumber(known[5] or 0), clock[1] * 1000000 + clock[2])
  end
  return known[1]
end

-- Takes notice of a declaration, "size" or "size@interval_us/burst". The newest one wins; one that repeats the last
-- leaves a live resize alone. Returns what was declared before.
local function declare(spec, first)
  local known = know()
  local before = declared
  if not known or (first == '1' and before ~= spec) then
    local size, rate = string.match(spec, '^(%d+)@?(.*)$')
    redis.call('HSET', state, 'max', size, 'declared', spec)
    if rate ~= '' then redis.call('HSET', state, 'rate', rate) else redis.call('HDEL', state, 'rate', 'arrival') end
    keep_key(state, STATE_MS)
    know()
  elseif clock[2] % 16 == 0 then
    keep_key(state, STATE_MS - 2 * SLACK_MS)
  end
  return before
end

-- GCRA: how many starts the rate allows now, and in how many milliseconds the next one (0: now).
local function starts()
  if not interval_us then return math.huge, 0 end
  local now_us = clock[1] * 1000000 + clock[2]
  local allowed = math.floor((now_us + burst * interval_us - arrival_us) / interval_us)
  if allowed > 0 then return allowed, 0 end
  return 0, math.ceil((arrival_us - (burst - 1) * interval_us - now_us) / 1000)
end

-- How many slots may be given now.
local function room()
  if paused then return 0 end
  return math.min(max - redis.call('ZCARD', slots), (starts()))
end

-- Gives `token` a slot, unless it has one; returns whether it had none.
local function take(token, owner, life, cap_ms)
  if redis.call('ZADD', slots, 'NX', text(now_ms + life), token) == 0 then return false end
  fence = fence_after(fence)
  local cap_at = cap_ms >= 0 and now_ms + cap_ms or 0
  redis.call('HSET', state, 'fence', fence,
    'h:' .. token, fence .. '|' .. text(now_ms) .. '|' .. text(cap_at) .. '|' .. owner)
  if interval_us then
    arrival_us = arrival_us + interval_us
    redis.call('HSET', state, 'arrival', text(arrival_us))
    keep_key(state, arrival_us / 1000 - now_ms)
  end
  keep_key(slots, life)
  return true
end

-- Leaves nothing of a pool in which nobody is left but the marks of messages that were parked just now.
local function remove_if_empty()
  if redis.call('ZCARD', slots) + redis.call('ZCARD', line) + redis.call('ZCOUNT', claims, 0, '+inf') > 0 then return false end
  redis.call('UNLINK', slots, line, state)
  redis.call('PEXPIRE', claims, REPEATED_MS)
  return true
end

local function drop_expired()
  local gone = redis.call('ZRANGEBYSCORE', slots, '-inf', now_ms, 'LIMIT', 0, 1000)
  for _, token in ipairs(gone) do
    redis.call('ZREM', slots, token)
    redis.call('HDEL', state, 'h:' .. token, 'x:' .. token, 'e:' .. token)
  end
end

-- Where a token, or a digest, stands in line.
local function member(lane, place, token) return lane .. '|' .. place .. '|' .. token end

-- Like a fence: it grows whatever happens to the data, and says when it was taken (us); in hexadecimal, to be short.
local function next_place()
  local last = tonumber(redis.call('HGET', state, 'place') or '0', 16)
  local place = string.format('%013x', math.max(last + 1, clock[1] * 1000000 + clock[2]))
  redis.call('HSET', state, 'place', place)
  return place
end

local function leave_line(token)
  local place = string.match(redis.call('HGET', state, 'w:' .. token) or '', '^(%x+)|')
  if not place then return end
  redis.call('HDEL', state, 'w:' .. token)
  redis.call('ZREM', line, member(CALLERS, place, token))
end

-- Whether a worker will come for the head of a lane: one listens, and none has let the lane wait for long by now.
local function call_lane(lane)
  local known = redis.call('HMGET', state, 'name', 'wake', 'c:' .. lane)
  if not known[2] then return false end  -- the server has evicted the state, and the messages with it
  if redis.call('PUBLISH', known[2] .. lane, known[1]) == 0 then return false end
  if not known[3] then redis.call('HSET', state, 'c:' .. lane, text(now_ms)) end
  return not known[3] or now_ms - tonumber(known[3]) < CALL_MS
end

-- The lanes that have somebody in them, each with its head and a way to the next behind it.
local function open_lanes()
  local lanes, from = {}, '-'
  while true do
    local head = redis.call('ZRANGEBYLEX', line, from, '+', 'LIMIT', 0, 1)[1]
    if not head then return lanes end
    local lane = string.match(head, '^([^|]*)|')
    lanes[#lanes + 1] = {name = lane, head = head}
    from = '(' .. lane .. '|\255'
  end
end

local function advance(lane)
  lane.head = redis.call('ZRANGEBYLEX', line, '(' .. lane.head, '(' .. lane.name .. '|\255', 'LIMIT', 0, 1)[1]
end

local function oldest(lanes)
  local found, place
  for _, lane in ipairs(lanes) do
    local its = lane.head and string.match(lane.head, '|(%x+)|')
    if its and (not place or its < place) then found, place = lane, its end
  end
  return found
end

local deaf = {}  -- channels that nobody listens on: all who wait there are passed over at the price of one

-- Gives a slot to a waiting caller. "granted"; "deaf": its process does not listen just now, and it keeps its place;
-- "gone": it has not looked for longer than its patience.
local function grant_caller(token)
  local record = redis.call('HGET', state, 'w:' .. token) or ''
  local alive, lease, cap, channel, owner = string.match(record, '^%x+|(%d+)|(%d+)|(-?%d+)|([^|]*)|(.*)$')
  if not alive or tonumber(alive) <= now_ms then return 'gone' end
  if deaf[channel] then return 'deaf' end
  local cap_ms = tonumber(cap)
  local life = life_of(tonumber(lease), cap_ms)
  local given = fence_after(fence)
  if redis.call('PUBLISH', channel, token .. ' ' .. given .. ' ' .. text(life) .. ' ' .. text(now_ms)) == 0 then
    deaf[channel] = true
    return 'deaf'
  end
  take(token, owner, life, cap_ms)
  return 'granted'
end

-- Hands free slots out in the order of arrival: to callers at once; for parked messages a worker is called, and the slot
-- kept for it, unless nobody answers. Stops at the caller `me`, and at a message in one of the lanes `mine`.
-- Returns how many slots are still free, and the member at which it stopped, if any.
local function serve(me, mine)
  drop_expired()
  know()
  local free = room()
  if free <= 0 then return 0 end
  local lanes, passed = open_lanes(), 0
  while free > 0 and passed < PASSED_OVER do
    local lane = oldest(lanes)
    if not lane then break end
    local head = lane.head
    local token = string.match(head, '^[^|]*|%x+|(.*)$')
    if token == me or (mine and mine[lane.name]) then return free, head end
    advance(lane)
    if lane.name == CALLERS then
      local outcome = grant_caller(token)
      if outcome == 'deaf' then
        passed = passed + 1
      else
        redis.call('ZREM', line, head)
        redis.call('HDEL', state, 'w:' .. token)
        if outcome == 'granted' then free = free - 1 end
      end
    elseif call_lane(lane.name) then
      free = free - 1
    else
      lane.head = nil
    end
  end
  return free
end
