-- Whose turn it is: the partitions that wait, in the order in which they are served. Part of lib_line.
--
-- A partition enters behind those that wait already, and goes behind them again with each slot that it gets. What waits
-- without a partition is one of them, too. Nothing here walks over all partitions but what restores a lost ring.

local STOPPED, NO_TURN = '~', '0'

local function ring_member(lane, turn, partition) return lane .. '|' .. turn .. '|' .. partition end

-- The turn of a partition that waits, and the lanes that it waits in; nil for one that does not.
local function turn_of(partition)
  return string.match(redis.call('HGET', state, 't:' .. partition) or '', '^(%x+)|(.*)$')
end

local function first_in(lane, partition)
  local from = lane .. '|' .. partition .. '|'
  return redis.call('ZRANGEBYLEX', line, '[' .. from, '(' .. from .. '\255', 'LIMIT', 0, 1)[1]
end

-- Notes that somebody stands in line; a partition that is new there has the turn `first`.
local function line_up(lane, partition, first)
  local turn, lanes = turn_of(partition)
  if not turn then turn, lanes = first, ' ' end
  if not string.find(lanes, ' ' .. lane .. ' ', 1, true) then
    redis.call('HSET', state, 't:' .. partition, turn .. '|' .. lanes .. lane .. ' ')
  end
  if turn ~= NO_TURN then redis.call('ZADD', ring, 0, ring_member(lane, turn, partition)) end
end

-- Notes that somebody has left the line.
local function step_out(lane, partition)
  if first_in(lane, partition) then return end
  local turn, lanes = turn_of(partition)
  if not turn then return end
  redis.call('ZREM', ring, ring_member(lane, turn, partition))
  local from, till = string.find(lanes, ' ' .. lane .. ' ', 1, true)
  if from then lanes = string.sub(lanes, 1, from) .. string.sub(lanes, till + 1) end
  if lanes ~= ' ' then
    redis.call('HSET', state, 't:' .. partition, turn .. '|' .. lanes)
  else
    redis.call('HDEL', state, 't:' .. partition)
    redis.call('ZREM', ring, ring_member(STOPPED, NO_TURN, partition))
  end
end

-- What is new comes in before the old goes out: a key that was empty in between would have lost its TTL.
local function set_turn(partition, turn, lanes, new)
  for lane in string.gmatch(lanes, '%S+') do
    if new ~= NO_TURN then redis.call('ZADD', ring, 0, ring_member(lane, new, partition)) end
    if turn ~= NO_TURN then redis.call('ZREM', ring, ring_member(lane, turn, partition)) end
  end
  redis.call('HSET', state, 't:' .. partition, new .. '|' .. lanes)
end

-- A partition that was served goes behind the others.
local function next_turn(partition)
  local turn, lanes = turn_of(partition)
  if turn and turn ~= NO_TURN then set_turn(partition, turn, lanes, next_place()) end
end

-- Takes a partition that has all that it may have out of the ring, until one of its holders leaves.
local function stop(partition)
  local turn, lanes = turn_of(partition)
  if not turn or turn == NO_TURN then return end
  redis.call('ZADD', ring, 0, ring_member(STOPPED, NO_TURN, partition))
  set_turn(partition, turn, lanes, NO_TURN)
end

local function go_on(partition)
  local turn, lanes = turn_of(partition)
  if turn ~= NO_TURN then return end
  if redis.call('EXISTS', line) == 0 then  -- nobody stands in it, or all are dead: a ring would have no TTL
    redis.call('HDEL', state, 't:' .. partition)
    redis.call('ZREM', ring, ring_member(STOPPED, NO_TURN, partition))
    return
  end
  if not clock then tell_time() end
  set_turn(partition, turn, lanes, next_place())
  redis.call('ZREM', ring, ring_member(STOPPED, NO_TURN, partition))
end

-- Makes the ring anew from the line: the pool has other limits now, or the server has evicted the ring, or the state.
local function restore_ring()
  redis.call('DEL', ring)
  local from = '[+'  -- behind the queues of lib_several
  while true do
    local head = redis.call('ZRANGEBYLEX', line, from, '+', 'LIMIT', 0, 1)[1]
    if not head then break end
    local lane, partition, place = string.match(head, '^([^|]*)|([^|]*)|(%x+)|')
    if turn_of(partition) == NO_TURN then redis.call('HDEL', state, 't:' .. partition) end
    line_up(lane, partition, place)
    from = '(' .. lane .. '|' .. partition .. '|\255'
  end
  keep_key(ring, ROOM_MS)
end
