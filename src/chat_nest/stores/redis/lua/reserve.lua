-- Hold every line or none. ARGV: 5 id; 6 fingerprint; 7 owner; 8 attempt; 9 lease; 10 most and 11 least output tokens;
-- 12 record, or '' for none; 13 '1' if the claim's home is another partition, else ''; then eight a line: kind, key,
-- unit, limit, fixed, units per million output tokens, period, end.
--
-- Answers granted, now, output, room after each line; refused, now, the line from 1 on, its room, its tat or first lease;
-- duplicate, now, output, state, record or '', 1 if that is lost or else 0; conflict.

local id, output, least = ARGV[5], tonumber(ARGV[10]), tonumber(ARGV[11])
expire_some(leases, 100)

local lines = {}
for at = 14, #ARGV, 8 do
  lines[#lines + 1] = {
    kind = ARGV[at], key = ARGV[at + 1], unit = ARGV[at + 2], limit = tonumber(ARGV[at + 3]),
    fixed = tonumber(ARGV[at + 4]), per = tonumber(ARGV[at + 5]), period = tonumber(ARGV[at + 6]),
    ends = tonumber(ARGV[at + 7]),
  }
end

local function room_of(line)
  if line.kind == 'request' then return line.limit end
  if line.kind == 'rate' then
    local tat, changed, set_back = read_rate(line.key)
    line.tat = tat or 0
    if set_back then write_rate(line.key, tat, changed) end  -- even if the claim is refused: it drains from now on
    return rate_room(line.tat, line.limit, line.period)
  end
  if line.kind == 'gauge' then
    return math.max(0, line.limit - (tonumber(redis.call('HGET', root .. 'gauge:' .. line.key, 'held')) or 0))
  end
  local counter = redis.call('HMGET', root .. 'window:' .. line.key, 'used', 'held', 'ends')
  line.new, line.kept = not counter[1], tonumber(counter[3]) or 0
  return math.max(0, line.limit - (tonumber(counter[1]) or 0) - (tonumber(counter[2]) or 0))
end

-- `output`, or the part of it that fits into the room; -1 if fixed alone does not.
local function clamp(line, room)
  if room < line.fixed then return -1 end
  if line.per == 0 or amount(line, output) <= room then return output end
  return math.min(output, affordable(line, room))
end

local claim = current(id)
if claim and not free(claim, ARGV[6], ARGV[7]) then
  if claim.print ~= ARGV[6] then return {'conflict', epoch, now} end
  if claim.state ~= 'open' or claim.attempt ~= ARGV[8] then
    local kept = claim.state ~= 'open' and claim.record or ''
    return {'duplicate', epoch, now, claim.output, claim.state, kept, claim.lost and 1 or 0}
  end
  local answer = {'granted', epoch, now, claim.output}  -- the same attempt again, whose answer was lost
  for _, line in ipairs(lines) do
    answer[#answer + 1] = room_of(line) - (line.kind == 'request' and amount(line, claim.output) or 0)
  end
  return answer
end

for index, line in ipairs(lines) do
  line.room = room_of(line)
  local fits = clamp(line, line.room)
  if fits < least and line.kind == 'gauge' and expire_some(root .. 'streams:' .. line.key, 1000) > 0 then
    line.room = room_of(line)
    fits = clamp(line, line.room)
  end
  if fits < least then
    local first = line.tat or 0
    if line.kind == 'gauge' then
      first = tonumber(redis.call('ZRANGE', root .. 'streams:' .. line.key, 0, 0, 'WITHSCORES')[2]) or 0
    end
    return {'refused', epoch, now, index, line.room, first}
  end
  output = fits
end

local expires = now + tonumber(ARGV[9])
local answer, holds = {'granted', epoch, now, output}, {}
for _, line in ipairs(lines) do
  local held = amount(line, output)
  local hold = {kind = line.kind, key = line.key, unit = line.unit, held = held}
  if line.kind == 'rate' then
    hold.limit, hold.period = line.limit, line.period
    hold.drained_at = draw(line.key, cost(held, line.limit, line.period))
    answer[#answer + 1] = rate_room(hold.drained_at, line.limit, line.period)
  else
    answer[#answer + 1] = line.room - held
    if line.kind == 'gauge' then
      redis.call('HINCRBY', root .. 'gauge:' .. line.key, 'held', text(held))
      redis.call('ZADD', root .. 'streams:' .. line.key, text(expires), id)
    elseif line.kind == 'window' then
      redis.call('HINCRBY', root .. 'window:' .. line.key, 'held', text(held))
      if line.new then redis.call('HSET', root .. 'window:' .. line.key, 'used', 0) end
      local ends = math.max(line.ends, expires)
      if ends > line.kept then
        redis.call('HSET', root .. 'window:' .. line.key, 'ends', text(ends))
        -- A minute is soon over, and its windows would be many.
        redis.call('PEXPIRE', root .. 'window:' .. line.key, remember(ends, line.period > 60 and KEPT or 0))
      end
    end
  end
  if line.kind ~= 'request' then holds[#holds + 1] = hold end
end
save(id, {
  print = ARGV[6], owner = ARGV[7], state = 'open', output = output, attempt = ARGV[8], holds = holds,
  lease = tonumber(ARGV[9]), record = ARGV[12] ~= '' and ARGV[12] or nil, away = ARGV[13] ~= '' or nil,
})
redis.call('ZADD', leases, text(expires), id)
return answer
