-- Reads a value, or takes the right to create it, or a place among those who wait for it.
-- Safe to repeat with the same token: whoever has the claim has it still.
--
-- KEYS  entry, claim, waiters
-- ARGV  1 token   2 lease_ms   3 channel ('': do not wait)   4 aged_ms (a value with no more than that to live does
--       not count; 0: every value counts)
-- Returns  {1, value, left_ms (-1: no expiry)}   there is a value
--          {2}                                   the token has the claim
--          {0, left_ms of the claim}             somebody else creates it
-- include: cache_lib

local token, lease_ms, channel, aged_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])

local value = redis.call('GET', entry)
if value then
  local left = redis.call('PTTL', entry)
  if left < 0 or left > aged_ms then return {1, value, left} end
end

local holder = redis.call('GET', claim)
local free = not holder or holder == token or holder == '' or (holder == '~' and not value)
if free then
  redis.call('SET', claim, token, 'PX', lease_ms)
  redis.call('HDEL', waiters, token)
  return {2}
end

if channel ~= '' then
  redis.call('HSET', waiters, token, channel)
  if redis.call('PTTL', waiters) < 2 * lease_ms then redis.call('PEXPIRE', waiters, 2 * lease_ms) end
end
return {0, redis.call('PTTL', claim)}
