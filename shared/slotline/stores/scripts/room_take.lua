-- Takes the longest parked message of the lanes that a worker serves, together with a slot for it.
-- Safe to repeat with the same token: it answers with the message that the token has taken.
--
-- KEYS  slots, line, state, claims, ring
-- ARGV  1 token of the run   2 lease_ms, of the slot and of the claim   3, 4, ... lanes
-- Returns  {1, fence, life_ms, digest, lane, owner, cap_ms, message, its place}
--          {0, messages that wait in these lanes, ms after which to look again (-1: no reason to)}
--          {2, queue, cap_ms, weight and partition in each of its pools, their names}   the longest is one that wants
--           slots of other pools, too: several_take asks for it
-- include: lib_pool
-- include: lib_line
-- include: lib_room

local token, lease_ms = ARGV[1], tonumber(ARGV[2])
tell_time()

local mine_already = redis.call('HGET', state, 'x:' .. token)
local until_ms = mine_already and redis.call('ZSCORE', slots, token)
if until_ms and tonumber(until_ms) > now_ms then
  local cap_ms, owner, message = parked(mine_already)
  local lane, place = string.match(redis.call('HGET', state, 'o:' .. mine_already) or '', '^[^|]*|([^|]*)|[^|]*|(%x+)|')
  local left, given = prolong(token, lease_ms)
  redis.call('ZADD', claims, 'XX', text(now_ms + lease_ms), mine_already)
  return {1, given, left, mine_already, lane, owner, cap_ms, message, place}
end

take_back_lapsed()
local mine = {}
for at = 3, #ARGV do mine[ARGV[at]], mine['+' .. ARGV[at]] = true, true end
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
if head then
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
  return {1, fence, life, digest, lane, owner, cap_ms, message, place}
end

local waiting, claimed = 0, redis.call('ZRANGEBYSCORE', claims, 0, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
local function waiting_in(lane) return redis.call('ZLEXCOUNT', line, '[' .. lane .. '|', '(' .. lane .. '|\255') end
for lane in pairs(mine) do waiting = waiting + waiting_in(lane) end
if waiting == 0 then
  for at = 3, #ARGV do waiting = waiting + waiting_in('!' .. ARGV[at]) end
end
local next_ms = tonumber(claimed)
if waiting > 0 and not paused then
  -- A worker that asks has capacity: the next free slot is kept for its call again.
  for lane in pairs(mine) do redis.call('HDEL', state, 'c:' .. lane) end
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
return {0, waiting, next_ms and math.max(1, next_ms - now_ms) or -1}
