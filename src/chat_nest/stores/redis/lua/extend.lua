-- Renew the leases of claims that still run. ARGV: 5 lease; then three a claim: id, fingerprint, owner. Answers 1 for
-- each that is open or had expired, else 0.

local answer = {'ok', epoch, now}
for at = 6, #ARGV, 3 do
  local id = ARGV[at]
  local claim = current(id)
  local expires = text(now + tonumber(ARGV[5]))
  local live = belongs(claim, ARGV[at + 1], ARGV[at + 2]) and (claim.state == 'open' or claim.state == 'expired')
  if live and claim.state == 'expired' then
    revive(id, claim, expires)
  elseif live then
    redis.call('ZADD', leases, 'XX', 'GT', expires, id)
    for _, hold in ipairs(claim.holds) do
      if hold.kind == 'gauge' then redis.call('ZADD', root .. 'streams:' .. hold.key, 'XX', 'GT', expires, id) end
    end
  end
  answer[#answer + 1] = live and 1 or 0
end
return answer
