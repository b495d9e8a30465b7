-- Takes a slot of each of several pools, or a place in line, or nothing.
-- Safe to repeat with the same token: it answers with the slots or the place that the token already has.
--
-- KEYS  of all pools, see lib_several
-- ARGV  as in lib_several, then for each pool: declaration, as in pool_acquire, and first (1: its first call); then
--       owner, patience_ms (0: do not wait), channel
-- Returns  {1, {max, ...}, {declared_before, ...}, {fence, ...}, {life_ms, ...}}   the token has all slots
--          {0, {max, ...}, {declared_before, ...}, place from 0 in its queue, ms after which to look again (-1: no
--           reason to), now_ms, number of a pool that is full}   the token stands in line
--          {-1, {max, ...}, {declared_before, ...}, number of a pool that is full, owners of at most 100 of its slots, ms
--           until its rate allows a start (0: it does), ms for which one of them may only rest, see note_impatience}
-- include: lib_several

local owner, patience_ms, channel = unpack(ARGV, 5 * pools + 4)
patience_ms = tonumber(patience_ms)
tell_time()
local sizes, before, free = declare_all(3 * pools + 4)
local resting_ms = {}
for at = 1, patience_ms == 0 and pools or 0 do
  use(at)
  know()
  resting_ms[at] = note_impatience()
end
local fences, lives = held_by(token)
local place = string.match(queued(token) or '', '^(%x+)|')
if fences and not place then return {1, sizes, before, fences, lives} end
if free then
  fences, lives = take_all(token, owner)
  return {1, sizes, before, fences, lives}
end

if patience_ms > 0 then
  use(1)
  place = place or next_place()
  local moves = string.match(queued(token) or '', '^%x+|(%d+|%d+)|') or '0|0'
  redis.call('HSET', state, 's:' .. token, table.concat({place, moves, text(now_ms + patience_ms), channel, owner}, '|'))
  enqueue(token, place, patience_ms)
end
local blocked
blocked, fences, lives = advance()
if not fences and not blocked then blocked, fences, lives = take_now(token, owner) end
if fences then return {1, sizes, before, fences, lives} end

use(blocked)
know()
if patience_ms == 0 then
  local _, rated_ms = starts()
  return {-1, sizes, before, blocked, owners(), rated_ms, resting_ms[blocked]}
end
local ahead = ahead_of(token, place)
local look_ms, kept_ms = look_rated_ms or look_again_ms(ahead), string.match(queued(token), '^%x+|%d+|(%d+)|') - now_ms
if kept_ms > 0 then look_ms = look_ms < 0 and kept_ms or math.min(look_ms, kept_ms) end
return {0, sizes, before, ahead, look_ms, now_ms, blocked}
