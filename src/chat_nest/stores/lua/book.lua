-- Stands before each of the other scripts. A partition is one hash slot's share of the store; everything in it has a
-- name that begins with `root`. Amounts, and times in Unix microseconds, are integers below 2^53: exact in a double.
--
-- KEYS[1] the partition's epoch. ARGV: 1 the epoch that the caller has seen here, or ''; 2 the epoch to set where there
-- is none; 3 the time, or '' for the server's; 4 how long what is finished is remembered; from 5 on the script's own.
--
-- epoch            a random text, set once: a server that lost it has lost the counters too
-- doubted          for a minute after a caller that has seen another epoch: nobody new believes this one meanwhile
-- leases           sorted set of the ids of open claims by the time at which their leases run out
-- claim:ID         MessagePack: print, owner, state, output, attempt, source, holds and, when settled, actual by unit; record,
--                  which is not looked into, and whether it is lost, where nobody has said more since the lease ran out;
--                  away, where the claim has its home in another partition
-- window:KEY       hash: used, held
-- rate:KEY         string: the theoretical arrival time of GCRA
-- gauge:KEY        hash: held
-- streams:KEY      sorted set of the ids that hold the gauge, by the time at which their leases run out

local US, LAST, DOUBT = 1000000, 9007199254740991, 60000
local root = string.sub(KEYS[1], 1, -6)
local leases = root .. 'leases'
local retention = tonumber(ARGV[4])
local now = tonumber(ARGV[3])
if not now then
  local time = redis.call('TIME')
  now = time[1] * US + time[2]
end

local epoch = redis.call('GET', KEYS[1])
if ARGV[1] == '' then
  if redis.call('EXISTS', root .. 'doubted') == 1 then return {'doubted'} end
  if not epoch then
    epoch = ARGV[2]
    redis.call('SET', KEYS[1], epoch)
  end
elseif epoch ~= ARGV[1] then
  redis.call('SET', root .. 'doubted', 1, 'PX', DOUBT)
  return {'emptied'}
end

local function text(number) return string.format('%.0f', number + 0) end  -- `+ 0`: no text is '-0'

-- The whole quotient of integers from 0 to 2^53: rounding never carries a quotient this small over the next integer.
local function quotient(a, b) return math.floor(a / b) end

-- Milliseconds from now until what ends at `time` may be forgotten.
local function remember(time) return text(math.max(1, math.ceil((math.max(time - now, 0) + retention) / 1000))) end

-- fixed + output * per / 10^6, rounded up, without a product over 2^53.
local function amount(line, output)
  local rest = line.per % US
  return line.fixed + output * quotient(line.per, US) + quotient(output, US) * rest + math.ceil(output % US * rest / US)
end

-- The most output tokens that fit into `room`, where fixed fits and output is not free: long division, as 10^6 = 8*8*5^6.
local function affordable(line, room)
  local tokens, rest = quotient(room - line.fixed, line.per), (room - line.fixed) % line.per
  for _, factor in ipairs({8, 8, 5, 5, 5, 5, 5, 5}) do
    rest = rest * factor
    tokens = tokens * factor + quotient(rest, line.per)
    rest = rest % line.per
  end
  return tokens
end

-- GCRA, as in chat_nest.windows.

local function cost(units, limit, period)
  return quotient(units, limit) * period * US + math.ceil(units % limit * period * US / limit)
end

local function rate_room(tat, limit, period)
  return quotient(math.max(0, period * US - math.max(0, tat - now)) * limit, period * US)
end

local function read_rate(key) return tonumber(redis.call('GET', root .. 'rate:' .. key)) end

local function write_rate(key, tat) redis.call('SET', root .. 'rate:' .. key, text(tat), 'PX', remember(tat)) end

local function draw(key, cost)
  local tat = math.min(math.max(read_rate(key) or 0, now) + cost, LAST)
  write_rate(key, tat)
  return tat
end

local function give_back(key, spare, drained_at)
  local tat = read_rate(key)
  if tat then write_rate(key, tat - math.min(spare, math.max(0, drained_at - now))) end
end

-- Claims.

local function load(id)
  local packed = redis.call('GET', root .. 'claim:' .. id)
  return packed and cmsgpack.unpack(packed)
end

local function save(id, claim)
  if claim.state == 'open' then
    redis.call('SET', root .. 'claim:' .. id, cmsgpack.pack(claim))
  else
    redis.call('SET', root .. 'claim:' .. id, cmsgpack.pack(claim), 'PX', remember(now))
  end
end

-- Whether the claim is the owner's, and not another's that has the same id.
local function belongs(claim, print, owner) return claim and claim.print == print and claim.owner == owner end

-- Turn the holds into what was spent by unit; a unit left out is charged whole. What had expired was charged already.
-- `record` takes the place of the claim's; without one that stays, unless the claim is released.
local function finish(id, claim, state, source, spent, record)
  redis.call('ZREM', leases, id)  -- the first write: a server that is full refuses only a first write that needs memory
  local charged = claim.state == 'expired'
  for _, hold in ipairs(claim.holds) do
    local kind, key, held = hold.kind, hold.key, hold.held
    local actual = state == 'released' and 0 or spent[hold.unit] or held
    if kind == 'rate' then
      if actual > held then
        draw(key, cost(actual - held, hold.limit, hold.period))
      elseif actual < held then
        give_back(key, cost(held, hold.limit, hold.period) - cost(actual, hold.limit, hold.period), hold.drained_at)
      end
    elseif kind == 'gauge' then
      if not charged then
        redis.call('ZREM', root .. 'streams:' .. key, id)
        if redis.call('HINCRBY', root .. 'gauge:' .. key, 'held', text(-held)) <= 0 then
          redis.call('DEL', root .. 'gauge:' .. key)
        end
      end
    elseif redis.call('EXISTS', root .. 'window:' .. key) == 1 then  -- else so long over that nobody can draw on it
      if charged then
        actual = actual - held
      else
        redis.call('HINCRBY', root .. 'window:' .. key, 'held', text(-held))
      end
      redis.call('HINCRBY', root .. 'window:' .. key, 'used', text(actual))
    end
  end
  claim.state, claim.source = state, source
  if state == 'expired' then
    claim.lost = true
  else
    claim.holds, claim.actual = {}, spent  -- only an expired claim can still be corrected
    if record or state == 'released' then claim.record, claim.lost = record, nil end
  end
  save(id, claim)
end

-- Charge the open claims of a set whose leases have run out, at most `most`, oldest first; return how many were looked at,
-- and how many of those that have their home here were charged.
local function expire_some(set, most)
  local charged, ids = 0, redis.call('ZRANGEBYSCORE', set, '-inf', text(now), 'LIMIT', 0, most)
  for _, id in ipairs(ids) do
    local claim = load(id)
    if claim and claim.state == 'open' then
      finish(id, claim, 'expired', 'assumed', {})
      if not claim.away then charged = charged + 1 end
    else
      redis.call('ZREM', set, id)
    end
  end
  return #ids, charged
end

-- A claim as it stands now: its lease may have run out though nobody has charged it yet.
local function current(id)
  local claim = load(id)
  if claim and claim.state == 'open' and tonumber(redis.call('ZSCORE', leases, id) or 0) <= now then
    finish(id, claim, 'expired', 'assumed', {})
  end
  return claim
end
