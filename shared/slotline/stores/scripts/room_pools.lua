-- Lists the pools that may have messages parked in a lane, and forgets one that has none.
--
-- KEYS  index of the lane
-- ARGV  1 name of a pool that had none just now ('': none); one noted within the last hour stays
-- Returns  {name, ...}
local clock = redis.call('TIME')
local noted = ARGV[1] ~= '' and tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0)
if noted and noted < clock[1] * 1000 - 3600000 then redis.call('ZREM', KEYS[1], ARGV[1]) end
if ARGV[1] ~= '' then return {} end
return redis.call('ZRANGE', KEYS[1], 0, -1)
