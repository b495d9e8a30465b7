-- Shared by the scripts that admit, after lib_admit: what is asked where somebody waits, or there is no room.
-- include: lib_line

-- The reply for a token that has a slot, or gets one now that it is its turn; nil where there is none for it.
local function admit_in_turn()
  drop_expired()
  local until_ms = redis.call('ZSCORE', slots, token)
  if until_ms and tonumber(until_ms) <= now_ms then until_ms = let_go(token) == 0 end
  if not until_ms then
    if serve(token) < weight or left_of(partition) - (kept[partition] or 0) < weight then return nil end
    if share and turn_of(partition) == NO_TURN then return nil end  -- somebody there needs more than is left
    if not alone then next_turn(partition) end
  end
  leave_line(token)
  return won()
end

-- Milliseconds until the `ahead`-th next start may be possible: the rate allows it, a slot that is kept for a called
-- worker is given up, or a slot expires; -1: nothing is known of it.
local function look_again_ms(ahead)
  if paused then return -1 end
  local _, rated_ms = starts()
  if rated_ms > 0 then return rated_ms + ahead * interval_us / 1000 end
  if called then return CALL_MS end
  local first = redis.call('ZRANGE', slots, 0, 0, 'WITHSCORES')[2]
  return first and math.max(0, first - now_ms) or -1
end
