-- Shared by the scripts that admit: pool_acquire and pool_park.
-- ARGV 1 to 6 are the same in both: token, owner, max_size, declare, lease_ms, cap_ms.
-- include: lib_pool

local token, owner = ARGV[1], ARGV[2]
local lease_ms, cap_ms = tonumber(ARGV[5]), tonumber(ARGV[6])
tell_time()
local max, declared, last_fence = limit_of(ARGV[3], ARGV[4])

local function won(fence)
  local life = life_of(lease_ms, cap_ms)
  if not take(token, owner, fence, life, cap_ms) then
    life = redis.call('ZSCORE', slots, token) - now_ms
    fence = string.match(redis.call('HGET', state, 'h:' .. token) or fence, '^(%d+)')
  end
  return {1, fence, life, max, declared}
end

-- The reply for a token that has a slot, or gets one now; nil where there is none for it.
local function admit()
  local free = max - redis.call('ZCARD', slots)
  if free > 0 and redis.call('ZCARD', line) == 0 then return won(fence_after(last_fence)) end
  drop_expired()
  if redis.call('ZSCORE', slots, token) then
    leave_line(token)
    return won(fence_after(last_fence))
  end
  if serve(token) > 0 then
    leave_line(token)
    return won(fence_after(redis.call('HGET', state, 'fence')))
  end
  return nil
end

-- Milliseconds until it is worth looking again: a slot expires, or one that is kept for a called worker is given up.
local function look_again_ms()
  if redis.call('ZCARD', slots) < max then return CALL_MS end
  local first = redis.call('ZRANGE', slots, 0, 0, 'WITHSCORES')
  return (tonumber(first[2]) or now_ms) - now_ms
end
