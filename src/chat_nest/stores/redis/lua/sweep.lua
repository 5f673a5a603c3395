-- Charge expired leases. ARGV: 5 how many at most. Answers how many it examined, and how many of those with their home
-- here it charged.

local looked, charged = expire_some(leases, tonumber(ARGV[5]))
return {'ok', epoch, now, looked, charged}
