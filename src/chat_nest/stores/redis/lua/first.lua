-- Whether this call is the first with a key. ARGV: 5 key; 6 a random number, by which a repeated call is recognized; 7
-- for how long, in microseconds; from 8 on four a report that it sets if it is the first. Answers 1 or 0.

local name, call = root .. 'first:' .. ARGV[5], ARGV[6]
local taken, ends = string.match(redis.call('GET', name) or '', '^(%d+) (%d+)$')
if taken and tonumber(ends) > now then return {'ok', epoch, now, taken == call and 1 or 0} end
local us = tonumber(ARGV[7])
redis.call('SET', name, call .. ' ' .. text(now + us), 'PX', text(math.max(1, math.ceil(us / 1000))))
put_reports(8)
return {'ok', epoch, now, 1}
