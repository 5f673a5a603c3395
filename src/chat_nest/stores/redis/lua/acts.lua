-- The newest acts. ARGV: 5 how many at most. Answers each as its time, a space, and the act.

local answer = {'ok', epoch, now}
for _, act in ipairs(redis.call('LRANGE', root .. 'acts', 0, tonumber(ARGV[5]) - 1)) do answer[#answer + 1] = act end
return answer
