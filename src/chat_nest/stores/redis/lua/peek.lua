-- The state of lines, as if expired leases had been charged; changes nothing. ARGV from 5 on two a line: kind, key.
-- Answers three a line: used, held, tat.

local late = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', text(now), 'LIMIT', 0, 1000)) do
  local claim = load(id)
  for _, hold in ipairs(claim and claim.holds or {}) do
    local name = hold.kind .. ':' .. hold.key
    late[name] = (late[name] or 0) + hold.held
  end
end

local answer = {'ok', epoch, now}
for at = 5, #ARGV, 2 do
  local kind, key = ARGV[at], ARGV[at + 1]
  local used, held, tat = 0, 0, 0
  if kind == 'rate' then
    tat = rate_of(key).tat or 0
  else
    local name = kind .. ':' .. key
    local counter = redis.call('HMGET', root .. name, 'used', 'held')
    held = (tonumber(counter[2]) or 0) - (late[name] or 0)
    used = kind == 'window' and (tonumber(counter[1]) or 0) + (late[name] or 0) or 0
  end
  answer[#answer + 1], answer[#answer + 2], answer[#answer + 3] = used, held, tat
end
return answer
