-- Shared by the scripts that admit: pool_acquire and pool_park. What most calls need; lib_admit_in_turn is the rest.
-- ARGV 1 to 8 are the same in both: token, owner, declaration, first (1: its first call), lease_ms, cap_ms, weight,
-- partition ('': none).
-- include: lib_pool

local token, owner = ARGV[1], ARGV[2]
local lease_ms, cap_ms = tonumber(ARGV[5]), tonumber(ARGV[6])
local weight, partition = tonumber(ARGV[7]), ARGV[8]
tell_time()
local declared_before = declare(ARGV[3], ARGV[4])

-- Gives the token a slot, or a lease anew for the one that it has; the reply for it. Nothing where what it had has ended
-- by now, unseen: the answer, or the message, was lost.
local function won()
  local life = life_of(lease_ms, cap_ms)
  if take(token, owner, life, cap_ms, weight, partition) then return {1, fence, life, max, declared_before, 0} end
  if tonumber(redis.call('ZSCORE', slots, token)) <= now_ms then return nil end
  local left, given = prolong(token, life)
  return {1, given or fence, left, max, declared_before, 0}
end

-- The reply for a token that gets a slot, or has one, where nobody waits and there is room.
local function admit_at_once()
  if redis.call('ZCARD', line) > 0 or room() < weight or left_of(partition) < weight then return nil end
  return won()
end
