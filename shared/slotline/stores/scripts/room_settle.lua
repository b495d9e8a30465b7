-- Ends a taken message: done; or given back, with its slot, to its old place at the head of its lane.
-- Safe to repeat. A message that is no longer the token's, its claim having lapsed, is left as it is: it runs again.
--
-- KEYS  slots, line, state, claims, ring
-- ARGV  1 digest ('': of what the token has taken, if anything)   2 token of its run
--       3 what becomes of it: done (its slot is released by itself) | back
-- Returns  1 if the message was the token's; 0 if it had passed on, or was settled already
-- include: lib_pool
-- include: lib_line

local token, back = ARGV[2], ARGV[3] == 'back'
local digest = ARGV[1] ~= '' and ARGV[1] or redis.call('HGET', state, 'x:' .. token) or ''
tell_time()
-- In one step with the message, so that no fault leaves the slot behind, and no younger message gets it.
local had = back and let_go(token) or 0
local taker, stood = string.match(redis.call('HGET', state, 'o:' .. digest) or '', '^([^|]*)|(.*)$')
if taker ~= token then
  if had == 1 then serve('') end
  return 0
end
local lane, partition, place = string.match(stood, '^([^|]*)|([^|]*)|(%x+)|')
redis.call('ZREM', claims, digest)
redis.call('HDEL', state, 'o:' .. digest)
if back then
  stand(lane, partition, place, stood .. '|' .. digest, ROOM_MS)
  serve('')
  return 1
end
redis.call('ZREMRANGEBYSCORE', claims, text(-now_ms), '(0')
-- The call that parked it just now may still be repeated: its answer was lost, and the store asks again.
if now_ms - tonumber(place, 16) / 1000 < REPEATED_MS and redis.call('ZCOUNT', claims, '-inf', '(0') < MARKS then
  local parked_by = string.match(redis.call('HGET', state, 'm:' .. digest) or '', '^[^|]*|([^|]*)|')
  if parked_by then redis.call('ZADD', claims, text(-now_ms - REPEATED_MS), '!' .. parked_by) end
  keep_key(claims, REPEATED_MS)
end
redis.call('HDEL', state, 'm:' .. digest)
if redis.call('HEXISTS', state, 'fleeting') == 1 then remove_if_empty() end
return 1
