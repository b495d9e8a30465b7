-- Removes a value that cannot be read, unless it was replaced meanwhile.
--
-- KEYS  entry
-- ARGV  1 SHA-1 of the value in hex
-- Returns  1 removed, 0 it is another

local value = redis.call('GET', KEYS[1])
if not value or redis.sha1hex(value) ~= ARGV[1] then return 0 end
return redis.call('UNLINK', KEYS[1])
