-- Parked messages, for scripts that take them or give them back; after lib_pool and lib_line.

-- What is parked: milliseconds of its cap (-1: none), its owner, the message; nil where the server has evicted it.
local function parked(digest)
  local record = redis.call('HGET', state, 'm:' .. digest)
  if not record then return nil end
  local cap, owned, rest = string.match(record, '^(-?%d+)|[^|]*|(%d+)|(.*)$')
  return tonumber(cap), string.sub(rest, 1, owned), string.sub(rest, owned + 1)
end

-- Notes that the run `token` has taken a message, and where that stood; its claim is to be renewed.
local function claim(token, digest, stood, lease_ms)
  redis.call('ZADD', claims, text(now_ms + lease_ms), digest)
  redis.call('HSET', state, 'o:' .. digest, token .. '|' .. stood, 'x:' .. token, digest)
  keep_key(claims, ROOM_MS)
  keep_key(line, ROOM_MS)
  keep_key(ring, ROOM_MS)
  keep_key(state, ROOM_MS)
end

-- Puts a message that wants slots of several pools back into its queue "!<lane>|...", in their first pool, and calls for a
-- worker by its line; `known` is how to ask for all of the pools.
local function queue_again(queue, place, digest, known)
  local asked = cmsgpack.unpack(known)
  local lane, weight, partition = '+' .. string.match(queue, '^!([^|]*)|'), tonumber(asked[3]), asked[4]
  redis.call('ZADD', line, 0, queue .. '|' .. place .. '|' .. digest)
  redis.call('HSET', state, 'w:' .. digest .. '.1', table.concat({partition, place, asked[3], known}, '|'))
  redis.call('HSETNX', state, 'q:' .. string.sub(queue, 2), digest .. '|' .. known)
  stand(lane, partition, place, member(lane, partition, place, weight, digest .. '.1'), ROOM_MS, next_place())
end

-- What a dead worker has taken stands at its old place again.
local function take_back_lapsed()
  for _, digest in ipairs(redis.call('ZRANGEBYSCORE', claims, 0, now_ms, 'LIMIT', 0, 100)) do
    redis.call('ZREM', claims, digest)
    lapsed = lapsed + 1
    local stood = string.match(redis.call('HGET', state, 'o:' .. digest) or '', '^[^|]*|(.*)$')
    redis.call('HDEL', state, 'o:' .. digest)
    local lane, partition, place, known = string.match(stood or '', '^([^|]*)|([^|]*)|(%x+)|(.*)$')
    if place and string.sub(lane, 1, 1) == '!' then
      queue_again(lane .. '|' .. partition, place, digest, known)
    elseif place then
      stand(lane, partition, place, stood .. '|' .. digest, ROOM_MS)
    end
  end
end
