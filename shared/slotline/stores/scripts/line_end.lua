-- Ends a run that messages wait for: gives its slot to the next of them, or removes a line in which nobody is left.
-- Safe to repeat: a token without a slot changes nothing for others.
--
-- KEYS  slots, line, state, claims, ring
-- ARGV  1 token   2 what everyone who is parked by now gets in place of a run of its own ('': nothing)
-- Returns  1 if the token had the slot, else 0
-- include: lib_pool
-- include: lib_line

local token = ARGV[1]
local had = let_go(token)
if redis.call('ZCARD', line) > 0 then
  if had == 1 and ARGV[2] ~= '' then
    redis.call('HSET', state, 'verdict', (redis.call('HGET', state, 'place') or '0') .. '|' .. ARGV[2])
  end
  tell_time()
  serve('')
elseif not remove_if_empty() then
  -- Who settles the last taken message removes the rest.
  redis.call('HSET', state, 'fleeting', '1')
  keep_key(state, STATE_MS)
end
return had
