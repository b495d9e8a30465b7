-- Looks for those who hold slots and whose owner's name has a text in it, and for those who have held theirs longest, in a
-- part of them at a time; changes nothing.
--
-- KEYS  slots, line, state, claims, ring
-- ARGV  1 the text   2 where to go on ('0': at the beginning)   3 about how many to look at   4 most of the longest
--       5... partitions whose holders are counted, too
-- Returns  {where to go on ('0': that was all), those who are found, as in pool_info,
--          {how many there are in this part, ms for which they have held theirs in all, the same of each partition}}
-- include: lib_pool

tell_time()
local looked_at = redis.call('ZSCAN', slots, ARGV[2], 'COUNT', ARGV[3])
local holders, counts, counts_of = {}, {0, 0}, {}
for at = 5, #ARGV do
  counts_of[ARGV[at]] = #counts + 1
  counts[#counts + 1], counts[#counts + 2] = 0, 0
end

local function count(at, ms) counts[at], counts[at + 1] = counts[at] + 1, counts[at + 1] + ms end

for at = 1, #looked_at[2], 2 do
  local token, expires_ms = looked_at[2][at], looked_at[2][at + 1]
  local record = redis.call('HGET', state, 'h:' .. token)
  local fence, since_ms, partition, owner = string.match(record or '', '^(%d+)|(%d+)|%d+|%d+|([^|]*)|(.*)$')
  if fence and tonumber(expires_ms) > now_ms then
    local sought = string.find(owner, ARGV[1], 1, true)
    holders[#holders + 1] = {fence = tonumber(fence), sought = sought, told = {token, expires_ms, record}}
    count(1, now_ms - since_ms)
    if counts_of[partition] then count(counts_of[partition], now_ms - since_ms) end
  end
end
table.sort(holders, function(one, other) return one.fence < other.fence end)
local found, most = {}, tonumber(ARGV[4])
for at, holder in ipairs(holders) do
  if at <= most or holder.sought then
    for _, part in ipairs(holder.told) do found[#found + 1] = part end
  end
end
return {looked_at[1], found, counts}
