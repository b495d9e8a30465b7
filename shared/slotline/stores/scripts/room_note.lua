-- Notes in a lane's index that a pool may have messages parked in it.
--
-- KEYS  index of the lane (zset: name of a pool -> when it was last noted, ms)
-- ARGV  1 name of the pool   2 how long ago it counts as noted, in ms: one that soon has nothing is forgotten sooner
-- Returns  1
local clock = redis.call('TIME')
redis.call('ZADD', KEYS[1], string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000) - ARGV[2]), ARGV[1])
redis.call('PEXPIRE', KEYS[1], 60 * 24 * 3600 * 1000 + 60000)
return 1
