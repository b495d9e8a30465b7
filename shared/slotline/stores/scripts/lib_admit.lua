-- Shared by the scripts that admit: pool_acquire and pool_park.
-- ARGV 1 to 6 are the same in both: token, owner, declaration, first (1: its first call), lease_ms, cap_ms.
-- include: lib_pool

local token, owner = ARGV[1], ARGV[2]
local lease_ms, cap_ms = tonumber(ARGV[5]), tonumber(ARGV[6])
tell_time()
local declared_before = declare(ARGV[3], ARGV[4])

local function won()
  local life = life_of(lease_ms, cap_ms)
  if take(token, owner, life, cap_ms) then return {1, fence, life, max, declared_before} end
  if tonumber(redis.call('ZSCORE', slots, token)) <= now_ms then
    -- What it had has ended by now, unseen: the answer, or the message, was lost.
    redis.call('ZREM', slots, token)
    take(token, owner, life, cap_ms)
  end
  local record = redis.call('HGET', state, 'h:' .. token) or ''
  return {1, string.match(record, '^(%d+)') or fence, redis.call('ZSCORE', slots, token) - now_ms, max, declared_before}
end

-- The reply for a token that has a slot, or gets one now; nil where there is none for it.
local function admit()
  if room() > 0 and redis.call('ZCARD', line) == 0 then return won() end
  drop_expired()
  if redis.call('ZSCORE', slots, token) or serve(token) > 0 then
    leave_line(token)
    return won()
  end
  return nil
end

-- Milliseconds until the `ahead`-th next start may be possible: a slot expires, the rate allows it, or a slot that is kept
-- for a called worker is given up; -1: nothing is known of it.
local function look_again_ms(ahead)
  if paused then return -1 end
  local _, rated_ms = starts()
  if rated_ms > 0 then return rated_ms + ahead * interval_us / 1000 end
  if redis.call('ZCARD', slots) < max then return CALL_MS end
  local first = redis.call('ZRANGE', slots, 0, 0, 'WITHSCORES')
  return (tonumber(first[2]) or now_ms) - now_ms
end
