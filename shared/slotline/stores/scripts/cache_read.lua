-- Reads a value and how long it has to live.
--
-- KEYS  entry
-- Returns  {value, left_ms (-1: no expiry)}, or nil

local value = redis.call('GET', KEYS[1])
if not value then return false end
return {value, redis.call('PTTL', KEYS[1])}
