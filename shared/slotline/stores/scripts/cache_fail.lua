-- Gives the claim back without a value and wakes those who wait.
-- Repeated, it answers 0 and changes nothing.
--
-- KEYS  entry, claim, waiters
-- ARGV  1 token   2 payload for those who wait ('a': try yourselves, 'e...': the creator's exception)
--       3 rest_ms (refreshing an aged value rests so long; 0: not at all)
-- Returns  1 given back, 0 the token has not the claim
-- include: cache_lib

if redis.call('GET', claim) ~= ARGV[1] then return 0 end
if tonumber(ARGV[3]) > 0 then
  redis.call('SET', claim, '~', 'PX', ARGV[3])
else
  redis.call('DEL', claim)
end
ring(ARGV[2])
return 1
