-- Charge expired leases. ARGV: 5 how many at most. Answers how many it examined, and how many of those with their home
-- here it charged.

local looked, charged = expire_some(leases, tonumber(ARGV[5]))
-- Leases that a clock ahead of this one has given last as long from now as they were to last then.
local late = redis.call(
  'ZRANGE', leases, '+inf', '(' .. text(now + SET_BACK), 'BYSCORE', 'REV', 'LIMIT', 0, tonumber(ARGV[5]), 'WITHSCORES'
)
for at = 1, #late, 2 do
  local claim = load(late[at])
  if claim and claim.lease and tonumber(late[at + 1]) - claim.lease - now > SET_BACK then renew(late[at], claim) end
end
write_all()
return {'ok', epoch, now, looked, charged}
