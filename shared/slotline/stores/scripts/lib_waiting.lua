-- Who waits, for people; after lib_pool.

-- The lane, the partition and the place of a member of the line, and its token, or its digest.
local function read_member(member)
  local lane, partition, place, rest = string.match(member, '^([^|]*)|([^|]*)|(%x+)|(.*)$')
  return lane, partition, place, string.match(rest or '', '([^|]*)$'), tonumber(string.match(rest or '', '^(%d+)|')) or 1
end

-- The owner of a member, whether it is a parked message, and how many bytes were read for it then.
local function owner_of_member(lane, name)
  local of_one, of_several = lane == CALLERS, lane == '!' .. CALLERS
  if of_one then
    local record = redis.call('HGET', state, 'w:' .. name) or ''
    return string.match(record, '^[^|]*|%x+|%d+|%d+|%d+|%-?%d+|[^|]*|(.*)$') or '', false
  elseif of_several then
    return string.match(redis.call('HGET', state, 's:' .. name) or '', '^%x+|%d+|%d+|%d+|[^|]*|(.*)$') or '', false
  end
  local record = redis.call('HGET', state, 'm:' .. name) or ''
  local length, at = string.match(record, '^%-?%d+|[^|]*|(%d+)|()')
  return string.sub(record, at or 1, (at or 1) + (length or 0) - 1), true, #record
end

-- What is told of one who waits: "place|weight|partition|1 if it is a parked message, else 0|1 if it wants slots of other
-- pools, too, else 0|owner".
local function told_of(member)
  local lane, partition, place, name, weight = read_member(member)
  local owner, is_message = owner_of_member(lane, name)
  local several = string.sub(lane, 1, 1) == '!'
  local flags = (is_message and '1' or '0') .. '|' .. (several and '1' or '0')
  return name, table.concat({place, text(weight), several and '' or partition, flags, owner}, '|')
end
