-- Change the controls. ARGV: 5 a random version, by which a repeated call is recognized; 6 an act for the trail, or '';
-- 7 the number of removed rows; then two each: kind and name, '' for all of the kind; then four a row: kind, name, the
-- row, its end or ''. The hash `controls` has a row by `KIND NAME`, and `version`.

local rows, ends_of = root .. 'controls', root .. 'control-ends'
local function forget(field)
  redis.call('HDEL', rows, field)
  redis.call('ZREM', ends_of, field)
end

if redis.call('HGET', rows, 'version') == ARGV[5] then return {'ok', epoch, now} end
redis.call('HSET', rows, 'version', ARGV[5])
local at = 8
for _ = 1, tonumber(ARGV[7]) do
  local kind, name = ARGV[at], ARGV[at + 1]
  if name ~= '' then
    forget(kind .. ' ' .. name)
  else
    for _, field in ipairs(redis.call('HKEYS', rows)) do
      if string.sub(field, 1, #kind + 1) == kind .. ' ' then forget(field) end
    end
  end
  at = at + 2
end
for row = at, #ARGV, 4 do
  local field, ends = ARGV[row] .. ' ' .. ARGV[row + 1], ARGV[row + 3]
  redis.call('HSET', rows, field, ARGV[row + 2])
  if ends == '' then
    redis.call('ZREM', ends_of, field)
  else
    redis.call('ZADD', ends_of, ends, field)
  end
end
-- As in chat_nest.core.controls: of those that ended long ago, the thousand that ended last stay.
local too_many = redis.call('ZCOUNT', ends_of, '-inf', text(now - KEPT)) - 1000
if too_many > 0 then
  for _, field in ipairs(redis.call('ZRANGE', ends_of, 0, math.min(too_many, 1000) - 1)) do forget(field) end
end
if ARGV[6] ~= '' then
  redis.call('LPUSH', root .. 'acts', text(now) .. ' ' .. ARGV[6])
  redis.call('LTRIM', root .. 'acts', 0, 9999)
end
return {'ok', epoch, now}
