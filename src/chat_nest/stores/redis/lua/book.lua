-- The first part of each other script. A partition is one hash slot's share of the store; every name in it begins with
-- `root`. Amounts, and times in Unix microseconds, are integers below 2^53: exact in a double.
--
-- KEYS[1] the partition's epoch. ARGV: 1 the epoch that the caller has seen here, or ''; 2 the epoch to set if there is
-- none; 3 the time, or '' for the server's; 4 the retention of finished claims and counters; from 5 on the script's own.
--
-- epoch            a random text, set once: a server that lost it has lost the counters too
-- accepted         the epoch that an operator has accepted for callers that have seen another one
-- doubted          set for a minute after a call with another epoch: no new caller accepts this one meanwhile
-- leases           sorted set of the ids of open claims by the ends of their leases
-- claim:ID         MessagePack: print, owner, state, output, attempt, source, lease, holds and, when settled, actual by unit;
--                  record, which is opaque here, and lost, if its lease expired and no settlement came since; free, if
--                  it is settled and nothing was spent; away, if the claim's home is another partition
-- window:KEY       hash: used, held, and ends: its end as computed by the latest caller
-- rate:KEY         string: the theoretical arrival time of GCRA, and the time of its last change
-- gauge:KEY        hash: held
-- streams:KEY      sorted set of the ids that hold the gauge, by the ends of their leases
-- controls         hash: JSON rows by `KIND NAME`, and `version`; only in the partition of all callers
-- control-ends     sorted set of those that expire, by their ends
-- first:KEY        string: the call that was first with a key, and the end of its time
-- report:KIND NAME string: the end and the value of a report
-- reports:KIND     sorted set of the names of reports, by their ends
-- acts             list of operators' acts, the newest first: the time and JSON

local US, LAST, DOUBT = 1000000, 9007199254740991, 60000
-- As in chat_nest.stores.rules and chat_nest.core.controls: how long a window or a row is kept after its end, and which
-- leases were given by a clock that was set back.
local KEPT, SET_BACK = 90000000000, 60000000
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
  if not epoch or redis.call('GET', root .. 'accepted') ~= epoch then
    redis.call('SET', root .. 'doubted', 1, 'PX', DOUBT)
    return {'emptied'}
  end
end

local function text(number) return string.format('%.0f', number + 0) end  -- `+ 0`: no text is '-0'

-- The whole quotient of integers from 0 to 2^53: rounding never carries a quotient this small over the next integer.
local function quotient(a, b) return math.floor(a / b) end

-- Milliseconds from now until what ends at `time` may be forgotten, `least` or the retention after it.
local function remember(time, least)
  return text(math.max(1, math.ceil((math.max(time - now, 0) + math.max(retention, least or 0)) / 1000)))
end

-- fixed + output * per / 10^6, rounded up, without a product over 2^53.
local function amount(line, output)
  local rest = line.per % US
  return line.fixed + output * quotient(line.per, US) + quotient(output, US) * rest + math.ceil(output % US * rest / US)
end

-- The most output tokens that fit into `room`, if fixed fits and output is not free: long division, as 10^6 = 8*8*5^6.
local function affordable(line, room)
  local tokens, rest = quotient(room - line.fixed, line.per), (room - line.fixed) % line.per
  for _, factor in ipairs({8, 8, 5, 5, 5, 5, 5, 5}) do
    rest = rest * factor
    tokens = tokens * factor + quotient(rest, line.per)
    rest = rest % line.per
  end
  return tokens
end

-- GCRA, as in chat_nest.limits.windows.

local function cost(units, limit, period)
  return quotient(units, limit) * period * US + math.ceil(units % limit * period * US / limit)
end

local function rate_room(tat, limit, period)
  return quotient(math.max(0, period * US - math.max(0, tat - now)) * limit, period * US)
end

