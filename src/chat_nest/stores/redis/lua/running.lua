-- The records of open claims that have their home here. ARGV: 5 how many at most.

local answer = {'ok', epoch, now}
for _, id in ipairs(redis.call('ZREVRANGEBYSCORE', leases, '+inf', text(now), 'LIMIT', 0, tonumber(ARGV[5]))) do
  local claim = load(id)
  if claim and claim.state == 'open' and claim.record and not claim.away then answer[#answer + 1] = claim.record end
end
return answer
