-- Takes a slot for a message, or parks the message in its lane.
-- Safe to repeat: a token that has a slot keeps it; a message that is parked or taken is not parked again, nor is one
-- that this token has parked and that has been run since.
--
-- KEYS  slots, line, state, claims
-- ARGV  1 token of this run   2 owner   3 declaration, as in pool_acquire   4 first (1: its first call)
--       5 lease_ms   6 cap_ms (-1: none)   7 lane   8 digest of the message   9 message   10 name of the pool
--       11 beginning of the lanes' channels
-- Returns  {1, fence, life_ms, max, declared_before}   the token has a slot; nothing is parked
--          {0, place in its lane from 0, 0, max, declared_before, now_ms}   the message is parked; place 0 where it was already
-- include: lib_admit

local lane, digest = ARGV[7], ARGV[8]
if redis.call('HEXISTS', state, 'm:' .. digest) == 1 or redis.call('ZSCORE', claims, '!' .. token) then
  return {0, 0, 0, max, declared_before, now_ms}
end
local admitted = admit()
if admitted then return admitted end
local stands = member(lane, next_place(), digest)
redis.call('HSET', state, 'name', ARGV[10], 'wake', ARGV[11],
  'm:' .. digest, ARGV[6] .. '|' .. token .. '|' .. #owner .. '|' .. owner .. ARGV[9])
redis.call('ZADD', line, 0, stands)
keep_key(line, ROOM_MS)
keep_key(state, ROOM_MS)
local ahead = redis.call('ZLEXCOUNT', line, '[' .. lane .. '|', '(' .. stands)
-- No release tells when a rate allows the next start: who serves an empty lane's first message has to ask.
if interval_us and ahead == 0 and redis.call('ZLEXCOUNT', line, '[' .. lane .. '|', '(' .. lane .. '|\255') == 1 then
  redis.call('PUBLISH', ARGV[11] .. lane, ARGV[10])
end
return {0, ahead, 0, max, declared_before, now_ms}
