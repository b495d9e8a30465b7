-- Several pools at once, or none of them: for scripts that have the keys of all of them.
-- include: lib_pool
-- include: lib_line
-- include: lib_room
--
-- Those who ask the same of the same pools stand in one queue, at the first pool. Only its head looks for slots: it
-- stands in the line of one pool that is full, in "+<lane>", by its old place. When it is served there, it is told to
-- ask again, or a worker is called to ask for it: then it takes all, or gives that slot back and moves to the line of another pool that is full by now. From
-- its second move on it keeps what it has or could have had of the pools before the first that is full, for as long as it
-- has moved about by then: so it has all in the end. All have the pools in the same order, so that no two keep what the
-- other waits for.
--
-- KEYS  of all pools, in the order of their names, and of each: slots, line, state, claims, ring
-- ARGV  1 token   2 queue: "<lane>|<digest of the rest>"   3 lease_ms (0: none)
--       4, 5, 6, ... for each pool: cap_ms (-1: none), weight, partition ('': none)
--       and for parked messages, whose lane is not "-": the names of the pools, and the beginning of the lanes' channels
--
-- The first pool has in its line "!<queue>|<place>|<token>", and in its state
--   "s:<token>"  "place|since_ms|kept_until_ms|alive_until_ms|channel|owner": since when it moves about (0: not yet); of
--                a message only when it moves about
--   "q:<queue>"  which message of the queue stands in a line, and how all of the queue ask: "digest|..."
-- A message goes by its digest until a run has taken it. A pool calls a token "<token>.<number of the pool>", in its line
-- and among its slots.

local QUEUED = '!'
local token, queue, lease_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local lane = string.match(queue, '^([^|]*)|')
local SEVERAL_HERE, parks = '+' .. lane, lane ~= CALLERS
local pools = #KEYS / 5
local cap_ms, weight, partition
local look_rated_ms  -- when the one who asks is to ask again, if it has all but the leave of a rate
local anew, in_turns = {}, {}  -- whether a pool was declared anew; whether its partitions take turns

-- Turns to one of the pools.
local function use(at)
  slots, line, state, claims, ring = unpack(KEYS, 5 * at - 4, 5 * at)
  cap_ms, weight, partition = tonumber(ARGV[3 * at + 1]), tonumber(ARGV[3 * at + 2]), ARGV[3 * at + 3]
  declared_anew = anew[at]
end

local function slot_of(name, at) return name .. '.' .. at end

-- The fences of the slots that `name` has, and the leases that they have anew; nil unless it has all.
local function held_by(name)
  local fences, lives = {}, {}
  for at = 1, pools do
    if tonumber(redis.call('ZSCORE', KEYS[5 * at - 4], slot_of(name, at)) or 0) <= now_ms then return nil end
  end
  for at = 1, pools do
    use(at)
    lives[at], fences[at] = prolong(slot_of(name, at), life_of(lease_ms, cap_ms))
    fences[at] = fences[at] or '0'  -- the server has evicted the state
  end
  return fences, lives
end

-- Whether a pool has what `name` asks of it, now that it is its turn; 'kept' where it has it already.
local function ready(name, at)
  use(at)
  local free = serve(slot_of(name, at))
  anew[at], in_turns[at] = false, not alone
  if paused then return false end
  if redis.call('ZSCORE', slots, slot_of(name, at)) then return 'kept' end
  return free >= weight and left_of(partition) - (kept[partition] or 0) >= weight
    and not (share and turn_of(partition) == NO_TURN)
end

local function take_one(name, at, owner, life, cap, run, kept)
  use(at)
  know()
  if in_turns[at] then next_turn(partition) end
  leave_line(slot_of(name, at), SEVERAL_HERE)
  take(slot_of(run or name, at), owner, life, cap, weight, partition, kept)
end

-- Takes back what was given to `name` only until it has all.
local function take_back(name, at)
  use(at)
  return let_go(slot_of(name, at)) == 1
end

-- Gives `name`, or the run that takes it, a slot of each pool.
local function take_all(name, owner, run)
  local fences, lives = {}, {}
  for at = 1, pools do
    take_back(name, at)
    use(at)
    lives[at] = life_of(lease_ms, cap_ms)
    take_one(name, at, owner, lives[at], cap_ms, run)
    fences[at] = fence
  end
  return fences, lives
end

-- What is known of one that may be in the queue; a message is by its `place`.
local function queued(name, place)
  local record = redis.call('HGET', KEYS[3], 's:' .. name)
  if record or not (parks and place and redis.call('HEXISTS', KEYS[3], 'm:' .. name) == 1) then return record end
  return place .. '|0|0|' .. FOR_EVER .. '||'
