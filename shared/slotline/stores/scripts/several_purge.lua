-- Takes the messages of a queue out of it for one who removes them: without slots, under claims that put back what was not
-- removed by then.
-- Safe to repeat with the same token: it answers with what the token has taken.
--
-- KEYS  of all pools, see lib_several
-- ARGV  as in lib_several, for a parked message; then most messages; 1: tell of them whole, at most 4 MiB, else 0; and the
--       place up to which they are taken
-- Returns  {1 if there may be more, else 0, {digest, lane, owner, message (or ''), ...}}
-- include: lib_several
-- include: lib_purge

local BYTES = 4 * 1024 * 1024
local most, whole, upto = tonumber(ARGV[4 * pools + 5]), ARGV[4 * pools + 6] == '1', ARGV[4 * pools + 7]
local mine, first = slot_of(token, 1), QUEUED .. queue .. '|'
tell_time()
use(1)
take_back_lapsed()
local found, read, full = claimed_by(mine), 0, false
if #found == 0 then
  for _, stands in ipairs(redis.call('ZRANGEBYLEX', line, '[' .. first, '(' .. first .. upto .. '~', 'LIMIT', 0, most)) do
    local place, digest = string.match(stands, '([^|]*)|([^|]*)$')
    leave_queue(digest, place)
    for at = 1, pools do
      use(at)
      leave_line(slot_of(digest, at), SEVERAL_HERE)
      take_back(digest, at)
    end
    use(1)
    if string.match(redis.call('HGET', state, 'q:' .. queue) or '', '^[^|]*') == digest then
      redis.call('HDEL', state, 'q:' .. queue)
    end
    local stood = QUEUED .. queue .. '|' .. place .. '|' .. how_to_ask()
    claim_unrun(mine, digest, stood, lease_ms)
    found[#found + 1] = {digest = digest, stood = stood}
    if whole then read = read + redis.call('HSTRLEN', state, 'm:' .. digest) end
    full = #found == most or read > BYTES
    if full then break end
  end
  advance()
  serve_all()
  use(1)
end
local more = #redis.call('ZRANGEBYLEX', line, '[' .. first, '(' .. first .. upto .. '~', 'LIMIT', 0, 1)
return {more, told_of_claimed(found, whole)}
