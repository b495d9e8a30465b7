-- Tells who creates a value, and for which others that one waits.
-- What an earlier claim has noted does not count.
--
-- KEYS  claim, needs (see cache_need)
-- Returns  {token ('': nobody creates it), entry, entry, ...}

local holder = redis.call('GET', KEYS[1]) or ''
local found = {holder}
local noted = redis.call('HGETALL', KEYS[2])
for at = 1, #noted, 2 do
  if noted[at + 1] == holder then found[#found + 1] = noted[at] end
end
return found
