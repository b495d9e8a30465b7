-- Takes the longest parked message of the lanes that a worker serves, together with a slot for it.
-- Safe to repeat with the same token: it answers with the message that the token has taken.
--
-- KEYS  slots, line, state, claims, ring
-- ARGV  1 token of the run   2 lease_ms, of the slot and of the claim   3, 4, ... lanes
-- Returns  {1, fence, life_ms, digest, lane, owner, cap_ms, message, its place, ms after which to look for another (0: at
--           once; -1: no reason to)}
--          {0, messages that wait in these lanes, ms after which to look again (-1: no reason to)}
--          {2, queue, cap_ms, weight and partition in each of its pools, their names}   the longest is one that wants
--           slots of other pools, too: several_take asks for it
-- include: lib_pool
-- include: lib_line
-- include: lib_room
-- include: lib_take

local token, lease_ms = ARGV[1], tonumber(ARGV[2])
tell_time()
return taken_already(token, lease_ms) or take_longest(token, lease_ms, {unpack(ARGV, 3)})
