-- Takes parked messages out of the line for one who removes them: without slots, under claims that put back what was not
-- removed by then. Callers keep their places; what is taken by a worker, and who wants slots of other pools, too, is left
-- alone: several_purge takes those.
-- Safe to repeat with the same token: it answers with what the token has taken.
--
-- KEYS  slots, line, state, claims, ring
-- ARGV  1 token   2 lease_ms of the claims   3 most messages   4 1: tell of them whole, at most 4 MiB, else 0
--       5 where to go on ('': at the beginning)   6 the place up to which they are taken ('': all that are here now)
-- Returns  {where to go on ('': that was all), the place as in 6, {digest, lane, owner, message (or ''), ...},
--           {of each queue of those who want slots of other pools, too: how they ask, as in room_take, ...}}
-- include: lib_pool
-- include: lib_line
-- include: lib_room
-- include: lib_purge

local BYTES, GROUPS = 4 * 1024 * 1024, 1000
local token, lease_ms, most, whole = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == '1'
tell_time()
local upto = ARGV[6] ~= '' and ARGV[6] or string.format('%013x',
  math.max(tonumber(redis.call('HGET', state, 'place') or '0', 16), clock[1] * 1000000 + clock[2]))
local from = ARGV[5] ~= '' and ARGV[5] or '(,'  -- behind the lanes of those who want several slots

local function queues()
  local asked, at = {}, '[!'
  while ARGV[5] == '' do
    local head = redis.call('ZRANGEBYLEX', line, at, '(!}', 'LIMIT', 0, 1)[1]
    if not head then break end
    local queue, digest = string.match(head, '^!([^|]*|[^|]*)|%x+|(.*)$')
    local known = string.match(redis.call('HGET', state, 'q:' .. queue) or '', '^[^|]*|(.*)$')
    if known then asked[#asked + 1] = cmsgpack.unpack(known) end
    at = '(!' .. queue .. '|\255'
  end
  return asked
end

take_back_lapsed()
local found = claimed_by(token)
if #found > 0 then
  from = ''
  for _, one in ipairs(found) do
    local behind = '(' .. one.stood .. '|' .. one.digest
    if behind > from then from = behind end
  end
else
  local read, full = 0, false
  for _ = 1, GROUPS do
    local head = not full and redis.call('ZRANGEBYLEX', line, from, '+', 'LIMIT', 0, 1)[1]
    if not head then break end
    local lane, partition = string.match(head, '^([^|]*)|([^|]*)|')
    local group = lane .. '|' .. partition .. '|'
    if lane == CALLERS then
      from = '(' .. CALLERS .. '}'
    else
      local members = redis.call('ZRANGEBYLEX', line, '[' .. head, '(' .. group .. upto .. '~', 'LIMIT', 0, most - #found)
      for _, stands in ipairs(members) do
        local stood, digest = string.match(stands, '^(.*)|([^|]*)$')
        redis.call('ZREM', line, stands)
        claim_unrun(token, digest, stood, lease_ms)
        found[#found + 1] = {digest = digest, stood = stood}
        from = '(' .. stands
        if whole then read = read + redis.call('HSTRLEN', state, 'm:' .. digest) end
        if #found == most or read > BYTES then
          full = true
          break
        end
      end
      if not full then from = '(' .. group .. '\255' end
      step_out(lane, partition)
      go_on(partition)  -- whoever is behind may need less
      redis.call('HDEL', state, 'c:' .. lane)
    end
  end
  if redis.call('ZCARD', line) > 0 then serve('') end
end
if #redis.call('ZRANGEBYLEX', line, from, '+', 'LIMIT', 0, 1) == 0 then from = '' end
return {from, upto, told_of_claimed(found, whole), queues()}
