-- Takes a slot for a message, or parks the message in its lane.
-- Safe to repeat: a token that has a slot keeps it, and a message that is parked or taken is not parked again.
--
-- KEYS  slots, line, state, claims
-- ARGV  1 token of this run   2 owner   3 declaration, as in pool_acquire   4 first (1: its first call)
--       5 lease_ms   6 cap_ms (-1: none)   7 lane   8 digest of the message   9 message   10 name of the pool
--       11 beginning of the lanes' channels
-- Returns  {1, fence, life_ms, max, declared_before}   the token has a slot; nothing is parked
--          {0, place in its lane from 0, 0, max, declared_before, now_ms}   the message is parked, or was already
-- include: lib_admit

local lane, digest = ARGV[7], ARGV[8]
local place = string.match(redis.call('HGET', state, 'm:' .. digest) or '', '^(%d+)|')
if not place then
  local admitted = admit()
  if admitted then return admitted end
  place = next_place()
  redis.call('HSET', state, 'name', ARGV[10], 'wake', ARGV[11],
    'm:' .. digest, place .. '|' .. lane .. '|' .. ARGV[6] .. '|' .. #owner .. '|' .. owner .. ARGV[9])
  redis.call('ZADD', line, 0, member(lane, place, digest))
  keep_key(line, ROOM_MS)
  keep_key(state, ROOM_MS)
  -- No release tells when a rate allows the next start: who serves an empty lane's first message has to ask.
  if interval_us and redis.call('ZLEXCOUNT', line, '[' .. lane .. '|', '(' .. lane .. '|\255') == 1 then
    redis.call('PUBLISH', ARGV[11] .. lane, ARGV[10])
  end
end
return {0, redis.call('ZLEXCOUNT', line, '[' .. lane .. '|', '(' .. member(lane, place, digest)), 0, max, declared_before, now_ms}
