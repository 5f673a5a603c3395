-- End a claim. ARGV: 5 id; 6 fingerprint; 7 owner; 8 settled, released or undone (released and forgotten); 9 source; 10
-- record, or '' for none; 11 '1' if the record states that nothing was spent, else ''; then two a unit: its name and
-- what was spent of it. Answers 1 if this call ended it, else 0, and its state: the name, '' if unknown, and what was
-- spent by unit.

local id, print, owner, wanted = ARGV[5], ARGV[6], ARGV[7], ARGV[8]
local claim = current(id)
if wanted == 'released' and (not claim or free(claim, print, owner)) then
  save(id, {print = print, owner = owner, state = 'released', output = 0, attempt = '', holds = {}})
  return {'ok', epoch, now, 0, 'released'}
end
if not belongs(claim, print, owner) then return {'ok', epoch, now, 0, ''} end

local ended = 0
if claim.state == 'open' or (claim.state == 'expired' and wanted == 'settled') then
  ended = 1
  local spent = {}
  for at = 12, #ARGV, 2 do spent[ARGV[at]] = tonumber(ARGV[at + 1]) end
  if wanted ~= 'settled' then claim.output = 0 end
  claim.free = ARGV[11] == '1' or nil
  finish(id, claim, wanted == 'settled' and wanted or 'released', ARGV[9], spent, ARGV[10] ~= '' and ARGV[10] or nil)
  if wanted == 'undone' then redis.call('DEL', root .. 'claim:' .. id) end
end
local answer = {'ok', epoch, now, ended, claim.state}
for unit, spent in pairs(claim.actual or {}) do
  answer[#answer + 1] = unit
  answer[#answer + 1] = spent
end
return answer
