-- Says that the taker of a message still lives.
--
-- KEYS  slots, line, state, claims, ring
-- ARGV  1 digest   2 token of its run   3 lease_ms
-- Returns  milliseconds that the claim lasts from now; 0 if it is no longer the token's
-- include: lib_pool

tell_time()
if string.match(redis.call('HGET', state, 'o:' .. ARGV[1]) or '', '^([^|]*)') ~= ARGV[2] then return 0 end
if tonumber(redis.call('ZSCORE', claims, ARGV[1]) or 0) <= now_ms then return 0 end
redis.call('ZADD', claims, 'XX', text(now_ms + ARGV[3]), ARGV[1])
return tonumber(ARGV[3])
