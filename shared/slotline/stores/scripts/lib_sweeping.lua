-- Around the scripts that take back what nobody has renewed: they tell of it beside their answer.
--
-- Returns  what the script returns; {'lapsed', how many slots and claims were taken back, that} if there were any
local lapsed = 0
local function answer()
-- the script
end
local reply = answer()
if lapsed > 0 then return {'lapsed', lapsed, reply} end
return reply
