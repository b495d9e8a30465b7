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
  leave_line(token, CALLERS)
  return won()
end
