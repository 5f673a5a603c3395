-- Set a report if its value is the known one, '' if there is none. ARGV: 5 kind; 6 name; 7 the known value; 8 the value;
-- 9 its end. Answers the value afterwards.

local key, ends = root .. 'report:' .. ARGV[5] .. ' ' .. ARGV[6], tonumber(ARGV[9])
local till, value = string.match(redis.call('GET', key) or '', '^(%d+) (.*)$')
if not till or tonumber(till) <= now then value = '' end
if value ~= ARGV[7] then return {'ok', epoch, now, value} end
local left = text(math.max(1, math.ceil((ends - now) / 1000)))
redis.call('SET', key, text(ends) .. ' ' .. ARGV[8], 'PX', left)
redis.call('ZADD', root .. 'reports:' .. ARGV[5], text(ends), ARGV[6])
if redis.call('PTTL', root .. 'reports:' .. ARGV[5]) < tonumber(left) then
  redis.call('PEXPIRE', root .. 'reports:' .. ARGV[5], left)
end
return {'ok', epoch, now, ARGV[8]}
