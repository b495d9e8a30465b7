-- Tells who waits, those who came first; changes nothing. Who wants slots of several pools is told of at the first of them.
--
-- KEYS  slots, line, state, claims, ring
-- ARGV  1 most to tell of
-- Returns  {token or digest, record, ...}, a record as lib_waiting says; its place is in microseconds, in hexadecimal
-- include: lib_pool
-- include: lib_waiting

local GROUPS = 1000  -- partitions, in all lanes, that are looked into
local most, found, from = tonumber(ARGV[1]), {}, '-'
for _ = 1, GROUPS do
  local head = redis.call('ZRANGEBYLEX', line, from, '+', 'LIMIT', 0, 1)[1]
  if not head then break end
  local lane, partition = read_member(head)
  local behind = lane .. '|' .. partition .. '|\255'
  if string.sub(lane, 1, 1) ~= '+' then
    for _, member in ipairs(redis.call('ZRANGEBYLEX', line, '[' .. head, '(' .. behind, 'LIMIT', 0, most)) do
      local _, _, place = read_member(member)
      found[#found + 1] = {place = place, member = member}
    end
  end
  from = '(' .. behind
end
table.sort(found, function(one, other) return one.place < other.place end)
local told = {}
for at = 1, math.min(most, #found) do
  local name, record = told_of(found[at].member)
  told[#told + 1] = name
  told[#told + 1] = record
end
return told
