-- Who gets what is free; after lib_pool, by scripts that need it.
-- within: lib_sweeping
-- include: lib_ring

local deaf = {}  -- of channels: whether nobody listens; all who wait there are passed over at the price of one
local answers = {}  -- of lanes of pools that this script has called: whether a worker will come
local called = false  -- whether a slot is kept for a worker that was called, or some were passed over
local kept = {}  -- what is kept in a partition, for called workers, or for one who needs more than is left
local alone = true  -- whether all who wait are of one partition, so that there are no turns

-- Takes the slot from `token`; returns 1 if it had one, else 0. What was only kept was no start; those who have started
-- meanwhile count from when they did.
local function let_go(token)
  local known = redis.call('HGET', state, 'h:' .. token)
  redis.call('HDEL', state, 'h:' .. token, 'x:' .. token, 'e:' .. token)
  if redis.call('HDEL', state, 'k:' .. token) == 1 then
    know()
    if interval_us then redis.call('HSET', state, 'arrival', text(math.max(arrival_us - interval_us, started_us))) end
  end
  local weight, partition = string.match(known or '', '^%d+|%d+|%d+|(%d+)|([^|]*)|')
  if weight and weight ~= '1' then
    extra = math.max(0, tonumber(redis.call('HGET', state, 'extra') or 0) + 1 - weight)
    redis.call('HSET', state, 'extra', text(extra))
  end
  if partition and partition ~= '' then
    if redis.call('HINCRBY', state, 'u:' .. partition, -weight) <= 0 then redis.call('HDEL', state, 'u:' .. partition) end
    go_on(partition)
  end
  return redis.call('ZREM', slots, token)
end

-- What has come to the end that its slot_exp set, or was only kept, has not lapsed: it has been there as long as it may.
local function drop_expired()
  local ended = redis.call('ZRANGEBYSCORE', slots, '-inf', now_ms, 'WITHSCORES', 'LIMIT', 0, 1000)
  for at = 1, #ended, 2 do
    local known = redis.call('HMGET', state, 'h:' .. ended[at], 'k:' .. ended[at])
    local cap_at = tonumber(string.match(known[1] or '', '^%d+|%d+|(%d+)|'))
    if cap_at and not known[2] and (cap_at == 0 or tonumber(ended[at + 1]) < cap_at) then lapsed = lapsed + 1 end
    let_go(ended[at])
  end
end

-- Where a token, or a digest, stands in line.
local function member(lane, partition, place, weight, token)
  return lane .. '|' .. partition .. '|' .. place .. '|' .. (weight == 1 and '' or text(weight)) .. '|' .. token
end

-- `turn` is that of a partition in which nobody waits yet: by its place, unless it had turns before.
local function stand(lane, partition, place, stands, ms, turn)
  redis.call('ZADD', line, 0, stands)
  line_up(lane, partition, turn or place)
  keep_key(line, ms)
  keep_key(ring, ms)
end

local function leave_line(token, lane)
  local partition, place, weight = string.match(redis.call('HGET', state, 'w:' .. token) or '', '^([^|]*)|(%x+)|(%d+)|')
  if not place then return end
  redis.call('HDEL', state, 'w:' .. token)
  redis.call('ZREM', line, member(lane, partition, place, tonumber(weight), token))
  go_on(partition)  -- whoever is behind it may need less
  step_out(lane, partition)
end

-- Has the first caller look again: it learns for how long a slot is kept for a worker, who may not come.
local function nudge_caller()
  for _, lane in ipairs({CALLERS, SEVERAL}) do
    local first = redis.call('ZRANGEBYLEX', line, '[' .. lane .. '|', '(' .. lane .. '}', 'LIMIT', 0, 1)[1]
    local token = first and string.match(first, '|([^|]*)$')
    local channel = token and string.match(redis.call('HGET', state, 'w:' .. token) or '',
      '^[^|]*|%x+|%d+|%d+|%d+|%-?%d+|([^|]*)|')
    if channel then
      redis.call('PUBLISH', channel, (lane == SEVERAL and string.match(token, '^(.*)%.%d+$') or token) .. ' ')
      return
    end
  end
end

local function asks_for(lane)
  local serves = string.match(lane, '^%+?(.*)$')
  local known = redis.call('HMGET', state, 'name', 'wake', 'c:' .. lane)
  if not known[2] then return false end  -- the server has evicted the state, and the messages with it
  if redis.call('PUBLISH', known[2] .. serves, known[1]) == 0 then return false end
  if not known[3] then
    redis.call('HSET', state, 'c:' .. lane, text(now_ms))
    nudge_caller()
  end
  return not known[3] or now_ms - tonumber(known[3]) < CALL_MS
