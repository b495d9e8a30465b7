-- Shared by the cache scripts, which include it.
--
-- The keys of a cache entry, all under one hash tag, in the order in which every script takes them:
--   entry    string  the value with its header; its TTL is the value's life and its grace
--   claim    string  who creates the value: a token; '' when the value was set or invalidated meanwhile, so that
--                    the creator no longer counts; '~' while refreshing rests after a failure
--   waiters  hash    waiting token -> the channel of its process
--   kept     string  the last value, for those who would have it however old; only where somebody asked for that
-- Claim, waiters and kept always have a TTL.

local entry, claim, waiters, kept = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

-- Wakes everyone who waits for the value.
local function ring(payload)
  local waiting = redis.call('HGETALL', waiters)
  for at = 1, #waiting, 2 do
    redis.call('PUBLISH', waiting[at + 1], waiting[at] .. ' ' .. payload)
  end
  if #waiting > 0 then redis.call('DEL', waiters) end
end

-- life_ms 0: no expiry. keep_ms: how much longer the value is kept as the last one; -1: what is kept stays.
local function store(value, life_ms, keep_ms)
  if tonumber(life_ms) > 0 then
    redis.call('SET', entry, value, 'PX', life_ms)
  else
    redis.call('SET', entry, value)
  end
  if tonumber(keep_ms) > 0 and tonumber(life_ms) > 0 then
    redis.call('SET', kept, value, 'PX', life_ms + keep_ms)
  elseif tonumber(keep_ms) >= 0 then
    redis.call('UNLINK', kept)
  end
end

-- Takes the right to store from whoever creates the value now. The mark lasts as long as the claim would have.
local function void_claim()
  local left = redis.call('PTTL', claim)
  if left > 0 then redis.call('SET', claim, '', 'PX', left) end
end
