-- Takes a slot, or a place in line, or neither.
-- Safe to repeat with the same token: it answers with the slot or the place that the token already has.
--
-- KEYS  slots, line, state, claims, ring
-- ARGV  1 token   2 owner   3 declaration: "size[@interval_us/burst][%share]"   4 first (1: its first call)
--       5 lease_ms (0: none)   6 cap_ms (-1: none)   7 weight   8 partition ('': none)
--       9 patience_ms (none: do not wait)   10 channel
-- Returns  {1, fence, life_ms, max, declared_before, 1 if the pool is roomy, see lib_plain, else 0}
--           the token has a slot
--          {0, place from 0 in its partition, ms after which to look again (-1: no reason to), max, declared_before,
--           now_ms}   the token stands in line
--          {-1, max, owners of at most 100 slots, declared_before, ms until the rate allows a start (0: it does), ms for
--           which one of the slots may only rest, see note_impatience}   full
-- include: lib_plain

local plain = take_plainly()
if plain then return plain end
-- include: lib_admit

local patience_ms, channel = tonumber(ARGV[9] or 0), ARGV[10]
local resting_ms = patience_ms == 0 and note_impatience() or 0
local admitted = admit_at_once()
if admitted then return admitted end
-- include: lib_admit_in_turn
admitted = admit_in_turn()
if admitted then return admitted end

if patience_ms == 0 then
  local _, rated_ms = starts()
  return {-1, max, owners(), declared_before, rated_ms, resting_ms}
end

local place = string.match(redis.call('HGET', state, 'w:' .. token) or '', '^[^|]*|(%x+)|') or next_place()
local stands = member(CALLERS, partition, place, weight, token)
stand(CALLERS, partition, place, stands, patience_ms)
redis.call('HSET', state, 'w:' .. token, table.concat(
  {partition, place, ARGV[7], text(now_ms + patience_ms), ARGV[5], ARGV[6], channel, owner}, '|'))
local ahead = redis.call('ZLEXCOUNT', line, '[' .. CALLERS .. '|' .. partition .. '|', '(' .. stands)
return {0, ahead, look_again_ms(ahead), max, declared_before, now_ms}
