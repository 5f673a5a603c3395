-- Set or replace reports. ARGV from 5 on four a row: kind, name, value, end.

for at = 5, #ARGV, 4 do
  local kind, name, ends = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 3])
  local left = text(math.max(1, math.ceil((ends - now) / 1000)))
  redis.call('SET', root .. 'report:' .. kind .. ' ' .. name, text(ends) .. ' ' .. ARGV[at + 2], 'PX', left)
  redis.call('ZADD', root .. 'reports:' .. kind, text(ends), name)
  redis.call('ZREMRANGEBYSCORE', root .. 'reports:' .. kind, '-inf', text(now))
  if redis.call('PTTL', root .. 'reports:' .. kind) < tonumber(left) then
    redis.call('PEXPIRE', root .. 'reports:' .. kind, left)
  end
end
return {'ok', epoch, now}
