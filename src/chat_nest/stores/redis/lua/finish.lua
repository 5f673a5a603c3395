-- End claims, one after another. ARGV: 5 MessagePack: a list of claims: id, fingerprint, owner; settled, released or undone
-- (released and forgotten); source; what was spent by unit; record or nil; whether that states that nothing was spent.
-- Answers a list for each claim: 1 if this call ended it, else 0, and its state: the name, '' if unknown, and what was
-- spent by unit.

-- Without an expired lease, no claim's own need be read.
local none_expired = #redis.call('ZRANGEBYSCORE', leases, '-inf', text(now), 'LIMIT', 0, 1) == 0

local function ending(asked)
  local id, print, owner, wanted, source, spent, record, nothing_spent = unpack(asked, 1, 8)
  local claim = none_expired and load(id) or current(id)
  if wanted == 'released' and (not claim or free(claim, print, owner)) then
    save(id, {print = print, owner = owner, state = 'released', output = 0, attempt = '', holds = {}})
    return {0, 'released'}
  end
  if not belongs(claim, print, owner) then return {0, ''} end

  local ended = 0
  if claim.state == 'open' or (claim.state == 'expired' and wanted == 'settled') then
    ended = 1
    if wanted ~= 'settled' then claim.output = 0 end
    claim.free = nothing_spent or nil
    finish(id, claim, wanted == 'settled' and wanted or 'released', source, spent, record)
    if wanted == 'undone' then save(id, nil) end
  end
  local answer = {ended, claim.state}
  for unit, amount in pairs(claim.actual or {}) do
    answer[#answer + 1] = unit
    answer[#answer + 1] = amount
  end
  return answer
end

return for_all(cmsgpack.unpack(ARGV[5]), ending)
