-- Gives a slot back, and takes the longest parked message of the lanes that a worker serves with what is free then; what
-- is left goes to the longest waiters, as by pool_release. Nobody is overtaken: whose turn comes first gets the slot.
-- Safe to repeat with the same tokens: it answers with the message that the run has taken.
--
-- KEYS  slots, line, state, claims, ring
-- ARGV  1 token of the run   2 lease_ms, of its slot and its claim   3 token whose slot is given back   4, 5, ... lanes
-- Returns  as room_take
-- include: lib_pass_plainly

local plain = pass_plainly()
if plain then return plain end
-- include: lib_pool
-- include: lib_line
-- include: lib_room
-- include: lib_take

local token, lease_ms = ARGV[1], tonumber(ARGV[2])
tell_time()
let_go(ARGV[3])
local reply = taken_already(token, lease_ms)
if reply then return reply end
reply = take_longest(token, lease_ms, {unpack(ARGV, 4)})
if reply[1] ~= 0 and room() > 0 then serve('') end
return reply
