-- Puts a message that was delivered back into its queue, if nobody has spoken for it until now. Another worker may have
-- been quicker, and a third have it in hand by now, under the same tag.
--
-- KEYS  index of kombu's unacknowledged messages (zset: delivery tag -> seconds), those messages (hash), and the list of
--       each of its queues
-- ARGV  1 delivery tag   2 the time until which it is overdue   3, 4, ... what to push to each list
-- Returns  1 if it was put back, else 0

local spoken = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not spoken or tonumber(spoken) > tonumber(ARGV[2]) then return 0 end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
for at = 3, #KEYS do redis.call('RPUSH', KEYS[at], ARGV[at]) end
return 1
