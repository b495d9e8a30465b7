-- Marks holders that are to end: the one that is named; or, for one who waits in line, those that have held their slots
-- longest, as many as it needs: in its partition, if that has all that it may have, else in all.
-- Their slots count until they are released or their leases end. Their processes hear of it now, and at their renewals.
-- Safe to repeat: a holder is marked once, and no more of them are than those who wait need; a request that has marked
-- some marks nobody else, though they may have ended and others wait by now.
--
-- KEYS  slots, line, state, claims, ring
-- ARGV  1 token of the holder ('': for one who waits)   2 channel on which the processes of holders listen
--       3 what the one who waits weighs   4 its partition ('': none)
--       5 the fence of the holder that is named ('': whoever the store knows to have the slot)   6 id of the request
-- Returns  {0, the holders that are marked, the longest first, as they are told: "token fence", ...}
--          {ms for which a slot may only rest, see note_impatience}   nobody is marked; ask again
-- include: lib_pool
-- include: lib_line

local COUNTED, REMEMBERED = 1000, 100
local token, weight, partition, id = ARGV[1], tonumber(ARGV[3]), ARGV[4], ARGV[6]
tell_time()
drop_expired()

local marked = {0}
local function mark(holder, fence)
  local told = holder .. ' ' .. fence
  redis.call('HSET', state, 'e:' .. holder, text(now_ms) .. '|' .. fence)
  redis.call('PUBLISH', ARGV[2], told)
  marked[#marked + 1] = told
end

-- A slot passes from one holder to the next before the store knows: the fence says which of them is meant.
if token ~= '' then
  local known = string.match(redis.call('HGET', state, 'h:' .. token) or '', '^%d+') or '0'
  local meant = ARGV[5] == '' and known or ARGV[5]
  if redis.call('ZSCORE', slots, token) and tonumber(meant) >= tonumber(known) then mark(token, meant) end
  return marked
end
if not know() or paused then return marked end
local asked, recent = redis.call('HGET', state, 'evictions'), {}
for _, one in ipairs(asked and cmsgpack.unpack(asked) or {}) do
  if one[1] == id then return one[3] end
  if one[2] > now_ms - REPEATED_MS then recent[#recent + 1] = one end
end
local resting_ms = note_impatience()
local free = max - redis.call('ZCARD', slots) - extra
-- Its rate is what it waits for.
if (starts()) == 0 and free >= weight and left_of(partition) >= weight then return marked end
if redis.call('ZCARD', line) == 0 then return marked end
if resting_ms > 0 then return {resting_ms} end  -- before it looks through all holders

local staying, ending, ends = {}, 0, {}
for _, holder in ipairs(redis.call('ZRANGE', slots, 0, -1)) do
  local known = redis.call('HMGET', state, 'h:' .. holder, 'e:' .. holder, 'k:' .. holder)
  local since, weighs, where = string.match(known[1] or '', '^(%d+)|%d+|%d+|(%d+)|([^|]*)|')
  if known[2] and since then
    ending, ends[where] = ending + weighs, (ends[where] or 0) + weighs
  elseif since and not known[3] then
    staying[#staying + 1] = {token = holder, fence = since, since = tonumber(since), weight = tonumber(weighs), partition = where}
  end
end
table.sort(staying, function(one, other) return one.since < other.since end)

-- What a partition may have once those who are to end have ended.
local function may_have(where) return left_of(where) + (ends[where] or 0) end

-- Adds to `sum` what those weigh who wait in a lane for a partition, up to `most`; not those whom a limit that was made
-- smaller leaves no chance.
local function with(sum, lane, where, most)
  local group, visited = lane .. '|' .. where .. '|', 0
  local from, till = '[' .. group, '(' .. group .. '\255'
  while sum < most and visited < COUNTED do
    local found = redis.call('ZRANGEBYLEX', line, from, till, 'LIMIT', 0, 100)
    if #found == 0 then break end
    for _, waits in ipairs(found) do
      local weighs = tonumber(string.match(waits, '^[^|]*|[^|]*|%x+|(%d*)|')) or 1
      if weighs <= max and not (share and where ~= '' and weighs > share) then sum = sum + weighs end
    end
    from, visited = '(' .. found[#found], visited + #found
  end
  return math.min(sum, most)
end

local function partition_lacks()
  local enough, sum = math.max(0, may_have(partition)), 0
  local _, lanes = turn_of(partition)
  if enough >= COUNTED then return false end
  for lane in string.gmatch(lanes or '', '%S+') do sum = with(sum, lane, partition, enough + 1) end
  return sum > enough
end

local function pool_lacks()
  local enough, sum, waits_in, from = math.max(0, free + ending), 0, {}, '[+'
  if enough >= COUNTED then return false end
  while sum <= enough do
    local head = redis.call('ZRANGEBYLEX', line, from, '+', 'LIMIT', 0, 1)[1]
    if not head then return false end
    local lane, where = string.match(head, '^([^|]*)|([^|]*)|')
    local before = waits_in[where] or 0
    waits_in[where] = with(before, lane, where, math.min(enough + 1, math.max(0, may_have(where))))
    sum = sum + waits_in[where] - before
    from = '(' .. lane .. '|' .. where .. '|\255'
  end
  return true
end

local freed = 0
local function mark_longest(only)
  for at, holder in ipairs(staying) do
    if not only or holder.partition == only then
      mark(holder.token, holder.fence)
      table.remove(staying, at)
      freed, ending = freed + holder.weight, ending + holder.weight
      ends[holder.partition] = (ends[holder.partition] or 0) + holder.weight
      return true
    end
  end
end

while freed < weight and partition_lacks() and mark_longest(partition) do end
while freed < weight and pool_lacks() and mark_longest() do end
if #marked > 1 then
  if #recent == REMEMBERED then table.remove(recent, 1) end
  recent[#recent + 1] = {id, now_ms, marked}
  redis.call('HSET', state, 'evictions', cmsgpack.pack(recent))
elseif #recent == 0 and asked then
  redis.call('HDEL', state, 'evictions')
end
return marked
