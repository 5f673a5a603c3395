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

-- Counters and claims. A call reads each of them once, whatever number of claims draw on it, and `write_all` writes those
-- that changed, once. Before that only the ids of ended claims are taken out of `streams:KEY`.

local rates, windows, gauges, claims, lease_ends, streams = {}, {}, {}, {}, {}, {}
local changed = {rate = {}, window = {}, gauge = {}, claim = {}, lease = {}}

local function change(kind, key, one)
  if not one.changed then
    one.changed = true
    local list = changed[kind]
    list[#list + 1] = key
  end
end

-- A rate: its tat by this clock, nil without one, and `at`, its last change. If a clock was set back since, as much
-- remains to drain as at that time. Up to a second is not a clock set back, as in chat_nest.limits.windows.
local function rate_of(key)
  local rate = rates[key]
  if not rate then
    local tat, at = string.match(redis.call('GET', root .. 'rate:' .. key) or '', '^(%d+) ?(%d*)$')
    rate = {tat = tonumber(tat), at = tonumber(at) or 0, set_back = false, changed = false}
    if rate.tat and rate.at - now > US then
      rate.tat, rate.at, rate.set_back = math.max(0, rate.tat - (rate.at - now)), now, true
    end
    rates[key] = rate
  end
  return rate
end

local function draw(key, cost)
  local rate = rate_of(key)
  rate.tat = math.min(math.max(rate.tat or 0, now) + cost, LAST)
  change('rate', key, rate)
  return rate.tat
end

local function give_back(key, spare, drained_at)
  local rate = rate_of(key)
  if rate.tat then
    rate.tat = rate.tat - math.min(spare, math.max(0, drained_at - now))
    change('rate', key, rate)
  end
end

-- A window: used, held, whether it exists, and its end as computed by the latest caller, 0 without one.
local function window_of(key)
  local window = windows[key]
  if not window then
    local found = redis.call('HMGET', root .. 'window:' .. key, 'used', 'held', 'ends')
    window = {
      used = tonumber(found[1]) or 0, held = tonumber(found[2]) or 0, ends = tonumber(found[3]) or 0,
      exists = found[1] or found[2], longer = false, changed = false,
    }
    windows[key] = window
  end
  return window
end

local function hold_window(key, window, held, used)
  window.held, window.used, window.exists = window.held + held, window.used + (used or 0), true
  change('window', key, window)
end

local function gauge_of(key)
  local gauge = gauges[key]
  if not gauge then
    gauge = {held = tonumber(redis.call('HGET', root .. 'gauge:' .. key, 'held')) or 0, changed = false}
    gauges[key] = gauge
  end
  return gauge
end

local function hold_gauge(key, held)
  local gauge = gauge_of(key)
  gauge.held = gauge.held + held
  change('gauge', key, gauge)
end

-- Let a claim hold a gauge until its lease ends.
local function add_stream(key, id, expires)
  local added = streams[key] or {first = expires}
  streams[key] = added
  added.first = math.min(added.first, expires)
  added[#added + 1] = text(expires)
  added[#added + 1] = id
end

-- The end of the first lease on a gauge, 0 without one.
local function first_stream(key)
  local first = tonumber(redis.call('ZRANGE', root .. 'streams:' .. key, 0, 0, 'WITHSCORES')[2])
  local added = streams[key] and streams[key].first
  return math.min(first or added or 0, added or first or 0)
end

-- A claim, or nil.
local function load(id)
  local claim = claims[id]
  if claim == nil then
    local packed = redis.call('GET', root .. 'claim:' .. id)
    claim = {now = packed and cmsgpack.unpack(packed), changed = false}
    claims[id] = claim
  end
  return claim.now
end

-- Nil forgets it.
local function save(id, claim)
  local place = claims[id]
  place.now = claim
  change('claim', id, place)
end

-- The end of a claim's lease, 0 without one.
local function lease_end(id)
  local lease = lease_ends[id]
  if not lease then
    lease = {at = tonumber(redis.call('ZSCORE', leases, id) or 0), changed = false}
    lease_ends[id] = lease
  end
  return lease.at
end

local function set_lease(id, ends)
  local lease = lease_ends[id] or {at = 0, changed = false}
  lease.at = ends
  lease_ends[id] = lease
  change('lease', id, lease)
end

local function in_parts(command, key, words)
  for first = 1, #words, 1000 do redis.call(command, key, unpack(words, first, math.min(first + 999, #words))) end
end

local function write_claim(id, claim)
  if not claim then
    redis.call('DEL', root .. 'claim:' .. id)
  elseif claim.state == 'open' then
    redis.call('SET', root .. 'claim:' .. id, cmsgpack.pack(claim))
  else
    redis.call('SET', root .. 'claim:' .. id, cmsgpack.pack(claim), 'PX', remember(now))
  end
end

local function write_window(key, window)
  local name = root .. 'window:' .. key
  if window.longer then
    redis.call('HSET', name, 'used', text(window.used), 'held', text(window.held), 'ends', text(window.ends))
    redis.call('PEXPIRE', name, remember(window.ends, window.longer))
  else
    redis.call('HSET', name, 'used', text(window.used), 'held', text(window.held))
  end
end

-- What has ended first: a server that is full refuses only a first write that needs memory.
local function write_all()
  local ended, begun = {}, {}
  for _, id in ipairs(changed.lease) do
    local ends = lease_ends[id].at
    if ends == 0 then
      ended[#ended + 1] = id
    else
      begun[#begun + 1] = text(ends)
      begun[#begun + 1] = id
    end
  end
  in_parts('ZREM', leases, ended)
  in_parts('ZADD', leases, begun)
  for _, key in ipairs(changed.rate) do
    local rate = rates[key]
    local value = text(rate.tat) .. ' ' .. text(math.max(rate.at, now))
    redis.call('SET', root .. 'rate:' .. key, value, 'PX', remember(rate.tat))
  end
  for _, key in ipairs(changed.window) do write_window(key, windows[key]) end
  for _, key in ipairs(changed.gauge) do
    if gauges[key].held > 0 then
      redis.call('HSET', root .. 'gauge:' .. key, 'held', text(gauges[key].held))
    else
      redis.call('DEL', root .. 'gauge:' .. key)
    end
  end
  for key, added in pairs(streams) do in_parts('ZADD', root .. 'streams:' .. key, added) end
  for _, id in ipairs(changed.claim) do write_claim(id, claims[id].now) end
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
  set_lease(id, 0)
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
        hold_gauge(key, -held)
      end
    else
      local window = window_of(key)
      if window.exists then  -- else it ended long ago
        hold_window(key, window, charged and 0 or -held, charged and actual - held or actual)
      end
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
  local expires = now + claim.lease
  set_lease(id, expires)
  for _, hold in ipairs(claim.holds) do
    if hold.kind == 'gauge' then add_stream(hold.key, id, expires) end
  end
end

-- Hold again what was charged at the end of the lease of a claim that still runs, even if its gauges are full.
local function revive(id, claim, expires)
  set_lease(id, expires)
  for _, hold in ipairs(claim.holds) do
    if hold.kind == 'gauge' then
      add_stream(hold.key, id, expires)
      hold_gauge(hold.key, hold.held)
    elseif hold.kind == 'window' then
      local window = window_of(hold.key)
      if window.exists then hold_window(hold.key, window, hold.held, -hold.held) end
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
    elseif set == leases then
      set_lease(id, 0)
    else
      redis.call('ZREM', set, id)
    end
  end
  return #ids, charged
end

-- The present state of a claim: its lease may have expired without a charge yet.
local function current(id)
  local claim = load(id)
  if claim and claim.state == 'open' and lease_end(id) <= now then finish(id, claim, 'expired', 'assumed', {}) end
  return claim
end

-- Compute the answer to each of these claims, then write what has changed. If one of several is the reason of an error,
-- nothing is written yet, and each is to be asked alone.
local function for_all(asked, compute)
  local answer = {'ok', epoch, now}
  local function compute_all()
    for index, one in ipairs(asked) do answer[index + 3] = compute(one) end
  end
  if #asked == 1 then
    compute_all()
  else
    local fine, why = pcall(compute_all)
    if not fine then return redis.error_reply('ALONE ' .. (type(why) == 'table' and why.err or why)) end
  end
  write_all()
  return answer
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
