-- Gives slots of several pools back, or a place in line, and hands what is free to the longest waiters.
-- Safe to repeat: a token that has neither changes nothing.
--
-- KEYS  of all pools, see lib_several
-- ARGV  as in lib_several
-- Returns  1 if the token had a slot of each pool, else 0
-- include: lib_several

tell_time()
local place = string.match(queued(token) or '', '^(%x+)|')
if place then leave_queue(token, place) end
local had, waiting = 0, false
for at = 1, pools do
  use(at)
  had = had + let_go(slot_of(token, at))
  leave_line(slot_of(token, at), SEVERAL_HERE)
  waiting = waiting or redis.call('ZCARD', line) > 0
end
if waiting then
  advance()
  serve_all()
end
return had == pools and 1 or 0
