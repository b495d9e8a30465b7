-- Lists the pools that may have messages parked in a lane, or forgets one that has none.
--
-- KEYS  index of the lane
-- ARGV  1 name of a pool that had none just now ('': list); one noted within the last hour stays
-- Returns  {name, 1 if it was noted longer than an hour ago, ...}
local clock = redis.call('TIME')
local long_ago = clock[1] * 1000 - 3600000
if ARGV[1] ~= '' then
  local noted = redis.call('ZSCORE', KEYS[1], ARGV[1])
  if noted and tonumber(noted) < long_ago then redis.call('ZREM', KEYS[1], ARGV[1]) end
  return {}
end
local listed = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for at = 2, #listed, 2 do listed[at] = tonumber(listed[at]) < long_ago and 1 or 0 end
return listed
