-- Takes a slot, or a place in line, or neither.
-- Safe to repeat with the same token: it answers with the slot or the place that the token already has.
--
-- KEYS  slots, line, state, claims
-- ARGV  1 token   2 owner   3 declaration: "size" or "size@interval_us/burst"   4 first (1: its first call)
--       5 lease_ms (0: none)   6 cap_ms (-1: none)   7 patience_ms (0: do not wait)   8 channel ('': do not wait)
-- Returns  {1, fence, life_ms, max, declared_before}       the token has a slot
--          {0, place from 0, ms after which to look again (-1: no reason to), max, declared_before, now_ms}   the token stands in line
--          {-1, max, owners of at most 100 slots, declared_before, ms until the rate allows a start (0: it does)}   full
-- include: lib_admit

local patience_ms, channel = tonumber(ARGV[7]), ARGV[8]
local admitted = admit()
if admitted then return admitted end

if patience_ms == 0 then
  local owners = {}
  for _, held in ipairs(redis.call('ZRANGE', slots, 0, 99)) do
    local record = redis.call('HGET', state, 'h:' .. held) or '|||'
    owners[#owners + 1] = string.match(record, '^[^|]*|[^|]*|[^|]*|(.*)$')
  end
  local _, rated_ms = starts()
  return {-1, max, owners, declared_before, rated_ms}
end

local place = string.match(redis.call('HGET', state, 'w:' .. token) or '', '^(%x+)|') or next_place()
local stands = member(CALLERS, place, token)
redis.call('ZADD', line, 0, stands)
redis.call('HSET', state, 'w:' .. token,
  place .. '|' .. text(now_ms + patience_ms) .. '|' .. ARGV[5] .. '|' .. ARGV[6] .. '|' .. channel .. '|' .. owner)
keep_key(line, patience_ms)
local ahead = redis.call('ZLEXCOUNT', line, '[' .. CALLERS .. '|', '(' .. stands)
return {0, ahead, look_again_ms(ahead), max, declared_before, now_ms}
