-- Charge leases that have run out. ARGV: 5 how many at most. Answers how many it looked at, and how many of those that
-- have their home here it charged.

local looked, charged = expire_some(leases, tonumber(ARGV[5]))
return {'ok', epoch, now, looked, charged}
