-- Looks for those who wait and whose owner's name has a text in it, a part of the line at a time; changes nothing.
--
-- KEYS  slots, line, state, claims, ring
-- ARGV  1 the text   2 where to go on ('-': at the beginning)   3 most to look at
-- Returns  {where to go on ('': that was all), {token or digest, record as lib_waiting says, how many of its lane and
--          partition are before it, ...}}
-- include: lib_pool
-- include: lib_waiting

local BYTES = 4 * 1024 * 1024  -- of messages, which have their owners in them
local read, found, next_from = 0, {}, ''
local members = redis.call('ZRANGEBYLEX', line, ARGV[2], '+', 'LIMIT', 0, ARGV[3])
for at, member in ipairs(members) do
  local lane, partition, place, name = read_member(member)
  if string.sub(lane, 1, 1) ~= '+' then
    local owner, _, bytes = owner_of_member(lane, name)
    read = read + (bytes or 0)
    if string.find(owner, ARGV[1], 1, true) then
      local token, record = told_of(member)
      local first = '[' .. lane .. '|' .. partition .. '|'
      found[#found + 1] = token
      found[#found + 1] = record
      found[#found + 1] = redis.call('ZLEXCOUNT', line, first, '(' .. member)
    end
  end
  if read > BYTES or at == tonumber(ARGV[3]) then
    next_from = '(' .. member
    break
  end
end
return {next_from, found}
