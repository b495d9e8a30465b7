-- Takes a slot of each of several pools for a message, or parks the message in their first pool.
-- Safe to repeat: see pool_park.
--
-- KEYS  of all pools, see lib_several
-- ARGV  as in lib_several, for a parked message; then for each pool: declaration, as in pool_acquire, and first (1: its
--       first call); then owner, digest, message
-- Returns  {1, {max, ...}, {declared_before, ...}, {fence, ...}, {life_ms, ...}}   the token has all slots
--          {0, {max, ...}, {declared_before, ...}, place from 0 in its queue, 0, now_ms, number of a pool that is full}
--           the message is parked; place 0 where it was already
-- include: lib_several

local owner, digest, message = unpack(ARGV, 6 * pools + 5)
tell_time()
local sizes, before, free = declare_all(4 * pools + 5)
use(1)
if redis.call('HEXISTS', state, 'm:' .. digest) == 1 or redis.call('ZSCORE', claims, '!' .. token) then
  return {0, sizes, before, 0, 0, now_ms, 1}
end
local blocked
local fences, lives = held_by(token)
if not fences and free then fences, lives = take_all(token, owner) end
if not fences then blocked = advance() end
if not fences and not blocked then blocked, fences, lives = take_now(token, owner) end
if fences then return {1, sizes, before, fences, lives} end

use(1)
local place = next_place()
redis.call('HSET', state, 'm:' .. digest, '-1|' .. token .. '|' .. #owner .. '|' .. owner .. message)
keep_key(state, ROOM_MS)
enqueue(digest, place, ROOM_MS)
local ahead = ahead_of(digest, place)
if ahead == 0 then
  blocked = advance()
  use(blocked)
  know()
  -- No release tells when a rate allows the next start.
  if interval_us then redis.call('PUBLISH', ARGV[4 * pools + 4] .. lane, ARGV[3 * pools + 3 + blocked]) end
end
return {0, sizes, before, ahead, 0, now_ms, blocked}
