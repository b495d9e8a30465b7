-- Takes a slot for a message, or parks the message in its lane.
-- Safe to repeat: a token that has a slot keeps it; a message that is parked or taken is not parked again, nor is one
-- that this token has parked and that has been run since.
--
-- KEYS  slots, line, state, claims, ring
-- ARGV  1 token of this run   2 owner   3 declaration, as in pool_acquire   4 first (1: its first call)
--       5 lease_ms   6 cap_ms (-1: none)   7 weight   8 partition ('': none)
--       9 lane   10 digest of the message   11 message   12 name of the pool   13 beginning of the lanes' channels
-- Returns  {1, fence, life_ms, max, declared_before, 1 if the pool is roomy, see lib_plain, else 0}
--           the token has a slot; nothing is parked
--          {0, place from 0 in its lane and partition, 0, max, declared_before, now_ms}   the message is parked; place 0
--           where it was already
-- include: lib_plain

local lane, digest = ARGV[9], ARGV[10]
local known_here = redis.call('HEXISTS', KEYS[3], 'm:' .. digest) == 1 or redis.call('ZSCORE', KEYS[4], '!' .. ARGV[1])
local plain = not known_here and take_plainly()
if plain then return plain end
-- include: lib_admit

if known_here then return {0, 0, 0, max, declared_before, now_ms} end
local admitted = admit_at_once()
if admitted then return admitted end
-- include: lib_admit_in_turn
admitted = admit_in_turn()
if admitted then return admitted end

local place = next_place()
local stands = member(lane, partition, place, weight, digest)
redis.call('HSET', state, 'name', ARGV[12], 'wake', ARGV[13],
  'm:' .. digest, ARGV[6] .. '|' .. token .. '|' .. #owner .. '|' .. owner .. ARGV[11])
stand(lane, partition, place, stands, ROOM_MS)
keep_key(state, ROOM_MS)
local ahead = redis.call('ZLEXCOUNT', line, '[' .. lane .. '|' .. partition .. '|', '(' .. stands)
-- No release tells when a rate allows the next start: who serves an empty lane's first message has to ask.
if interval_us and ahead == 0 and redis.call('ZLEXCOUNT', line, '[' .. lane .. '|', '(' .. lane .. '|\255') == 1 then
  redis.call('PUBLISH', ARGV[13] .. lane, ARGV[12])
end
return {0, ahead, 0, max, declared_before, now_ms}
