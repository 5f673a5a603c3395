-- Change the controls. ARGV: 5 a random version, by which a repeated call is recognized; 6 an act for the trail, or '';
-- 7 the number of removed rows; then two each: kind and name, '' for all of the kind; then four a row: kind, name, the
-- row, its end or ''. The hash `controls` has a row by `KIND NAME`, and `version`.

local rows = root .. 'controls'
if redis.call('HGET', rows, 'version') == ARGV[5] then return {'ok', epoch, now} end
redis.call('HSET', rows, 'version', ARGV[5])
local at = 8
for _ = 1, tonumber(ARGV[7]) do
  local kind, name = ARGV[at], ARGV[at + 1]
  if name ~= '' then
    redis.call('HDEL', rows, kind .. ' ' .. name)
  else
    for _, field in ipairs(redis.call('HKEYS', rows)) do
      if string.sub(field, 1, #kind + 1) == kind .. ' ' then redis.call('HDEL', rows, field) end
    end
  end
  at = at + 2
end
for row = at, #ARGV, 4 do
  local field, ends = ARGV[row] .. ' ' .. ARGV[row + 1], ARGV[row + 3]
  redis.call('HSET', rows, field, ARGV[row + 2])
  if ends == '' then
    redis.call('ZREM', root .. 'control-ends', field)
  else
    redis.call('ZADD', root .. 'control-ends', ends, field)
  end
end
for _, field in ipairs(redis.call('ZRANGEBYSCORE', root .. 'control-ends', '-inf', text(now - KEPT), 'LIMIT', 0, 1000)) do
  redis.call('HDEL', rows, field)
  redis.call('ZREM', root .. 'control-ends', field)
end
if ARGV[6] ~= '' then
  redis.call('LPUSH', root .. 'acts', text(now) .. ' ' .. ARGV[6])
  redis.call('LTRIM', root .. 'acts', 0, 9999)
end
return {'ok', epoch, now}
