-- Takes the longest parked message of a queue, together with a slot of each of its pools.
-- Safe to repeat with the same token: it answers with the message that the token has taken.
--
-- KEYS  of all pools, see lib_several
-- ARGV  as in lib_several, for a parked message; the token is that of the run, and lease_ms that of the claim, too
-- Returns  {1, {fence, ...}, {life_ms, ...}, digest, owner, message, its place, number of the pool at which the next one
--           waits (0: none does)}
--          {0, number of the pool at which the first one waits (0: none does), ms after which to look again (-1: no
--           reason to)}
-- include: lib_several

tell_time()
local mine = slot_of(token, 1)
local fences, lives = held_by(token)
local digest = redis.call('HGET', KEYS[3], 'x:' .. mine)
local waits_at, place
if fences and digest then
  place = string.match(redis.call('HGET', KEYS[3], 'o:' .. digest) or '', '^[^|]*|[^|]*|[^|]*|(%x+)|')
else
  use(1)
  take_back_lapsed()
  waits_at, fences, lives, digest, place = advance(token)
  if digest then
    use(1)
    claim(mine, digest, QUEUED .. queue .. '|' .. place .. '|' .. how_to_ask(), lease_ms)
  end
  serve_all()
end
if digest then
  use(1)
  local _, owner, message = parked(digest)
  return {1, fences, lives, digest, owner, message, place, waits_at or 0}
end
if not waits_at then return {0, 0, -1} end
use(waits_at)
know()
return {0, waits_at, look_rated_ms or look_again_ms(0)}
