-- Charge leases that have run out. ARGV: 5 how many at most. Answers how many.

return {'ok', epoch, now, expire_some(leases, tonumber(ARGV[5]))}
