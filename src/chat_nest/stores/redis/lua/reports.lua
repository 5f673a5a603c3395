-- Reports. ARGV: 5 kind; 6 name, or '' for all of the kind; 7 how many at most. Answers two a report: its name, and its
-- end, a space, and its value.

local names = {ARGV[6]}
if ARGV[6] == '' then
  names = redis.call(
    'ZREVRANGEBYSCORE', root .. 'reports:' .. ARGV[5], '+inf', '(' .. text(now), 'LIMIT', 0, tonumber(ARGV[7])
  )
end
local answer = {'ok', epoch, now}
for _, name in ipairs(names) do
  local found = redis.call('GET', root .. 'report:' .. ARGV[5] .. ' ' .. name)
  if found then
    answer[#answer + 1] = name
    answer[#answer + 1] = found
  end
end
return answer
