-- Renew the leases of claims that still run. ARGV: 5 lease; then three a claim: id, fingerprint, owner. Answers 1 for
-- each that is open or had expired, else 0.

local answer = {'ok', epoch, now}
for at = 6, #ARGV, 3 do
  local id = ARGV[at]
  local claim = current(id)
  local lease = tonumber(ARGV[5])
  local live = belongs(claim, ARGV[at + 1], ARGV[at + 2]) and (claim.state == 'open' or claim.state == 'expired')
  if live and claim.state == 'expired' then
    claim.lease = lease
    revive(id, claim, now + lease)
  elseif live then
    if claim.lease ~= lease then
      claim.lease = lease
      save(id, claim)
    end
    renew(id, claim)
  end
  answer[#answer + 1] = live and 1 or 0
end
write_all()
return answer
