-- The controls. ARGV: 5 the version that the caller has. Answers the version, '' if there was no change yet; then all
-- rows, unless the caller has that version.

local version = redis.call('HGET', root .. 'controls', 'version') or ''
local answer = {'ok', epoch, now, version}
if version ~= ARGV[5] then
  local rows = redis.call('HGETALL', root .. 'controls')
  for index = 1, #rows, 2 do
    if rows[index] ~= 'version' then answer[#answer + 1] = rows[index + 1] end
  end
end
return answer
