-- The functions that the store calls, and their steps. Each new version of the schema replaces them.
-- Amounts are integers in the line's unit. Times are Unix microseconds: to_timestamp(t / 1e6).
-- Locks are taken in one order, so that calls never deadlock: the claim's id (advisory), its reservation, then overdue
-- reservations (never waited for), then counters, in the order of their keys.
-- A product of amounts may not fit a bigint: numeric is exact.

-- Arithmetic.

CREATE OR REPLACE FUNCTION chat_nest.now_us(p_now bigint) RETURNS bigint
LANGUAGE sql VOLATILE AS $$
  SELECT coalesce(p_now, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
$$;

-- What a request with this much output draws.
CREATE OR REPLACE FUNCTION chat_nest.amount(p_fixed bigint, p_per_million bigint, p_output bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
  SELECT (p_fixed + div(p_output::numeric * p_per_million + 999999, 1000000))::bigint
$$;

-- The output that fits into the room; NULL if output is free, -1 if the fixed part alone does not fit.
CREATE OR REPLACE FUNCTION chat_nest.affordable(p_room bigint, p_fixed bigint, p_per_million bigint) RETURNS numeric
LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE
    WHEN p_room < p_fixed THEN -1
    WHEN p_per_million > 0 THEN div((p_room - p_fixed)::numeric * 1000000, p_per_million)
  END
$$;

-- A rate's limit times its period in microseconds is below 2^53.
CREATE OR REPLACE FUNCTION chat_nest.gcra_cost(p_amount bigint, p_limit bigint, p_period bigint) RETURNS numeric
LANGUAGE sql IMMUTABLE AS $$
  SELECT (p_amount / p_limit)::numeric * (p_period * 1000000)
    + (p_amount % p_limit * p_period * 1000000 + p_limit - 1) / p_limit
$$;

CREATE OR REPLACE FUNCTION chat_nest.gcra_room(p_tat bigint, p_at bigint, p_limit bigint, p_period bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
  SELECT greatest(0, p_at + p_period * 1000000 - greatest(p_tat, p_at)) * p_limit / (p_period * 1000000)
$$;

-- A rate's tat by this clock. If the clock was set back since the last change, as much remains to drain as at that
-- time. A difference up to a second is not a clock set back: calls overtake one another on their way to a counter.
CREATE OR REPLACE FUNCTION chat_nest.gcra_seen(p_tat bigint, p_changed bigint, p_at bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN p_changed - p_at > 1000000 THEN p_tat - (p_changed - p_at) ELSE p_tat END
$$;

CREATE OR REPLACE FUNCTION chat_nest.gcra_changed(p_changed bigint, p_at bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE WHEN p_changed - p_at > 1000000 THEN p_at ELSE greatest(p_changed, p_at) END
$$;

CREATE OR REPLACE FUNCTION chat_nest.gcra_take(p_tat bigint, p_at bigint, p_cost numeric) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
  SELECT least(greatest(p_tat, p_at) + p_cost, 9007199254740991)::bigint
$$;

CREATE OR REPLACE FUNCTION chat_nest.gcra_give(p_tat bigint, p_at bigint, p_cost numeric, p_until bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
  SELECT p_tat - least(p_cost, greatest(0, p_until - p_at))::bigint
$$;

-- Steps. The caller has locked what they change, unless their comment names a lock.

-- The record of a request that was never settled: the whole hold was charged.
CREATE OR REPLACE FUNCTION chat_nest.lost(p_known chat_nest.reservations) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
  SELECT p_known.record || jsonb_build_object(
    'usage', p_known.record -> 'usage' || jsonb_build_object('output_tokens', p_known.output),
    'cost', p_known.held[array_position(p_known.units, 'nanousd')]
  )
$$;

-- Write the row of each of these requests that has a record. The caller has locked their reservations.
CREATE OR REPLACE FUNCTION chat_nest.post(p_ids text[]) RETURNS void
LANGUAGE plpgsql AS $$  -- which keeps its plan
BEGIN
  INSERT INTO chat_nest.requests
  SELECT
    round((r.record ->> 'started_at')::double precision * 1000000)::bigint, r.id,
    r.record ->> 'run', r.record ->> 'caller', r.record ->> 'group', r.record ->> 'profile',
    split_part(r.record ->> 'model', ':', 1),
    substr(r.record ->> 'model', strpos((r.record ->> 'model') || ':', ':') + 1),
    (r.record ->> 'seconds')::double precision, (r.record ->> 'first_token_seconds')::double precision,
    (r.record -> 'usage' ->> 'input_tokens')::bigint, (r.record -> 'usage' ->> 'output_tokens')::bigint,
    (r.record -> 'usage' ->> 'cached_input_tokens')::bigint, (r.record -> 'usage' ->> 'cache_write_tokens')::bigint,
    (r.record -> 'usage' ->> 'reasoning_tokens')::bigint,
    (r.record ->> 'cost')::bigint, r.record ->> 'price', r.record ->> 'source', r.record ->> 'ending'
  FROM chat_nest.reservations AS r
  WHERE r.id = ANY (p_ids) AND r.recorded AND r.record IS NOT NULL
  ON CONFLICT (started_at, id) DO UPDATE SET (
    run, caller, group_name, profile, provider, model, seconds, first_token_seconds, input_tokens, output_tokens,
    cached_input_tokens, cache_write_tokens, reasoning_tokens, cost_nanousd, price, source, ending
  ) = (
    excluded.run, excluded.caller, excluded.group_name, excluded.profile, excluded.provider, excluded.model,
    excluded.seconds, excluded.first_token_seconds, excluded.input_tokens, excluded.output_tokens,
    excluded.cached_input_tokens, excluded.cache_write_tokens, excluded.reasoning_tokens, excluded.cost_nanousd,
    excluded.price, excluded.source, excluded.ending
  );
END $$;

-- Charge at most p_most expired leases, and in addition p_own, which the caller has locked and knows to be overdue.
-- Skips reservations that another call has locked. Locks the counters of these and p_keys, if there are any such
-- leases: the caller can then lock p_keys again.
CREATE OR REPLACE FUNCTION chat_nest.charge_overdue(
  p_own text[], p_keys text[], p_at bigint, p_most integer
) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
  v_late text[];
BEGIN
  v_late := ARRAY(
    SELECT r.id FROM chat_nest.reservations AS r
    WHERE r.state = 'open' AND r.expires_at <= p_at
    ORDER BY r.expires_at LIMIT p_most
    FOR UPDATE SKIP LOCKED
  );
  IF p_own <> '{}' THEN
    v_late := v_late || ARRAY(SELECT unnest(p_own) EXCEPT SELECT unnest(v_late));
  END IF;
  IF v_late = '{}' THEN
    RETURN 0;
  END IF;
  PERFORM FROM chat_nest.counters AS c
  WHERE c.key = ANY (
    p_keys || ARRAY(SELECT unnest(r.keys) FROM chat_nest.reservations AS r WHERE r.id = ANY (v_late))
  )
  ORDER BY c.key FOR NO KEY UPDATE;
  UPDATE chat_nest.counters AS c
  SET held = c.held - h.held, used = c.used + CASE c.kind WHEN 'window' THEN h.held ELSE 0 END
  FROM (
    SELECT line.key, sum(line.held)::bigint AS held
    FROM chat_nest.reservations AS r, unnest(r.keys, r.kinds, r.held) AS line (key, kind, held)
    WHERE r.id = ANY (v_late) AND line.kind <> 'rate'
    GROUP BY line.key
  ) AS h
  WHERE c.key = h.key;
  UPDATE chat_nest.reservations AS r
  SET state = 'expired', source = 'assumed', finished_at = p_at, actual = r.held, record = chat_nest.lost(r)
  WHERE r.id = ANY (v_late);
  PERFORM chat_nest.post(v_late);
  RETURN cardinality(v_late);
END $$;

-- Turn the holds of an open or expired reservation into p_amounts. Locks its counters. A missing counter is a window
-- that ended long ago, or a rate that had drained.
CREATE OR REPLACE FUNCTION chat_nest.finish(
  p_known chat_nest.reservations, p_state text, p_source text, p_amounts bigint[], p_call bigint, p_at bigint,
  p_record jsonb
) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM FROM chat_nest.counters AS c WHERE c.key = ANY (p_known.keys) ORDER BY c.key FOR NO KEY UPDATE;
  UPDATE chat_nest.counters AS c
  SET
    used = c.used + CASE
      WHEN h.kind <> 'window' THEN 0
      WHEN p_known.state = 'expired' THEN h.amount - h.held  -- the whole hold was charged already
      ELSE h.amount
    END,
    held = c.held - CASE WHEN h.kind = 'rate' OR p_known.state = 'expired' THEN 0 ELSE h.held END,
    tat = CASE
      WHEN h.kind <> 'rate' OR h.amount = h.held THEN c.tat
      WHEN h.amount > h.held
        THEN chat_nest.gcra_take(
          chat_nest.gcra_seen(c.tat, c.ends_at, p_at), p_at, chat_nest.gcra_cost(h.amount - h.held, h.max, h.period)
        )
      ELSE chat_nest.gcra_give(
        chat_nest.gcra_seen(c.tat, c.ends_at, p_at), p_at,
        chat_nest.gcra_cost(h.held, h.max, h.period) - chat_nest.gcra_cost(h.amount, h.max, h.period),
        h.until
      )
    END,
    ends_at = CASE
      WHEN h.kind = 'rate' AND h.amount <> h.held THEN chat_nest.gcra_changed(c.ends_at, p_at) ELSE c.ends_at
    END
  FROM unnest(
    p_known.keys, p_known.kinds, p_known.held, p_amounts, p_known.limits, p_known.periods, p_known.until
  ) AS h (key, kind, held, amount, max, period, until)
  WHERE c.key = h.key;
  UPDATE chat_nest.reservations AS r
  SET state = p_state, source = p_source, finished_at = p_at, actual = p_amounts, call = p_call,
    record = p_record
  WHERE r.id = p_known.id;
  IF p_record IS NOT NULL THEN
    PERFORM chat_nest.post(ARRAY[p_known.id]);
  END IF;
END $$;

-- Lock the id, which may not exist yet, and its reservation.
CREATE OR REPLACE FUNCTION chat_nest.find(p_id text) RETURNS chat_nest.reservations
LANGUAGE plpgsql AS $$
DECLARE
  v_known chat_nest.reservations;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended(p_id, 7160921));  -- our own seed: other applications lock here too
  SELECT * INTO v_known FROM chat_nest.reservations AS r WHERE r.id = p_id FOR UPDATE;
  RETURN v_known;
END $$;

-- Whether another owner may claim the id anew: nothing was spent.
CREATE OR REPLACE FUNCTION chat_nest.is_free(p_known chat_nest.reservations, p_owner text) RETURNS boolean
LANGUAGE sql IMMUTABLE AS $$
  SELECT p_known.owner <> p_owner AND (
    p_known.state = 'released'
    OR (p_known.state = 'settled' AND coalesce((p_known.record ->> 'spent_nothing')::boolean, false))
  )
$$;

-- The functions that the store calls. p_now is NULL for the server's clock.

-- v_outcome is granted, refused, conflict or, for a duplicate, the state. For a refusal, v_line counts from 0, v_room
-- has one element, and v_mark is the rate's tat, or the time at which the first lease on the gauge ends.
CREATE OR REPLACE FUNCTION chat_nest.reserve(
  p_id text, p_fingerprint text, p_call bigint, p_most bigint, p_least bigint, p_lease bigint, p_now bigint,
  p_names text[], p_keys text[], p_units text[], p_kinds text[],
  p_limits bigint[], p_fixed bigint[], p_per_million bigint[], p_periods bigint[], p_ends_at bigint[],
  p_owner text, p_record jsonb, p_recorded boolean,
  OUT v_outcome text, OUT v_output bigint, OUT v_room bigint[], OUT v_line integer, OUT v_at bigint, OUT v_mark bigint,
  OUT v_record jsonb
)
LANGUAGE plpgsql AS $$
DECLARE
  v_known chat_nest.reservations;
  v_counted text[];
  v_locked integer;
  v_tats bigint[];
  v_names text[];
  v_units text[];
  v_kinds text[];
  v_held bigint[];
  v_limits bigint[];
  v_periods bigint[];
  v_until bigint[];
BEGIN
  v_known := chat_nest.find(p_id);
  v_at := chat_nest.now_us(p_now);
  IF v_known.id IS NOT NULL AND NOT (v_known.fingerprint = p_fingerprint AND chat_nest.is_free(v_known, p_owner)) THEN
    IF v_known.state = 'open' AND v_known.expires_at <= v_at THEN
      v_known.state := 'expired';
      PERFORM chat_nest.charge_overdue(ARRAY[p_id], '{}', v_at, 100);
    ELSE
      PERFORM chat_nest.charge_overdue('{}', '{}', v_at, 100);
    END IF;
    v_outcome := CASE WHEN v_known.fingerprint = p_fingerprint THEN v_known.state ELSE 'conflict' END;
    IF v_outcome IN ('settled', 'expired') THEN  -- as it was charged, perhaps just now
      SELECT r.record INTO v_record FROM chat_nest.reservations AS r WHERE r.id = p_id;
    END IF;
    v_output := CASE v_known.state WHEN 'released' THEN 0 ELSE v_known.output END;
    IF v_outcome = 'open' AND v_known.call = p_call THEN  -- the answer was lost on its way
      v_outcome := 'granted';
      v_room := ARRAY(
        SELECT CASE l.kind
          WHEN 'request' THEN l.max - chat_nest.amount(l.fixed, l.per_million, v_output)
          WHEN 'rate' THEN chat_nest.gcra_room(chat_nest.gcra_seen(c.tat, c.ends_at, v_at), v_at, l.max, l.period)
          ELSE greatest(0, l.max - c.used - c.held)
        END
        FROM unnest(p_keys, p_kinds, p_limits, p_fixed, p_per_million, p_periods)
          WITH ORDINALITY AS l (key, kind, max, fixed, per_million, period, number)
        LEFT JOIN chat_nest.counters AS c ON c.key = l.key
        ORDER BY l.number
      );
    END IF;
    RETURN;
  END IF;

  v_counted := ARRAY(SELECT l.key FROM unnest(p_keys, p_kinds) AS l (key, kind) WHERE l.kind <> 'request');
  INSERT INTO chat_nest.counters (key, kind, ends_at)
  SELECT l.key, l.kind, l.ends_at FROM unnest(p_keys, p_kinds, p_ends_at) AS l (key, kind, ends_at)
  WHERE l.kind <> 'request' AND NOT EXISTS (SELECT FROM chat_nest.counters AS c WHERE c.key = l.key)
  ORDER BY l.key COLLATE "C"
  ON CONFLICT DO NOTHING;
  PERFORM chat_nest.charge_overdue('{}', v_counted, v_at, 100);

  WITH locked AS MATERIALIZED (
    SELECT c.key, c.used, c.held, chat_nest.gcra_seen(c.tat, c.ends_at, v_at) AS tat FROM chat_nest.counters AS c
    WHERE c.key = ANY (v_counted) ORDER BY c.key FOR NO KEY UPDATE
  ), lines AS (
    SELECT l.number, l.fixed, l.per_million, c.key, c.tat, CASE l.kind
      WHEN 'request' THEN l.max
      WHEN 'rate' THEN chat_nest.gcra_room(c.tat, v_at, l.max, l.period)
      ELSE greatest(0, l.max - c.used - c.held)
    END AS room
    FROM unnest(p_keys, p_kinds, p_limits, p_fixed, p_per_million, p_periods)
      WITH ORDINALITY AS l (key, kind, max, fixed, per_million, period, number)
    LEFT JOIN locked AS c ON c.key = l.key
  ), afforded AS (
    SELECT lines.*, chat_nest.affordable(lines.room, lines.fixed, lines.per_million) AS output FROM lines
  )
  SELECT
    min(a.number) FILTER (WHERE a.output < p_least), least(p_most, min(a.output)), count(a.key),
    array_agg(a.room ORDER BY a.number), array_agg(a.tat ORDER BY a.number)
  INTO v_line, v_output, v_locked, v_room, v_tats
  FROM afforded AS a;
  IF v_locked <> cardinality(v_counted) THEN
    RAISE serialization_failure USING MESSAGE = 'a counter was purged at this moment';
  END IF;

  IF v_line IS NOT NULL THEN
    v_outcome := 'refused';
    UPDATE chat_nest.counters AS c  -- a rate that a clock ahead of this one has drawn on drains from now on
    SET tat = chat_nest.gcra_seen(c.tat, c.ends_at, v_at), ends_at = v_at
    WHERE c.key = ANY (v_counted) AND c.kind = 'rate' AND c.ends_at - v_at > 1000000;
    v_room := v_room[v_line:v_line];
    IF p_kinds[v_line] = 'rate' THEN
      v_mark := v_tats[v_line];
    ELSIF p_kinds[v_line] = 'gauge' THEN
      SELECT r.expires_at INTO v_mark FROM chat_nest.reservations AS r
      WHERE r.state = 'open' AND p_keys[v_line] = ANY (r.keys)
      ORDER BY r.expires_at LIMIT 1;
    END IF;
    v_line := v_line - 1;
    RETURN;
  END IF;

  WITH lines AS MATERIALIZED (
    SELECT l.*, chat_nest.amount(l.fixed, l.per_million, v_output) AS amount
    FROM unnest(p_names, p_keys, p_units, p_kinds, p_limits, p_fixed, p_per_million, p_periods, p_ends_at)
      WITH ORDINALITY AS l (name, key, unit, kind, max, fixed, per_million, period, ends_at, number)
  ), drawn AS (
    UPDATE chat_nest.counters AS c
    SET
      held = c.held + CASE l.kind WHEN 'rate' THEN 0 ELSE l.amount END,
      tat = CASE l.kind
        WHEN 'rate' THEN chat_nest.gcra_take(
          chat_nest.gcra_seen(c.tat, c.ends_at, v_at), v_at, chat_nest.gcra_cost(l.amount, l.max, l.period)
        )
        ELSE c.tat
      END,
      ends_at = CASE l.kind
        WHEN 'rate' THEN chat_nest.gcra_changed(c.ends_at, v_at)
        WHEN 'window' THEN greatest(c.ends_at, l.ends_at)
        ELSE c.ends_at
      END
    FROM lines AS l
    WHERE c.key = l.key AND l.kind <> 'request'
    RETURNING c.key, c.used, c.held, c.tat
  )
  SELECT
    array_agg(CASE l.kind
      WHEN 'request' THEN l.max - l.amount
      WHEN 'rate' THEN chat_nest.gcra_room(d.tat, v_at, l.max, l.period)
      ELSE l.max - d.used - d.held
    END ORDER BY l.number),
    array_agg(l.name ORDER BY l.number) FILTER (WHERE l.kind <> 'request'),
    array_agg(l.unit ORDER BY l.number) FILTER (WHERE l.kind <> 'request'),
    array_agg(l.kind ORDER BY l.number) FILTER (WHERE l.kind <> 'request'),
    array_agg(l.amount ORDER BY l.number) FILTER (WHERE l.kind <> 'request'),
    array_agg(l.max ORDER BY l.number) FILTER (WHERE l.kind <> 'request'),
    array_agg(l.period ORDER BY l.number) FILTER (WHERE l.kind <> 'request'),
    array_agg(CASE l.kind WHEN 'rate' THEN d.tat ELSE 0 END ORDER BY l.number) FILTER (WHERE l.kind <> 'request')
  INTO v_room, v_names, v_units, v_kinds, v_held, v_limits, v_periods, v_until
  FROM lines AS l LEFT JOIN drawn AS d ON d.key = l.key;
  DELETE FROM chat_nest.reservations AS r WHERE r.id = v_known.id;  -- which was free
  INSERT INTO chat_nest.reservations (
    id, fingerprint, state, call, output, reserved_at, expires_at,
    names, keys, units, kinds, held, limits, periods, until, owner, record, recorded
  ) VALUES (
    p_id, p_fingerprint, 'open', p_call, v_output, v_at, v_at + p_lease,
    coalesce(v_names, '{}'), v_counted, coalesce(v_units, '{}'), coalesce(v_kinds, '{}'), coalesce(v_held, '{}'),
    coalesce(v_limits, '{}'), coalesce(v_periods, '{}'), coalesce(v_until, '{}'), p_owner, p_record, p_recorded
  );
  v_outcome := 'granted';
  v_room := coalesce(v_room, '{}');
END $$;

-- p_actual is an object of amounts by unit, or NULL.
CREATE OR REPLACE FUNCTION chat_nest.settle(
  p_id text, p_fingerprint text, p_call bigint, p_actual jsonb, p_source text, p_now bigint,
  p_owner text DEFAULT '', p_record jsonb DEFAULT NULL
) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
  v_known chat_nest.reservations := chat_nest.find(p_id);
  v_at bigint := chat_nest.now_us(p_now);
  v_overdue boolean := coalesce(v_known.state = 'open' AND v_known.expires_at <= v_at, false);
  v_own text[] := CASE WHEN v_overdue THEN ARRAY[p_id] ELSE '{}' END;
  v_its boolean := coalesce(v_known.fingerprint = p_fingerprint AND v_known.owner = p_owner, false);
  v_amounts bigint[];
BEGIN
  IF NOT v_its OR v_known.state IN ('settled', 'released') THEN
    PERFORM chat_nest.charge_overdue(v_own, '{}', v_at, 100);
    -- If this call settled it, the answer was lost on its way.
    RETURN v_its AND v_known.state = 'settled' AND v_known.call = p_call;
  END IF;
  v_amounts := ARRAY(
    SELECT coalesce((p_actual ->> h.unit)::bigint, h.held)
    FROM unnest(v_known.units, v_known.held) WITH ORDINALITY AS h (unit, held, number)
    ORDER BY h.number
  );
  INSERT INTO chat_nest.counters (key, kind, ends_at)
  SELECT h.key, h.kind, 0 FROM unnest(v_known.keys, v_known.kinds, v_known.held, v_amounts) AS h (key, kind, held, amount)
  WHERE h.kind = 'rate' AND h.amount > h.held
    AND NOT EXISTS (SELECT FROM chat_nest.counters AS c WHERE c.key = h.key)
  ORDER BY h.key COLLATE "C"
  ON CONFLICT DO NOTHING;
  PERFORM chat_nest.charge_overdue(v_own, v_known.keys, v_at, 100);
  IF v_overdue THEN
    v_known.state := 'expired';
    v_known.record := chat_nest.lost(v_known);
  END IF;
  IF p_record IS NULL THEN
    p_record := v_known.record;
  ELSIF v_known.record IS NOT NULL THEN  -- keeps its start time: the row of a lost request is found by it
    p_record := p_record || jsonb_build_object('started_at', v_known.record -> 'started_at');
  END IF;
  PERFORM chat_nest.finish(v_known, 'settled', p_source, v_amounts, p_call, v_at, p_record);
  RETURN true;
END $$;

CREATE OR REPLACE FUNCTION chat_nest.release(
  p_id text, p_fingerprint text, p_call bigint, p_now bigint, p_owner text DEFAULT ''
) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
  v_known chat_nest.reservations := chat_nest.find(p_id);
  v_at bigint := chat_nest.now_us(p_now);
  v_overdue boolean := coalesce(v_known.state = 'open' AND v_known.expires_at <= v_at, false);
  v_own text[] := CASE WHEN v_overdue THEN ARRAY[p_id] ELSE '{}' END;
  v_its boolean := coalesce(v_known.fingerprint = p_fingerprint AND v_known.owner = p_owner, false);
  v_free boolean := coalesce(v_known.fingerprint = p_fingerprint AND chat_nest.is_free(v_known, p_owner), false);
  v_live boolean := v_its AND v_known.state = 'open' AND NOT v_overdue;
BEGIN
  PERFORM chat_nest.charge_overdue(v_own, CASE WHEN v_live THEN v_known.keys ELSE '{}' END, v_at, 100);
  IF v_live THEN
    PERFORM chat_nest.finish(
      v_known, 'released', NULL, array_fill(0::bigint, ARRAY[cardinality(v_known.keys)]), p_call, v_at, NULL
    );
    RETURN true;
  END IF;
  IF v_known.id IS NULL OR v_free THEN  -- this owner can't reserve it from now on
    DELETE FROM chat_nest.reservations AS r WHERE r.id = v_known.id;
    INSERT INTO chat_nest.reservations (
      id, fingerprint, state, call, output, reserved_at, expires_at, finished_at,
      names, keys, units, kinds, held, actual, limits, periods, until, owner
    ) VALUES (
      p_id, p_fingerprint, 'released', p_call, 0, v_at, v_at, v_at, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}',
      p_owner
    );
    RETURN false;
  END IF;
  -- If this call gave it back, the answer was lost on its way.
  RETURN v_its AND v_known.state = 'released' AND v_known.call = p_call
    AND v_known.expires_at > v_known.reserved_at;
END $$;

-- Returns the ids that are open, or were charged at the end of their leases and are held again: their requests still
-- run.
CREATE OR REPLACE FUNCTION chat_nest.extend(
  p_ids text[], p_fingerprints text[], p_lease bigint, p_now bigint, p_owners text[] DEFAULT '{}'
) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
  v_locked text[];  -- one that is reserved from now on is not: to wait for it would be out of order
  v_at bigint;
  v_lost text[];
  v_keys text[];
  v_live text[];
BEGIN
  v_locked := ARRAY(SELECT r.id FROM chat_nest.reservations AS r WHERE r.id = ANY (p_ids) ORDER BY r.id FOR UPDATE);
  v_at := chat_nest.now_us(p_now);
  v_lost := ARRAY(
    SELECT r.id FROM chat_nest.reservations AS r
    JOIN unnest(p_ids, p_fingerprints, p_owners) AS asked (id, fingerprint, owner)
      ON r.id = asked.id AND r.fingerprint = asked.fingerprint AND r.owner = coalesce(asked.owner, '')
    WHERE r.id = ANY (v_locked) AND (r.state = 'expired' OR (r.state = 'open' AND r.expires_at <= v_at))
  );
  IF v_lost <> '{}' THEN
    INSERT INTO chat_nest.counters (key, kind, ends_at)
    SELECT h.key, 'gauge', 0
    FROM chat_nest.reservations AS r, unnest(r.keys, r.kinds) AS h (key, kind)
    WHERE r.id = ANY (v_lost) AND h.kind = 'gauge'
      AND NOT EXISTS (SELECT FROM chat_nest.counters AS c WHERE c.key = h.key)
    GROUP BY h.key
    ORDER BY h.key COLLATE "C"
    ON CONFLICT DO NOTHING;
  END IF;
  v_keys := ARRAY(SELECT unnest(r.keys) FROM chat_nest.reservations AS r WHERE r.id = ANY (v_lost));
  PERFORM chat_nest.charge_overdue(
    ARRAY(
      SELECT r.id FROM chat_nest.reservations AS r
      WHERE r.id = ANY (v_locked) AND r.state = 'open' AND r.expires_at <= v_at
    ),
    v_keys, v_at, 100
  );
  IF v_lost <> '{}' THEN
    PERFORM FROM chat_nest.counters AS c WHERE c.key = ANY (v_keys) ORDER BY c.key FOR NO KEY UPDATE;
    UPDATE chat_nest.counters AS c
    SET held = c.held + h.held, used = greatest(0, c.used - CASE c.kind WHEN 'window' THEN h.held ELSE 0 END)
    FROM (
      SELECT line.key, sum(line.held)::bigint AS held
      FROM chat_nest.reservations AS r, unnest(r.keys, r.kinds, r.held) AS line (key, kind, held)
      WHERE r.id = ANY (v_lost) AND line.kind <> 'rate'
      GROUP BY line.key
    ) AS h
    WHERE c.key = h.key;
    DELETE FROM chat_nest.requests AS q
    USING chat_nest.reservations AS r
    WHERE r.id = ANY (v_lost) AND q.id = r.id
      AND q.started_at = round((r.record ->> 'started_at')::double precision * 1000000)::bigint;
    UPDATE chat_nest.reservations AS r
    SET state = 'open', source = NULL, finished_at = NULL, actual = NULL
    WHERE r.id = ANY (v_lost);
  END IF;
  WITH renewed AS (
    UPDATE chat_nest.reservations AS r
    SET reserved_at = v_at, expires_at = v_at + p_lease
    FROM unnest(p_ids, p_fingerprints, p_owners) AS asked (id, fingerprint, owner)
    WHERE r.id = ANY (v_locked) AND r.id = asked.id AND r.fingerprint = asked.fingerprint AND r.state = 'open'
      AND r.owner = coalesce(asked.owner, '')
    RETURNING r.id
  )
  SELECT array_agg(renewed.id) INTO v_live FROM renewed;
  RETURN coalesce(v_live, '{}');
END $$;

-- The counters of these keys as a JSON array, as they will be once expired leases are charged.
CREATE OR REPLACE FUNCTION chat_nest.peek(p_keys text[], p_now bigint, OUT v_at bigint, OUT v_counters text)
LANGUAGE plpgsql AS $$
BEGIN
  v_at := chat_nest.now_us(p_now);
  WITH late AS (
    SELECT line.key, sum(line.held) AS held
    FROM chat_nest.reservations AS r, unnest(r.keys, r.kinds, r.held) AS line (key, kind, held)
    WHERE r.state = 'open' AND r.expires_at <= v_at AND line.kind <> 'rate'
    GROUP BY line.key
  )
  SELECT coalesce(json_agg(json_build_array(
    c.key, c.kind, c.used + CASE c.kind WHEN 'window' THEN coalesce(late.held, 0) ELSE 0 END,
    c.held - coalesce(late.held, 0), c.tat, c.ends_at
  )), '[]')::text
  INTO v_counters
  FROM chat_nest.counters AS c LEFT JOIN late ON late.key = c.key
  WHERE c.key = ANY (p_keys);
END $$;

-- Charge at most p_most expired leases. If there were fewer, delete obsolete rows: at most p_rows reservations, as many
-- rows of requests that began longer ago than p_records (NULL: none), and the obsolete ones of the p_rows counters
-- after the key p_after; v_reached is where to continue.
CREATE OR REPLACE FUNCTION chat_nest.sweep(
  p_most integer, p_retention bigint, p_after text, p_rows integer, p_now bigint,
  p_records bigint DEFAULT NULL, OUT v_charged integer, OUT v_reached text
)
LANGUAGE plpgsql AS $$
DECLARE
  v_at bigint := chat_nest.now_us(p_now);
  v_found integer;
BEGIN
  v_reached := p_after;
  v_charged := chat_nest.charge_overdue('{}', '{}', v_at, p_most);
  -- Leases that a clock ahead of this one has given last as long from now as they were to last then.
  UPDATE chat_nest.reservations AS r
  SET expires_at = r.expires_at - (r.reserved_at - v_at), reserved_at = v_at
  WHERE r.id = ANY (ARRAY(
    SELECT o.id FROM chat_nest.reservations AS o
    WHERE o.state = 'open' AND o.expires_at > v_at + 60000000 AND o.reserved_at > v_at + 60000000
    ORDER BY o.expires_at DESC LIMIT p_most FOR UPDATE SKIP LOCKED
  ));
  IF v_charged = p_most THEN
    RETURN;
  END IF;
  DELETE FROM chat_nest.reservations AS r
  WHERE r.id = ANY (ARRAY(
    SELECT o.id FROM chat_nest.reservations AS o
    WHERE o.state <> 'open' AND o.finished_at <= v_at - p_retention
    ORDER BY o.finished_at LIMIT p_rows FOR UPDATE SKIP LOCKED
  ));
  DELETE FROM chat_nest.requests AS q
  WHERE q.ctid = ANY (ARRAY(
    SELECT o.ctid FROM chat_nest.requests AS o
    WHERE o.started_at <= v_at - p_records
    ORDER BY o.started_at LIMIT p_rows FOR UPDATE SKIP LOCKED
  ));
  SELECT max(next.key), count(*) INTO v_reached, v_found FROM (
    SELECT c.key FROM chat_nest.counters AS c WHERE c.key > p_after ORDER BY c.key LIMIT p_rows
  ) AS next;
  DELETE FROM chat_nest.counters AS c
  WHERE c.key = ANY (ARRAY(
    SELECT o.key FROM chat_nest.counters AS o
    WHERE o.key > p_after AND o.key <= v_reached AND o.held = 0 AND greatest(o.tat, o.ends_at) <= v_at - p_retention
    FOR UPDATE SKIP LOCKED
  ));
  IF v_found < p_rows THEN  -- that was the last part
    v_reached := '';
  END IF;
END $$;

-- Returns the epoch; creates one in a store without it, if the caller has seen none either. It is a row among the
-- counters with a key that no line has: tat is the epoch, used is 1 if an operator has accepted it for callers that saw
-- another one. Raises CN001 if the epoch that the caller has seen is gone.
CREATE OR REPLACE FUNCTION chat_nest.guard(p_known bigint, p_new bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
  v_epoch bigint;
  v_accepted boolean;
BEGIN
  SELECT c.tat, c.used = 1 INTO v_epoch, v_accepted FROM chat_nest.counters AS c WHERE c.key = '';
  IF v_epoch IS NULL AND p_known IS NULL THEN
    INSERT INTO chat_nest.counters (key, kind, tat, ends_at) VALUES ('', 'rate', p_new, 0) ON CONFLICT DO NOTHING;
    SELECT c.tat INTO STRICT v_epoch FROM chat_nest.counters AS c WHERE c.key = '';
  ELSIF v_epoch IS NULL OR (v_epoch <> p_known AND NOT v_accepted) THEN
    RAISE EXCEPTION USING ERRCODE = 'CN001', MESSAGE = 'the store was emptied or replaced';
  END IF;
  RETURN v_epoch;
END $$;

-- Accepting an emptied store also ends the holds on the counters that are gone: a later settlement would take them from
-- counters that never had them. Nothing of it is charged. The grants end, too: they raised limits whose use is forgotten.
CREATE OR REPLACE FUNCTION chat_nest.accept(p_new bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
  v_epoch bigint;
BEGIN
  IF NOT EXISTS (SELECT FROM chat_nest.counters AS c WHERE c.key = '') THEN
    DELETE FROM chat_nest.reservations AS r WHERE r.state IN ('open', 'expired');
    PERFORM chat_nest.change_controls('[]', ARRAY['grant'], ARRAY[''], NULL, p_new, NULL);
  END IF;
  INSERT INTO chat_nest.counters AS c (key, kind, used, tat, ends_at) VALUES ('', 'rate', 1, p_new, 0)
  ON CONFLICT (key) DO UPDATE SET used = 1
  RETURNING c.tat INTO v_epoch;
  RETURN v_epoch;
END $$;

-- Controls.

-- Remove rows by kind and name (an empty name: all of the kind), then set those of p_put, an array of [kind, name,
-- value, reason, end], and add p_act to the trail. p_version is a random number by which a repeated call is recognized.
CREATE OR REPLACE FUNCTION chat_nest.change_controls(
  p_put jsonb, p_kinds text[], p_names text[], p_act jsonb, p_version bigint, p_now bigint
) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
  v_at bigint := chat_nest.now_us(p_now);
  v_known text;
BEGIN
  INSERT INTO chat_nest.controls (kind, name, value, reason) VALUES ('', '', '0', '') ON CONFLICT DO NOTHING;
  SELECT c.value INTO STRICT v_known FROM chat_nest.controls AS c WHERE c.kind = '' FOR UPDATE;  -- one at a time
  IF v_known = p_version::text THEN
    RETURN false;
  END IF;
  DELETE FROM chat_nest.controls AS c
  WHERE EXISTS (
    SELECT FROM unnest(p_kinds, p_names) AS gone (kind, name)
    WHERE gone.kind = c.kind AND (gone.name = c.name OR gone.name = '')
  );
  DELETE FROM chat_nest.controls AS c
  USING (
    SELECT o.kind, o.name FROM chat_nest.controls AS o
    WHERE o.expires_at <= v_at - 90000000000 ORDER BY o.expires_at DESC OFFSET 1000  -- as in chat_nest.core.controls
  ) AS old
  WHERE old.kind = c.kind AND old.name = c.name;
  INSERT INTO chat_nest.controls AS c (kind, name, value, reason, expires_at)
  SELECT r ->> 0, r ->> 1, r ->> 2, r ->> 3, (r ->> 4)::bigint FROM jsonb_array_elements(p_put) AS r
  ON CONFLICT (kind, name) DO UPDATE
  SET value = excluded.value, reason = excluded.reason, expires_at = excluded.expires_at;
  UPDATE chat_nest.controls AS c SET value = p_version::text WHERE c.kind = '';
  IF p_act IS NOT NULL THEN
    INSERT INTO chat_nest.acts (at, operator, act, target, reason, detail)
    VALUES (v_at, p_act ->> 'by', p_act ->> 'act', p_act ->> 'target', p_act ->> 'reason', p_act ->> 'detail');
    DELETE FROM chat_nest.acts AS a WHERE a.seq <= (SELECT max(n.seq) FROM chat_nest.acts AS n) - 10000;
  END IF;
  RETURN true;
END $$;

-- The version, and all rows, also those that have ended, or NULL if p_known is the version.
CREATE OR REPLACE FUNCTION chat_nest.watch_controls(p_known bigint, p_now bigint, OUT v_version bigint, OUT v_rows text)
LANGUAGE plpgsql AS $$
BEGIN
  SELECT c.value::bigint INTO v_version FROM chat_nest.controls AS c WHERE c.kind = '';
  v_version := coalesce(v_version, 0);
  IF v_version <> p_known THEN
    SELECT coalesce(
      json_agg(json_build_array(c.kind, c.name, c.value, c.reason, c.expires_at) ORDER BY c.kind, c.name), '[]'
    )::text
    INTO v_rows
    FROM chat_nest.controls AS c
    WHERE c.kind <> '';
  END IF;
END $$;

-- Whether this call is the first with the key for p_us microseconds. p_call is the same for a repeated call.
CREATE OR REPLACE FUNCTION chat_nest.first(p_key text, p_us bigint, p_call bigint, p_now bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
  v_at bigint := chat_nest.now_us(p_now);
  v_call bigint;
BEGIN
  DELETE FROM chat_nest.firsts AS f
  WHERE f.key = ANY (ARRAY(
    SELECT o.key FROM chat_nest.firsts AS o WHERE o.expires_at <= v_at ORDER BY o.expires_at LIMIT 10
    FOR UPDATE SKIP LOCKED
  ));
  INSERT INTO chat_nest.firsts AS f (key, call, expires_at) VALUES (p_key, p_call, v_at + p_us)
  ON CONFLICT (key) DO UPDATE SET call = excluded.call, expires_at = excluded.expires_at
  WHERE f.expires_at <= v_at;
  SELECT f.call INTO STRICT v_call FROM chat_nest.firsts AS f WHERE f.key = p_key;
  RETURN v_call = p_call;
END $$;

-- The newest acts as a JSON array.
CREATE OR REPLACE FUNCTION chat_nest.newest_acts(p_most bigint) RETURNS text
LANGUAGE sql STABLE AS $$
  SELECT coalesce(json_agg(json_build_object(
    'at', newest.at / 1e6, 'by', newest.operator, 'act', newest.act, 'target', newest.target,
    'reason', newest.reason, 'detail', newest.detail
  ) ORDER BY newest.seq DESC), '[]')::text
  FROM (SELECT * FROM chat_nest.acts ORDER BY seq DESC LIMIT p_most) AS newest
$$;

-- Set or replace reports: p_rows is an array of [kind, name, value, end]. Deletes some old ones.
CREATE OR REPLACE FUNCTION chat_nest.report(p_rows jsonb, p_now bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM chat_nest.reports AS r
  WHERE r.ctid = ANY (ARRAY(
    SELECT o.ctid FROM chat_nest.reports AS o
    WHERE o.expires_at <= chat_nest.now_us(p_now)
    ORDER BY o.expires_at LIMIT 2 * jsonb_array_length(p_rows) + 10 FOR UPDATE SKIP LOCKED
  ));
  INSERT INTO chat_nest.reports AS c (kind, name, value, expires_at)
  SELECT r ->> 0, r ->> 1, r ->> 2, (r ->> 3)::bigint FROM jsonb_array_elements(p_rows) AS r
  ORDER BY 1, 2
  ON CONFLICT (kind, name) DO UPDATE SET value = excluded.value, expires_at = excluded.expires_at;
  RETURN true;
END $$;

-- Set a report if its value is p_known, '' if there is none. Returns the value afterwards.
CREATE OR REPLACE FUNCTION chat_nest.swap(
  p_kind text, p_name text, p_known text, p_value text, p_ends bigint, p_now bigint
) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
  v_value text;
BEGIN
  INSERT INTO chat_nest.reports (kind, name, value, expires_at) VALUES (p_kind, p_name, '', 0) ON CONFLICT DO NOTHING;
  SELECT CASE WHEN r.expires_at > chat_nest.now_us(p_now) THEN r.value ELSE '' END INTO STRICT v_value
  FROM chat_nest.reports AS r WHERE r.kind = p_kind AND r.name = p_name FOR UPDATE;  -- one at a time
  IF v_value <> p_known THEN
    RETURN v_value;
  END IF;
  UPDATE chat_nest.reports AS r SET value = p_value, expires_at = p_ends WHERE r.kind = p_kind AND r.name = p_name;
  RETURN p_value;
END $$;

-- The reports of a kind, or the one with a name, as a JSON array; those that last longest first.
CREATE OR REPLACE FUNCTION chat_nest.reports(p_kind text, p_name text, p_most bigint, p_now bigint) RETURNS text
LANGUAGE sql VOLATILE AS $$
  SELECT coalesce(
    json_agg(json_build_array(found.name, found.value, found.expires_at) ORDER BY found.expires_at DESC), '[]'
  )::text
  FROM (
    SELECT r.name, r.value, r.expires_at FROM chat_nest.reports AS r
    WHERE r.kind = p_kind AND (r.name = p_name OR p_name = '') AND r.expires_at > chat_nest.now_us(p_now)
    ORDER BY r.expires_at DESC LIMIT p_most
  ) AS found
$$;
