-- Parked messages that are to be removed: for scripts that take them out of the line; after lib_pool, lib_line and lib_room.

-- The digests that `taker` has claimed and not settled, and where they stood: what a call whose answer was lost has taken.
local function claimed_by(taker)
  local found, digests = {}, redis.call('ZRANGEBYSCORE', claims, 0, '+inf')
  for _, digest in ipairs(digests) do
    local its, stood = string.match(redis.call('HGET', state, 'o:' .. digest) or '', '^([^|]*)|(.*)$')
    if its == taker then found[#found + 1] = {digest = digest, stood = stood} end
  end
  return found
end

-- Lets a message wait for its removal: with the claim that lapses it is at its old place again. There is no run, and no slot.
local function claim_unrun(taker, digest, stood, lease_ms)
  redis.call('ZADD', claims, text(now_ms + lease_ms), digest)
  redis.call('HSET', state, 'o:' .. digest, taker .. '|' .. stood)
  keep_key(claims, ROOM_MS)
end

-- What is told of claimed messages: {digest, lane, owner, message, ...}, without the messages where they are not asked for.
local function told_of_claimed(found, whole)
  local told = {}
  for _, one in ipairs(found) do
    local _, owner, message = parked(one.digest)
    told[#told + 1] = one.digest
    told[#told + 1] = string.match(one.stood, '^!?([^|]*)|')
    told[#told + 1] = owner or ''
    told[#told + 1] = whole and message or ''
  end
  return told
end
