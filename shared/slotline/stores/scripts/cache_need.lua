-- Notes that whoever creates one value waits for another one.
--
-- KEYS  claim, needs (hash: entry that is waited for -> token of the claim that waits)
-- ARGV  1 token   2 entry that is waited for   3 life_ms of the note
-- Returns  1 noted, 0 the token has not the claim

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[2], ARGV[2], ARGV[1])
if redis.call('PTTL', KEYS[2]) < tonumber(ARGV[3]) then redis.call('PEXPIRE', KEYS[2], ARGV[3]) end
return 1
