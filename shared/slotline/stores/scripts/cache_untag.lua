-- Lists entries that carry a tag, after forgetting those that were dealt with.
-- An entry that was tagged again meanwhile has another score and stays.
--
-- KEYS  tag (zset: entry -> end_us)
-- ARGV  1 how many to list   then pairs: entry, the score that it was listed with
-- Returns  {entry, score, entry, score, ...}

for at = 2, #ARGV, 2 do
  if redis.call('ZSCORE', KEYS[1], ARGV[at]) == ARGV[at + 1] then redis.call('ZREM', KEYS[1], ARGV[at]) end
end
return redis.call('ZRANGE', KEYS[1], 0, tonumber(ARGV[1]) - 1, 'WITHSCORES')
