-- Reduce an open claim's holds, because a line in another partition affords less. ARGV: 5 id; 6 fingerprint; 7 owner; 8
-- output tokens; then the new amount of each hold. Answers the room left on each rate, 0 for another kind; lost if not
-- open.

local id, claim = ARGV[5], current(ARGV[5])
if not belongs(claim, ARGV[6], ARGV[7]) or claim.state ~= 'open' then
  write_all()
  return {'lost', epoch, now}
end
local answer = {'ok', epoch, now}
for index, hold in ipairs(claim.holds) do
  local held, room = tonumber(ARGV[8 + index]), 0
  if hold.kind == 'rate' then
    local spare = cost(hold.held, hold.limit, hold.period) - cost(held, hold.limit, hold.period)
    give_back(hold.key, spare, hold.drained_at)
    hold.drained_at = hold.drained_at - spare
    room = rate_room(rate_of(hold.key).tat or 0, hold.limit, hold.period)
  elseif hold.kind == 'gauge' then
    hold_gauge(hold.key, held - hold.held)
  else
    hold_window(hold.key, window_of(hold.key), held - hold.held)
  end
  hold.held = held
  answer[#answer + 1] = room
end
claim.output = tonumber(ARGV[8])
save(id, claim)
write_all()
return answer
