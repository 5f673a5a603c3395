-- Hold every line of a claim or none, claim by claim. ARGV: 5 MessagePack: the list of lines, and that of claims. A line is
-- kind, key, unit, limit, fixed, units per million output tokens, period, end. A claim is id, fingerprint, owner, attempt,
-- lease, most and least output tokens, the numbers of its lines, record or nil, and whether its home is another partition.
--
-- Answers a list for each claim: granted, output, room after each line; refused, the line from 1 on, its room, its tat or
-- first lease; duplicate, output, state, record or '', 1 if that is lost or else 0; conflict.

expire_some(leases, 100)

local input, lines = cmsgpack.unpack(ARGV[5]), {}
for number, words in ipairs(input[1]) do
  local kind, key, unit, limit, fixed, per, period, ends = unpack(words)
  lines[number] = {
    kind = kind, key = key, unit = unit, limit = limit, fixed = fixed, per = per, period = period, ends = ends,
  }
end

local function room_of(line)
  if line.kind == 'request' then return line.limit end
  if line.kind == 'rate' then
    local rate = rate_of(line.key)
    if rate.set_back then change('rate', line.key, rate) end  -- even if the claim is refused: it drains from now on
    return rate_room(rate.tat or 0, line.limit, line.period)
  end
  if line.kind == 'gauge' then return math.max(0, line.limit - gauge_of(line.key).held) end
  local window = window_of(line.key)
  return math.max(0, line.limit - window.used - window.held)
end

-- `output`, or the part of it that fits into the room; -1 if fixed alone does not.
local function clamp(line, room, output)
  if room < line.fixed then return -1 end
  if line.per == 0 or amount(line, output) <= room then return output end
  return math.min(output, affordable(line, room))
end

-- The answer of a line whose room is too small.
local function refuse(index, line, room)
  local first = 0
  if line.kind == 'rate' then
    first = rate_of(line.key).tat or 0
  elseif line.kind == 'gauge' then
    first = first_stream(line.key)
  end
  return {'refused', index, room, first}
end

-- The answer of a claim that is known; `attempt` is this call's.
local function known(claim, print, attempt, drawn)
  if claim.print ~= print then return {'conflict'} end
  if claim.state ~= 'open' or claim.attempt ~= attempt then
    local kept = claim.state ~= 'open' and claim.record or ''
    return {'duplicate', claim.output, claim.state, kept, claim.lost and 1 or 0}
  end
  local answer = {'granted', claim.output}  -- the same attempt again, whose answer was lost
  for _, line in ipairs(drawn) do
    answer[#answer + 1] = room_of(line) - (line.kind == 'request' and amount(line, claim.output) or 0)
  end
  return answer
end

-- Draw on a line; return its room afterwards.
local function hold(id, line, room, held, expires, drained_at)
  if line.kind == 'rate' then return rate_room(drained_at, line.limit, line.period) end
  if line.kind == 'gauge' then
    add_stream(line.key, id, expires)
    hold_gauge(line.key, held)
  elseif line.kind == 'window' then
    local window, ends = window_of(line.key), math.max(line.ends, expires)
    hold_window(line.key, window, held)
    if ends > window.ends then
      -- A minute is soon over, and its windows would be many.
      window.ends, window.longer = ends, math.max(window.longer or 0, line.period > 60 and KEPT or 0)
    end
  end
  return room - held
end

local function reserve(asked)
  local id, print, owner, attempt, lease, output, least, numbers, record, away = unpack(asked, 1, 10)
  local drawn = {}
  for index, number in ipairs(numbers) do drawn[index] = lines[number] end
  local claim = current(id)
  if claim and not free(claim, print, owner) then return known(claim, print, attempt, drawn) end

  local rooms = {}
  for index, line in ipairs(drawn) do
    local room = room_of(line)
    local fits = clamp(line, room, output)
    if fits < least and line.kind == 'gauge' and expire_some(root .. 'streams:' .. line.key, 1000) > 0 then
      room = room_of(line)
      fits = clamp(line, room, output)
    end
    if fits < least then return refuse(index, line, room) end
    rooms[index], output = room, fits
  end

  local expires = now + lease
  local answer, holds = {'granted', output}, {}
  for index, line in ipairs(drawn) do
    local one = {kind = line.kind, key = line.key, unit = line.unit, held = amount(line, output)}
    if line.kind == 'rate' then
      one.limit, one.period = line.limit, line.period
      one.drained_at = draw(line.key, cost(one.held, line.limit, line.period))
    end
    answer[#answer + 1] = hold(id, line, rooms[index], one.held, expires, one.drained_at)
    if line.kind ~= 'request' then holds[#holds + 1] = one end
  end
  save(id, {
    print = print, owner = owner, state = 'open', output = output, attempt = attempt, holds = holds, lease = lease,
    record = record, away = away or nil,
  })
  set_lease(id, expires)
  return answer
end

return for_all(input[2], reserve)