end

-- Whether a worker will come for the head of a lane: one listens, and none has let the lane wait for long by now. All who
-- listen hear the call, and take as much as they can: a script calls once, however much is free.
local function call_lane(lane)
  local called_at = line .. lane
  if answers[called_at] == nil then answers[called_at] = asks_for(lane) end
  return answers[called_at]
end

-- Forgets callers at the heads of queues of lib_several who have not looked for longer than their patience, when nobody
-- else is left there to do it.
local function forget_dead_heads()
  local from = '[!' .. CALLERS .. '|'
  for _ = 1, 100 do
    local head = redis.call('ZRANGEBYLEX', line, from, '(!' .. CALLERS .. '}', 'LIMIT', 0, 1)[1]
    if not head then return end
    local queue, token = string.match(head, '^(![^|]*|[^|]*)|%x+|(.*)$')
    local alive = string.match(redis.call('HGET', state, 's:' .. token) or '', '^%x+|%d+|%d+|(%d+)|')
    if alive and tonumber(alive) > now_ms then
      from = '(' .. queue .. '}'
    else
      redis.call('ZREM', line, head)
      redis.call('HDEL', state, 's:' .. token)
    end
  end
end

-- The lanes in which somebody waits who may get something, each with the partition whose turn is next in it.
local function open_lanes()
  local lanes, from = {}, '-'
  alone = true
  while true do
    local found = redis.call('ZRANGEBYLEX', ring, from, '+', 'LIMIT', 0, 2)
    local lane, turn, partition = string.match(found[1] or '', '^([^|]*)|(%x+)|(.*)$')
    if not lane or lane == STOPPED then return lanes end
    lanes[#lanes + 1] = {name = lane, at = found[1], turn = turn, partition = partition}
    local next_lane = string.match(found[2] or '', '^([^|]*)|')
    alone = alone and next_lane ~= lane and partition == lanes[1].partition
    if not next_lane then return lanes end
    from = '(' .. lane .. '|\255'
  end
end

-- Gives a slot to a waiting caller. "granted"; "deaf": its process does not listen just now, and it keeps its place;
-- "gone": it has not looked for longer than its patience. Who wants slots of other pools, too, has this one for as long
-- as it may take to ask for all.
local function grant_caller(lane, token, weight, partition)
  local record = redis.call('HGET', state, 'w:' .. token) or ''
  local alive, lease, cap, channel, owner =
    string.match(record, '^[^|]*|%x+|%d+|(%d+)|(%d+)|(-?%d+)|([^|]*)|(.*)$')
  if not alive or tonumber(alive) <= now_ms then return 'gone' end
  if deaf[channel] then return 'deaf' end
  local cap_ms = tonumber(cap)
  local life = life_of(tonumber(lease), cap_ms)
  local given = fence_after(fence)
  -- A server that refuses to write, for its memory or its role, does so at the first write of a script: before anybody
  -- is told of a slot.
  redis.call('HSET', state, 'fence', given)
  local told = token .. ' ' .. given .. ' ' .. text(life) .. ' ' .. text(now_ms)
  if lane == SEVERAL then life, told = CALL_MS, string.match(token, '^(.*)%.%d+$') .. ' ' end
  if redis.call('PUBLISH', channel, told) == 0 then
    deaf[channel] = true
    return 'deaf'
  end
  take(token, owner, life, cap_ms, weight, partition, lane == SEVERAL)
  return 'granted'
end

-- Hands free slots out, to one partition after the other, and in the order of arrival within each: to callers at once;
-- for parked messages a worker is called, and the slot kept for it, unless nobody answers. Whoever needs more than is
-- free is waited for. Stops at the caller `me`, and at a message in one of the lanes `mine`.
-- Returns how many slots are still free for somebody else, and the member at which it stopped, if any.
local function serve(me, mine)
  drop_expired()
  know()
  if clock[2] % 16 == 0 then forget_dead_heads() end
  if declared_anew and redis.call('ZCARD', line) > 0 then restore_ring() end
  declared_anew = false
  local free, left = room()
  if free <= 0 or left <= 0 then return 0 end
  local lanes = open_lanes()
  if #lanes == 0 and redis.call('EXISTS', ring) == 0 and redis.call('ZCARD', line) > 0 then
    restore_ring()
    lanes = open_lanes()
  end
  local dead, visited, later, heads, passed, served = {}, {}, {}, {}, 0, 0
  kept = {}

  local function next_partition()
    local best
    for _, lane in ipairs(lanes) do
      while lane.at and visited[lane.partition] and not dead[lane.name] do
        lane.at = not alone and redis.call('ZRANGEBYLEX', ring,
          '(' .. lane.at, '(' .. lane.name .. '|\255', 'LIMIT', 0, 1)[1]
        if lane.at then lane.turn, lane.partition = string.match(lane.at, '^[^|]*|(%x+)|(.*)$') end
      end
      if lane.at and not dead[lane.name] and (not best or lane.turn < best.turn) then best = lane end
    end
    if not best then return table.remove(later, 1) end
    visited[best.partition] = true
    return best.partition
  end

  local function oldest(partition)
    local its = heads[partition]
    if not its then
      its = {}
      local _, names = turn_of(partition)
      for name in string.gmatch(names or '', '%S+') do
        its[name] = first_in(name, partition)
        if not its[name] then step_out(name, partition) end  -- the server has evicted the line
      end
      heads[partition] = its
    end
    local found, place
    for name, head in pairs(its) do
      local at = not dead[name] and string.match(head, '^[^|]*|[^|]*|(%x+)|')
      if at and (not place or at < place) then found, place = name, at end
    end
    return found, its[found]
  end

  local function advance(lane, partition, head)
    local behind = '(' .. lane .. '|' .. partition .. '|\255'
    heads[partition][lane] = redis.call('ZRANGEBYLEX', line, '(' .. head, behind, 'LIMIT', 0, 1)[1]
  end

  local partition = next_partition()
  while partition and free > 0 and left > 0 and passed < PASSED_OVER and served < SERVED do
    local lane, head = oldest(partition)
    if not head then
      partition = next_partition()
    else
      local weight, token = string.match(head, '^[^|]*|[^|]*|%x+|(%d*)|(.*)$')
      weight = tonumber(weight) or 1
      local reserved = kept[partition] or 0
      local may_have = left_of(partition)
      if weight > max or (share and partition ~= '' and weight > share) then  -- a limit that was made smaller since
        passed = passed + 1
        advance(lane, partition, head)
      elseif weight > may_have - reserved then
        if weight > may_have then stop(partition) end
        kept[partition] = math.huge
        partition = next_partition()
      elseif weight > free then
        return 0
      elseif token == me or (mine and mine[lane]) then
        return free, head
      elseif lane == CALLERS or lane == SEVERAL then
        local outcome = grant_caller(lane, token, weight, partition)
        advance(lane, partition, head)
        if outcome == 'deaf' then
          passed = passed + 1
        else
          redis.call('ZREM', line, head)
          redis.call('HDEL', state, 'w:' .. token)
          if not heads[partition][lane] then step_out(lane, partition) end
          if outcome == 'granted' then
            free, left, served = free - weight, left - 1, served + 1
            if not alone then next_turn(partition) end
            later[#later + 1] = partition
            partition = next_partition()
          end
        end
      elseif call_lane(lane) then
        called = true
        advance(lane, partition, head)
        free, left, kept[partition], served = free - weight, left - 1, reserved + weight, served + 1
        later[#later + 1] = partition
        partition = next_partition()
      else
        dead[lane] = true
      end
    end
  end
  called = called or passed >= PASSED_OVER or served >= SERVED
  return left > 0 and served < SERVED and free or 0
end

-- Milliseconds until the `ahead`-th next start may be possible: the rate allows it, a slot that is kept for a called
-- worker is given up, or a slot expires; -1: nothing is known of it.
local function look_again_ms(ahead)
  if paused then return -1 end
  local _, rated_ms = starts()
  if rated_ms > 0 then return rated_ms + ahead * interval_us / 1000 end
  if called then return CALL_MS end
  local first = redis.call('ZRANGE', slots, 0, 0, 'WITHSCORES')[2]
  return first and math.max(0, first - now_ms) or -1
end

-- Who has the slots, at most 100 of them.
local function owners()
  local found = {}
  for _, held in ipairs(redis.call('ZRANGE', slots, 0, 99)) do
    local record = redis.call('HGET', state, 'h:' .. held) or '|||||'
    found[#found + 1] = string.match(record, '^[^|]*|[^|]*|[^|]*|[^|]*|[^|]*|(.*)$')
  end
  return found
end