end

local function leave_queue(name, place)
  redis.call('HDEL', KEYS[3], 's:' .. name)
  redis.call('ZREM', KEYS[2], QUEUED .. queue .. '|' .. place .. '|' .. name)
end

local function owner_of(name, owner)
  if not parks then return owner end
  use(1)
  local _, its = parked(name)
  return its or ''
end

local function stands_in_line(name, at) return redis.call('HEXISTS', state, 'w:' .. slot_of(name, at)) == 1 end

local function how_to_ask()
  local asked = {queue}
  for at = 4, 4 * pools + 3 do asked[#asked + 1] = ARGV[at] end
  return cmsgpack.pack(asked)
end

-- One that was given back may be before the one that stands in a line: a worker that is called asks for the head only.
local function stands_alone(name)
  local other = string.match(redis.call('HGET', KEYS[3], 'q:' .. queue) or '', '^([^|]+)|')
  if other == name then return end
  redis.call('HSET', KEYS[3], 'q:' .. queue, name .. '|' .. how_to_ask())
  for at = 1, other and pools or 0 do
    use(at)
    leave_line(slot_of(other, at), SEVERAL_HERE)
    take_back(other, at)
  end
end

-- Of the pools in which a start is kept, the one whose rate allows it last, and in how many milliseconds; nil where all
-- do now: others may have started since.
local function rated(found)
  local last, last_ms
  for at = 1, pools do
    if found[at] == 'kept' then
      use(at)
      know()
      local _, rated_ms = starts(true)
      if rated_ms > (last_ms or 0) then last, last_ms = at, rated_ms end
    end
  end
  return last, last_ms
end

-- Lets the head of the queue wait in the line of the pool `blocked`. Who has all but the leave of a rate, in `rated_ms`,
-- keeps it until then.
local function wait_at(name, place, blocked, found, rated_ms)
  local since_ms, kept_until, alive_until, channel, owner =
    string.match(queued(name, place), '^%x+|(%d+)|(%d+)|(%d+)|([^|]*)|(.*)$')
  since_ms, kept_until = tonumber(since_ms), tonumber(kept_until)
  local moves = false
  for at = 1, pools do
    use(at)
    moves = moves or (at ~= blocked and stands_in_line(name, at)) or found[at] == 'kept'
  end
  use(blocked)
  moves = moves and not stands_in_line(name, blocked)
  if moves then
    if since_ms == 0 then since_ms = now_ms end
    kept_until = 2 * now_ms - since_ms
  end
  if rated_ms then kept_until = math.max(kept_until, now_ms + rated_ms + CALL_MS) end
  if moves or rated_ms then
    redis.call('HSET', KEYS[3], 's:' .. name,
      table.concat({place, text(since_ms), text(kept_until), alive_until, channel, owner}, '|'))
  end
  local life = math.min(kept_until, tonumber(alive_until)) - now_ms
  local in_order = life > 0
  for at = 1, pools do
    use(at)
    local passes_on = at ~= blocked and stands_in_line(name, at)
    if passes_on then leave_line(slot_of(name, at), SEVERAL_HERE) end
    in_order = in_order and found[at]
    if not in_order then
      passes_on = take_back(name, at) or passes_on
    elseif found[at] == 'kept' and not rated_ms then
      redis.call('ZADD', slots, 'XX', text(now_ms + life), slot_of(name, at))
    elseif moves or rated_ms then
      take_back(name, at)  -- of what has a rate, the next start is kept then, where others have begun since
      take_one(name, at, owner_of(name, owner), life, -1, nil, true)
    end
    if passes_on then serve('') end
  end
  if parks then stands_alone(name) end
  use(blocked)
  local record = {partition, place, text(weight), alive_until, text(lease_ms), text(cap_ms), channel, owner}
  if parks then
    record = {partition, place, text(weight), how_to_ask()}
    redis.call('HSET', state, 'name', ARGV[3 * pools + 3 + blocked], 'wake', ARGV[4 * pools + 4])
    keep_key(state, ROOM_MS)
  end
  redis.call('HSET', state, 'w:' .. slot_of(name, blocked), table.concat(record, '|'))
  stand(SEVERAL_HERE, partition, place, member(SEVERAL_HERE, partition, place, weight, slot_of(name, blocked)),
    math.min(ROOM_MS, alive_until - now_ms), next_place())
end

-- Has the head of the queue ask again, unless it asks just now: no release tells when a rate allows the next start.
local function tell_of_rate(name, run, blocked, rated_ms)
  if run or name == token then
    look_rated_ms = rated_ms
  elseif parks then
    use(blocked)
    call_lane(SEVERAL_HERE)
  else
    redis.call('PUBLISH', string.match(queued(name), '^%x+|%d+|%d+|%d+|([^|]*)|'), name .. ' ')
  end
end

local function hears(channel)
  if deaf[channel] == nil then deaf[channel] = redis.call('PUBSUB', 'NUMSUB', channel)[2] == 0 end
  return not deaf[channel]
end

-- Gives the head of the queue its slots, and the next one, up to one for whom there are not all yet: it waits for one of
-- them in its pool's line. A message has them only if a worker asks, by the token `run`, and at most one.
-- Returns the number of that pool (nil: nobody waits); what `token` has got, if it has; and the message, and its place.
local function advance(run)
  local from, fences, lives, message, stood = '[' .. QUEUED .. queue .. '|', nil, nil, nil, nil
  while true do
    local head = redis.call('ZRANGEBYLEX', KEYS[2], from, '(' .. QUEUED .. queue .. '|\255', 'LIMIT', 0, 1)[1]
    if not head then return nil, fences, lives, message, stood end
    local place, name = string.match(head, '([^|]*)|([^|]*)$')
    local alive_until, channel, owner = string.match(queued(name, place) or '', '^%x+|%d+|%d+|(%d+)|([^|]*)|(.*)$')
    if not alive_until or tonumber(alive_until) <= now_ms then
      redis.call('ZREM', KEYS[2], head)
      redis.call('HDEL', KEYS[3], 's:' .. name)
    elseif not parks and name ~= token and not hears(channel) then
      from = '(' .. head  -- its process does not listen just now: it keeps its place, and is passed over
    else
      local found, blocked, stands, rated_ms = {}, nil, nil, nil
      for at = 1, pools do
        found[at] = ready(name, at)
        if stands_in_line(name, at) then stands = at end
        if not found[at] and (not blocked or stands == at) then blocked = at end
      end
      if not blocked then blocked, rated_ms = rated(found) end
      if blocked or (parks and not run) then
        wait_at(name, place, blocked or stands or 1, found, rated_ms)
        if not blocked then serve('') end  -- which calls a worker
        if rated_ms then tell_of_rate(name, run, blocked, rated_ms) end
        return blocked or stands or 1, fences, lives, message, stood
      end
      owner = owner_of(name, owner)
      leave_queue(name, place)
      local given, last = take_all(name, owner, run)
      if parks then
        redis.call('HDEL', KEYS[3], 'q:' .. queue)
        fences, lives, message, stood, run = given, last, name, place, nil
      elseif name == token then
        fences, lives = given, last
      else  -- after the first write, which a server that is out of memory or a replica refuses
        for at = 1, pools do last[at] = text(last[at]) end
        local slots_given = table.concat(given, ',') .. ' ' .. table.concat(last, ',')
        redis.call('PUBLISH', channel, name .. ' ' .. slots_given .. ' ' .. text(now_ms))
      end
    end
  end
end

-- Takes notice of a declaration of each pool, in ARGV from `from` on; returns the sizes, what was declared before, and
-- whether nobody waits and all pools have what is asked of them.
local function declare_all(from)
  local sizes, before, free = {}, {}, true
  for at = 1, pools do
    use(at)
    before[at] = declare(ARGV[from + 2 * at - 2], ARGV[from + 2 * at - 1])
    sizes[at], anew[at] = max, declared_anew
    free = free and redis.call('ZCARD', line) == 0 and room() >= weight and left_of(partition) >= weight
  end
  return sizes, before, free
end

-- Gives `name` slots of all pools now, if it need not wait; else returns the number of a pool that is full, too.
local function take_now(name, owner)
  local blocked
  for at = 1, pools do
    if not ready(name, at) then blocked = blocked or at end
  end
  if blocked then return blocked end
  return nil, take_all(name, owner)
end

local function enqueue(name, place, ms)
  use(1)
  redis.call('ZADD', line, 0, QUEUED .. queue .. '|' .. place .. '|' .. name)
  keep_key(line, ms)
end

local function ahead_of(name, place)
  local first = QUEUED .. queue .. '|'
  return redis.call('ZLEXCOUNT', KEYS[2], '[' .. first, '(' .. first .. place .. '|')
end

-- Hands on what is free, where somebody waits.
local function serve_all()
  for at = 1, pools do
    use(at)
    if redis.call('ZCARD', line) > 0 then serve('') end
  end
end
