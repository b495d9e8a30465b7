-- Shared by the pool scripts, which include it: what there is, and what is free. lib_line says who gets it.
--
-- The keys of a pool, all under one hash tag, in the order in which every script takes them:
--   slots   zset  token -> when it no longer counts (ms)
--   line    zset  all scores 0: "<lane>|<partition>|<place>|<weight>|<token>"; lane "-" is for callers, any other for
--                 parked messages, and "+<lane>" for those of a lane who want slots of other pools, too; no partition
--                 and a weight of 1 are empty. And the queues of lib_several: "!<lane>|<queue>|<place>|<token>"
--   state   hash  max, declared, fence, place; rate ("interval_us/burst") and arrival, which is GCRA's theoretical arrival
--                 time (us), and started, the same without what is only kept; share, the most that a partition may have;
--                 extra, by how much the holders weigh more than 1 each; paused; impatient and resting, see
--                 note_impatience; name and wake (what to publish, and where, when a lane is called); evictions, the
--                 last ones (packed: {id, ms, reply of pool_evict}, ...); of a cache
--                 entry's line also verdict ("place|payload": what messages up to that place get) and fleeting (nothing
--                 is kept of it when it is empty);
--                 "h:<token>"  a holder            "fence|acquired_ms|cap_at_ms|weight|partition|owner"  (cap_at_ms:
--                                                  slot_exp's end, 0: none)
--                 "w:<token>"  a waiting caller    "partition|place|weight|alive_until_ms|lease_ms|cap_ms|channel|owner"
--                              in "+<lane>" a message   "partition|place|weight|", and how to ask for all of its pools
--                 "m:<digest>" a parked message    "cap_ms|token that parked it|bytes of owner|", owner, message
--                 "o:<digest>" who has taken it    "token|", and where it stood: "lane|partition|place|weight", or
--                              "!<queue>|place|" and how to ask for all of its pools
--                 "x:<token>"  the digest of the message that the holder `token` has taken
--                 "e:<token>"  since when the holder is to end (ms), and its fence: "ms|fence"
--                 "s:<token>"  one in a queue of lib_several
--                 "k:<token>"  whether a slot is only kept, for one who wants slots of other pools, too
--                 "c:<lane>"   since when a lane has been called without an answer (ms)
--                 "u:<partition>"  what its holders weigh
--                 "t:<partition>"  of one that waits: its turn, and the lanes that it waits in, "turn| lane lane "
--   claims  zset  digest of a taken message -> until when its taker has said that it lives (ms); and "!<token>" -> minus
--                 the time (ms) until which a message that was parked by this token is known to have been run
--   ring    zset  all scores 0: "<lane>|<turn>|<partition>", the partitions that wait in a lane, the next one first; one
--                 that has all that it may have is in the lane "~"
-- Every key has a TTL: as long as it may be needed, and a minute.

local SLACK_MS = 60000
local STATE_MS = 7 * 24 * 3600 * 1000
local ROOM_MS = 60 * 24 * 3600 * 1000
local FIELDS = 64  -- of a state of a pool in which nobody is: as many are left alone, see lib_plain
local PASSED_OVER = 512
local SERVED = 1000  -- at once, since the server does nothing else meanwhile; whoever looks next serves as many again
local FOR_EVER = '9999999999999'
local CALL_MS = 1000
local REPEATED_MS = 60000
local MARKS = 10000
local IMPATIENT_MS = 3600000
local RESTING_MS = 400  -- a slot passes on for 250 ms (_passing.py), and is then sent back within 50 (relay.py)
local UNSURE_MS = 2500  -- one slot passes on for 2000 ms (slot.py), and after 100 and a moment the next one is noted
local CALLERS, SEVERAL = '-', '+-'

local slots, line, state, claims, ring = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
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

-- Like a fence: it grows whatever happens to the data, and says when it was taken (us); in hexadecimal, to be short.
local function next_place()
  local last = tonumber(redis.call('HGET', state, 'place') or '0', 16)
  local place = string.format('%013x', math.max(last + 1, clock[1] * 1000000 + clock[2]))
  redis.call('HSET', state, 'place', place)
  return place
end

-- Forgets the fields of the state whose names are like `pattern`.
local function forget(pattern)
  for _, field in ipairs(redis.call('HKEYS', state)) do
    if string.find(field, pattern) then redis.call('HDEL', state, field) end
  end
end

-- What is known of the pool's limit, read once a script by know().
local max, declared, fence, paused, interval_us, burst, arrival_us, started_us, share, extra
local declared_anew = false  -- what a partition may have: lib_line looks at all of them again then

-- Returns whether the pool is known.
local function know()
  local known = redis.call('HMGET', state, 'max', 'declared', 'fence', 'rate', 'arrival', 'paused', 'share', 'extra',
    'started')
  max, declared, fence, paused = tonumber(known[1] or 0), known[2] or '', known[3], known[6]
  share, extra = tonumber(known[7]), tonumber(known[8] or 0)
  interval_us = nil
  if known[4] then
    interval_us, burst = string.match(known[4], '^(%d+)/(%d+)$')
    interval_us, burst = tonumber(interval_us), tonumber(burst)
    local now_us, last_us = clock[1] * 1000000 + clock[2], tonumber(known[9] or 0)
    -- No start puts it further ahead than all of a burst: the rate was another one, or the server's clock was set back.
    local too_far_us = math.max(0, last_us - now_us - burst * interval_us)
    arrival_us = math.max(tonumber(known[5] or last_us) - too_far_us, now_us)
    started_us = math.max(last_us - too_far_us, now_us)
    if too_far_us > 0 then redis.call('HSET', state, 'arrival', text(arrival_us), 'started', text(started_us)) end
  end
  return known[1]
end

-- Takes notice of a declaration, "size[@interval_us/burst][%share]". The newest one wins; one that repeats the last
-- leaves a live resize alone. Returns what was declared before.
local function declare(spec, first)
  local known = know()
  local before = declared
  if not known or (first == '1' and before ~= spec) then
    local size, rate, most = string.match(spec, '^(%d+)@?([^%%]*)%%?(%d*)$')
    redis.call('HSET', state, 'max', size, 'declared', spec)
    redis.call('HDEL', state, 'arrival')  -- what is only kept is counted in intervals of before
    if rate ~= '' then redis.call('HSET', state, 'rate', rate) else redis.call('HDEL', state, 'rate', 'started') end
    if most ~= '' then redis.call('HSET', state, 'share', most) else redis.call('HDEL', state, 'share') end
    declared_anew = not known or tonumber(most) ~= share
    keep_key(state, STATE_MS)
    know()
  elseif paused or max ~= tonumber(string.match(declared, '^%d+')) then
    keep_key(state, ROOM_MS)  -- what somebody has decided, and no declaration says
  elseif clock[2] % 16 == 0 then
    keep_key(state, STATE_MS - 2 * SLACK_MS)
  end
  -- Who died as the last one in a pool went with a whole key, and not one by one; lib_plain leaves it to one call in 16.
  if redis.call('HLEN', state) > FIELDS and redis.call('EXISTS', slots, line, claims) == 0 then forget('^%l:') end
  return before
end

-- GCRA: how many starts the rate allows now, and in how many milliseconds the next one (0: now). To one for whom a start
-- is `kept`, what is kept for others, too, is none.
local function starts(kept)
  if not interval_us then return math.huge, 0 end
  local now_us, next_us = clock[1] * 1000000 + clock[2], kept and started_us or arrival_us
  local allowed = math.floor((now_us + burst * interval_us - next_us) / interval_us)
  if allowed > 0 then return allowed, 0 end
  return 0, math.ceil((next_us - (burst - 1) * interval_us - now_us) / 1000)
end

-- How many slots are free now, none where the rate allows no start; and how many starts it allows.
local function room()
  local allowed = starts()
  if paused or allowed == 0 then return 0, 0 end
  local held = redis.call('ZCARD', slots)
  if held == 0 and extra > 0 then  -- the server has evicted the slots
    extra = 0
    redis.call('HDEL', state, 'extra')
  end
  return max - held - extra, allowed
end

-- How much more a partition may hold.
local function left_of(partition)
  if not share or partition == '' then return math.huge end
  local used = tonumber(redis.call('HGET', state, 'u:' .. partition) or 0)
  if used > 0 and redis.call('ZCARD', slots) == 0 then  -- the server has evicted the slots
    forget('^[ehku]:')
    used = 0
  end
  return share - used
end

-- Notes that somebody asks who does not wait, or who has a holder end: for an hour no slot passes from run to run then,
-- see lib_plain, since one that rests between two runs would be his reason. Returns for how many ms one may rest still.
local function note_impatience()
  local known = redis.call('HMGET', state, 'impatient', 'resting')
  local until_ms, resting_until = tonumber(known[1] or 0), tonumber(known[2] or 0)
  if until_ms < now_ms + IMPATIENT_MS / 2 then
    redis.call('HSET', state, 'impatient', text(now_ms + IMPATIENT_MS))
    if until_ms <= now_ms and max > 1 and not interval_us and redis.call('ZCARD', slots) > 0 then
      resting_until = now_ms + RESTING_MS
      redis.call('HSET', state, 'resting', text(resting_until))
    end
  end
  return math.max(0, resting_until - now_ms)
end

-- Gives `token` a slot, unless it has one; returns whether it had none. lib_plain does so by itself, for a plain slot.
-- What is only `kept` for one who wants slots of other pools, too, is no start yet, and nobody else's.
local function take(token, owner, life, cap_ms, weight, partition, kept)
  if redis.call('ZADD', slots, 'NX', text(now_ms + life), token) == 0 then return false end
  fence = fence_after(fence)
  local cap_at = cap_ms >= 0 and now_ms + cap_ms or 0
  redis.call('HSET', state, 'fence', fence, 'h:' .. token,
    fence .. '|' .. text(now_ms) .. '|' .. text(cap_at) .. '|' .. text(weight) .. '|' .. partition .. '|' .. owner)
  if interval_us then
    arrival_us = arrival_us + interval_us
    if not kept then started_us = started_us + interval_us end
    redis.call('HSET', state, 'arrival', text(arrival_us), 'started', text(started_us))
    keep_key(state, arrival_us / 1000 - now_ms)
  end
  if kept then redis.call('HSET', state, 'k:' .. token, '1') end
  if weight > 1 then
    extra = extra + weight - 1
    redis.call('HSET', state, 'extra', text(extra))
  end
  if partition ~= '' then redis.call('HINCRBY', state, 'u:' .. partition, weight) end
  -- What weighs, or counts in a partition, is taken out of the counts when it has expired: it must still be there then.
  keep_key(slots, (weight > 1 or partition ~= '') and ROOM_MS or life)
  return true
end

-- Lets the slot of `token` count for `life` ms from now, but not beyond the end that slot_exp set; returns for how long.
local function prolong(token, life)
  local record = redis.call('HGET', state, 'h:' .. token) or ''
  local cap_at = tonumber(string.match(record, '^[^|]*|[^|]*|(%d+)|') or 0)
  if cap_at > 0 then life = math.min(life, cap_at - now_ms) end
  redis.call('ZADD', slots, 'XX', text(now_ms + life), token)
  keep_key(slots, life)
  return life, string.match(record, '^(%d+)')
end

-- Leaves nothing of a pool in which nobody is left but the marks of messages that were parked just now.
local function remove_if_empty()
  if redis.call('ZCARD', slots) + redis.call('ZCARD', line) + redis.call('ZCOUNT', claims, 0, '+inf') > 0 then return false end
  redis.call('UNLINK', slots, line, state, ring)
  redis.call('PEXPIRE', claims, REPEATED_MS)
  return true
end
