-- Gives a taken message back, with its slots, to its old place at the head of its queue.
-- Safe to repeat. A message that is no longer the token's, its claim having lapsed, is left as it is.
--
-- KEYS  of all pools, see lib_several
-- ARGV  as in lib_several, for a parked message; then its digest ('': of what the token has taken, if anything)
-- Returns  1 if the message was the token's; 0 if it had passed on, or was given back already
-- include: lib_several

tell_time()
local mine, digest = slot_of(token, 1), ARGV[4 * pools + 5]
if digest == '' then digest = redis.call('HGET', KEYS[3], 'x:' .. mine) or '' end
for at = 1, pools do
  use(at)
  let_go(slot_of(token, at))
end
local taker, place = string.match(redis.call('HGET', KEYS[3], 'o:' .. digest) or '', '^([^|]*)|[^|]*|[^|]*|(%x+)|')
if taker == mine then
  use(1)
  redis.call('ZREM', claims, digest)
  redis.call('HDEL', state, 'o:' .. digest)
  enqueue(digest, place, ROOM_MS)
end
advance()
serve_all()
return taker == mine and 1 or 0