-- The tat by this clock, the last change (nothing without one), and whether a clock was set back since: then as much
-- remains to drain as at that time. Up to a second is not a clock set back, as in chat_nest.limits.windows.
local function read_rate(key)
  local tat, changed = string.match(redis.call('GET', root .. 'rate:' .. key) or '', '^(%d+) ?(%d*)$')
  tat, changed = tonumber(tat), tonumber(changed) or 0
  if tat and changed - now > US then return math.max(0, tat - (changed - now)), now, true end
  return tat, changed
end

local function write_rate(key, tat, changed)
  redis.call('SET', root .. 'rate:' .. key, text(tat) .. ' ' .. text(math.max(changed, now)), 'PX', remember(tat))
end

local function draw(key, cost)
  local tat, changed = read_rate(key)
  tat = math.min(math.max(tat or 0, now) + cost, LAST)
  write_rate(key, tat, changed)
  return tat
end

local function give_back(key, spare, drained_at)
  local tat, changed = read_rate(key)
  if tat then write_rate(key, tat - math.min(spare, math.max(0, drained_at - now)), changed) end
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

-- Whether the claim belongs to the owner, not to another one with the same id.
local function belongs(claim, print, owner) return claim and claim.print == print and claim.owner == owner end

-- Whether another owner may claim it anew: nothing was spent. For a part of a claim, its home partition decides.
local function free(claim, print, owner)
  return claim and claim.print == print and claim.owner ~= owner
    and (claim.state == 'released' or claim.free or (claim.away and claim.state ~= 'open'))
end

-- Turn the holds into what was spent by unit; a missing unit is charged in full. An expired claim was charged already.
-- `record` replaces the claim's; without one that stays, unless the claim is released.
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
    elseif redis.call('EXISTS', root .. 'window:' .. key) == 1 then  -- else it ended long ago
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

-- Give an open claim a lease from now on.
local function renew(id, claim)
  local expires = text(now + claim.lease)
  redis.call('ZADD', leases, 'XX', expires, id)
  for _, hold in ipairs(claim.holds) do
    if hold.kind == 'gauge' then redis.call('ZADD', root .. 'streams:' .. hold.key, 'XX', expires, id) end
  end
end

-- Hold again what was charged at the end of the lease of a claim that still runs, even if its gauges are full.
local function revive(id, claim, expires)
  redis.call('ZADD', leases, expires, id)
  for _, hold in ipairs(claim.holds) do
    local name = root .. hold.kind .. ':' .. hold.key
    if hold.kind == 'gauge' then
      redis.call('HINCRBY', name, 'held', text(hold.held))
      redis.call('ZADD', root .. 'streams:' .. hold.key, expires, id)
    elseif hold.kind == 'window' and redis.call('EXISTS', name) == 1 then
      redis.call('HINCRBY', name, 'used', text(-hold.held))
      redis.call('HINCRBY', name, 'held', text(hold.held))
    end
  end
  claim.state, claim.source = 'open', nil
  save(id, claim)
end

-- Charge the open claims of a set whose leases have expired, at most `most`, oldest first; return how many were
-- examined, and how many of those with their home here were charged.
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

-- The present state of a claim: its lease may have expired without a charge yet.
local function current(id)
  local claim = load(id)
  if claim and claim.state == 'open' and tonumber(redis.call('ZSCORE', leases, id) or 0) <= now then
    finish(id, claim, 'expired', 'assumed', {})
  end
  return claim
end

-- Set or replace reports: from ARGV[first] on four each: kind, name, value, end.
local function put_reports(first)
  for at = first, #ARGV, 4 do
    local kind, name, ends = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 3])
    local left = text(math.max(1, math.ceil((ends - now) / 1000)))
    redis.call('SET', root .. 'report:' .. kind .. ' ' .. name, text(ends) .. ' ' .. ARGV[at + 2], 'PX', left)
    redis.call('ZADD', root .. 'reports:' .. kind, text(ends), name)
    redis.call('ZREMRANGEBYSCORE', root .. 'reports:' .. kind, '-inf', text(now))
    if redis.call('PTTL', root .. 'reports:' .. kind) < tonumber(left) then
      redis.call('PEXPIRE', root .. 'reports:' .. kind, left)
    end
  end
end
