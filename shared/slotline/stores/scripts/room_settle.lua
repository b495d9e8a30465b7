-- Ends a taken message: done, or given back to its old place at the head of its lane.
-- Safe to repeat. A message that another run has taken meanwhile is left to that run.
--
-- KEYS  slots, line, state, claims
-- ARGV  1 digest   2 token of its run   3 what becomes of it: done | back
-- Returns  1 if the message was the token's, or nobody's; else 0
-- include: lib_pool

local digest, taker = ARGV[1], redis.call('HGET', state, 'o:' .. ARGV[1])
local place, lane = string.match(redis.call('HGET', state, 'p:' .. digest) or '', '^(%d+)|([^|]*)|')
if not place or (taker and taker ~= ARGV[2]) then return 0 end
redis.call('ZREM', claims, digest)
redis.call('HDEL', state, 'o:' .. digest)
if ARGV[3] == 'done' then
  redis.call('HDEL', state, 'p:' .. digest, 'm:' .. digest)
  redis.call('ZREM', line, member(lane, place, digest))
else
  redis.call('ZADD', line, 0, member(lane, place, digest))
  tell_time()
  serve('')
end
return 1
