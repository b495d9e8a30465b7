-- Taking a parked message with a slot, for scripts that do; after lib_pool, lib_line and lib_room.

-- How many messages wait in the lanes `served`, and milliseconds after which there may be a slot for one (0: there is one;
-- -1: no reason to look).
local function prospects(served)
  local function waiting_in(lane) return redis.call('ZLEXCOUNT', line, '[' .. lane .. '|', '(' .. lane .. '|\255') end
  local waiting = 0
  for _, lane in ipairs(served) do waiting = waiting + waiting_in(lane) + waiting_in('+' .. lane) end
  if waiting == 0 then
    for _, lane in ipairs(served) do waiting = waiting + waiting_in('!' .. lane) end
  end
  local next_ms = tonumber(redis.call('ZRANGEBYSCORE', claims, 0, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2])
  if waiting > 0 and not paused then
    -- A worker that asks has capacity: the next free slot is kept for its call again.
    for _, lane in ipairs(served) do redis.call('HDEL', state, 'c:' .. lane, 'c:+' .. lane) end
    local expiry = tonumber(redis.call('ZRANGE', slots, 0, 0, 'WITHSCORES')[2])
    local _, rated_ms = starts()
    if rated_ms > 0 then
      expiry = now_ms + rated_ms
    elseif interval_us and (room()) > 0 then
      -- Another lane comes first, and no release tells when this one's turn is.
      expiry = now_ms + math.min(CALL_MS, interval_us / 1000)
    end
    if called then expiry = math.min(expiry or math.huge, now_ms + CALL_MS) end
    next_ms = math.min(next_ms or math.huge, expiry or math.huge)
    if next_ms == math.huge then next_ms = nil end
  end
  return waiting, next_ms and math.max(1, next_ms - now_ms) or -1
end

-- Takes the longest message of the lanes `served` for the run `token`, if there is a slot for it; returns room_take's
-- reply.
local function take_longest(token, lease_ms, served)
  take_back_lapsed()
  local mine = {}
  for _, lane in ipairs(served) do mine[lane], mine['+' .. lane] = true, true end
  local _, head = serve('', mine)
  while head do  -- a server may evict the state, and the messages with it, and keep the line
    local lane, partition, digest = string.match(head, '^([^|]*)|([^|]*)|%x+|%d*|(.*)$')
    if string.sub(lane, 1, 1) == '+' then
      local known = string.match(redis.call('HGET', state, 'w:' .. digest) or '', '^[^|]*|%x+|%d+|(.*)$')
      redis.call('HDEL', state, 'c:' .. lane)
      if known then return {2, unpack(cmsgpack.unpack(known))} end
    elseif redis.call('HEXISTS', state, 'm:' .. digest) == 1 then
      break
    end
    redis.call('ZREM', line, head)
    step_out(lane, partition)
    _, head = serve('', mine)
  end
  if not head then return {0, prospects(served)} end
  local stood, digest = string.match(head, '^(.*)|([^|]*)$')
  local lane, partition, place, weight = string.match(stood, '^([^|]*)|([^|]*)|(%x+)|(%d*)$')
  local cap_ms, owner, message = parked(digest)
  local life = life_of(lease_ms, cap_ms)
  take(token, owner, life, cap_ms, tonumber(weight) or 1, partition)
  redis.call('ZREM', line, head)
  step_out(lane, partition)
  if not alone then next_turn(partition) end
  claim(token, digest, stood, lease_ms)
  redis.call('HDEL', state, 'c:' .. lane)
  local look_ms = 0  -- there is room for another
  if room() <= 0 then _, look_ms = prospects(served) end
  return {1, fence, life, digest, lane, owner, cap_ms, message, place, look_ms}
end

-- The reply for a run that has taken a message already, with both leases anew; nil for one that has none.
local function taken_already(token, lease_ms)
  local digest = redis.call('HGET', state, 'x:' .. token)
  local until_ms = digest and redis.call('ZSCORE', slots, token)
  if not until_ms or tonumber(until_ms) <= now_ms then return nil end
  local cap_ms, owner, message = parked(digest)
  local lane, place = string.match(redis.call('HGET', state, 'o:' .. digest) or '', '^[^|]*|([^|]*)|[^|]*|(%x+)|')
  local left, given = prolong(token, lease_ms)
  redis.call('ZADD', claims, 'XX', text(now_ms + lease_ms), digest)
  return {1, given, left, digest, lane, owner, cap_ms, message, place, 0}
end
