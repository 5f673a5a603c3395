-- Amounts are integers in the line's unit. Times are Unix microseconds: to_timestamp(t / 1e6).
-- Locks are taken in one order, so that calls never wait in a circle: the claim's id (advisory), its reservation, then
-- overdue reservations (never waited for), then counters, in the order of their keys.
-- Where amounts are multiplied, the product may not fit a bigint: numeric is exact.

CREATE TABLE chat_nest.counters (
  key text COLLATE "C" PRIMARY KEY,
  kind text NOT NULL CHECK (kind IN ('window', 'rate', 'gauge')),
  used bigint NOT NULL DEFAULT 0 CHECK (used >= 0),  -- a window's
  held bigint NOT NULL DEFAULT 0 CHECK (held >= 0),  -- a window's or a gauge's
  tat bigint NOT NULL DEFAULT 0,  -- a rate's theoretical arrival time
  ends_at bigint NOT NULL  -- when a window is over
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

CREATE TABLE chat_nest.reservations (
  id text COLLATE "C" PRIMARY KEY,
  fingerprint text NOT NULL,
  state text NOT NULL CHECK (state IN ('open', 'settled', 'expired', 'released')),
  call bigint NOT NULL,  -- the call that reserved, settled or released it: the same call again gets the same answer
  output bigint NOT NULL,  -- the output tokens that were granted
  reserved_at bigint NOT NULL,
  expires_at bigint NOT NULL,
  finished_at bigint,
  source text CHECK (source IN ('reported', 'estimated', 'assumed')),
  -- One element a line; see the view reservation_lines.
  names text[] NOT NULL,
  keys text[] NOT NULL,
  units text[] NOT NULL,
  kinds text[] NOT NULL,
  held bigint[] NOT NULL,
  actual bigint[],  -- NULL while the reservation is open
  limits bigint[] NOT NULL,  -- the last three are of use for rates only
  periods bigint[] NOT NULL,
  until bigint[] NOT NULL  -- when the hold has drained
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

CREATE INDEX open_leases ON chat_nest.reservations (expires_at) WHERE state = 'open';
CREATE INDEX finished ON chat_nest.reservations (finished_at) WHERE state <> 'open';

CREATE VIEW chat_nest.reservation_lines AS
SELECT r.id, r.state, r.source, line.name, line.key, line.unit, line.kind, line.held, line.actual
FROM chat_nest.reservations AS r,
  unnest(r.names, r.keys, r.units, r.kinds, r.held, r.actual) AS line (name, key, unit, kind, held, actual);

-- Arithmetic.

CREATE FUNCTION chat_nest.now_us(p_now bigint) RETURNS bigint
LANGUAGE sql VOLATILE AS $$
  SELECT coalesce(p_now, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint)
$$;

-- What a request with this much output draws.
CREATE FUNCTION chat_nest.amount(p_fixed bigint, p_per_million bigint, p_output bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
  SELECT (p_fixed + div(p_output::numeric * p_per_million + 999999, 1000000))::bigint
$$;

-- The output that fits into the room; NULL where output is free, -1 where the fixed part alone is over.
CREATE FUNCTION chat_nest.affordable(p_room bigint, p_fixed bigint, p_per_million bigint) RETURNS numeric
LANGUAGE sql IMMUTABLE AS $$
  SELECT CASE
    WHEN p_room < p_fixed THEN -1
    WHEN p_per_million > 0 THEN div((p_room - p_fixed)::numeric * 1000000, p_per_million)
  END
$$;

-- A rate's limit times its period in microseconds is below 2^53.
CREATE FUNCTION chat_nest.gcra_cost(p_amount bigint, p_limit bigint, p_period bigint) RETURNS numeric
LANGUAGE sql IMMUTABLE AS $$
  SELECT (p_amount / p_limit)::numeric * (p_period * 1000000)
    + (p_amount % p_limit * p_period * 1000000 + p_limit - 1) / p_limit
$$;

CREATE FUNCTION chat_nest.gcra_room(p_tat bigint, p_at bigint, p_limit bigint, p_period bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
  SELECT greatest(0, p_at + p_period * 1000000 - greatest(p_tat, p_at)) * p_limit / (p_period * 1000000)
$$;

CREATE FUNCTION chat_nest.gcra_take(p_tat bigint, p_at bigint, p_cost numeric) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
  SELECT least(greatest(p_tat, p_at) + p_cost, 9007199254740991)::bigint
$$;

CREATE FUNCTION chat_nest.gcra_give(p_tat bigint, p_at bigint, p_cost numeric, p_until bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE AS $$
  SELECT p_tat - least(p_cost, greatest(0, p_until - p_at))::bigint
$$;

-- Steps. The caller has locked what they change, except where they say that they lock it.

-- Charge at most p_most leases that have run out, and besides them p_own, which the caller has locked and knows to be
-- overdue. What another call is busy with is left to it. Locks the counters of these and p_keys, if there are any such
-- leases: the caller can then lock p_keys again.
CREATE FUNCTION chat_nest.charge_overdue(p_own text[], p_keys text[], p_at bigint, p_most integer) RETURNS integer
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
  SET state = 'expired', source = 'assumed', finished_at = p_at, actual = r.held
  WHERE r.id = ANY (v_late);
  RETURN cardinality(v_late);
END $$;

-- Turn the holds of an open or expired reservation into p_amounts. Locks its counters. A counter that is missing is a
-- window's that was over long ago, or a rate's that had drained.
CREATE FUNCTION chat_nest.finish(
  p_known chat_nest.reservations, p_state text, p_source text, p_amounts bigint[], p_call bigint, p_at bigint
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
        THEN chat_nest.gcra_take(c.tat, p_at, chat_nest.gcra_cost(h.amount - h.held, h.max, h.period))
      ELSE chat_nest.gcra_give(
        c.tat, p_at,
        chat_nest.gcra_cost(h.held, h.max, h.period) - chat_nest.gcra_cost(h.amount, h.max, h.period),
        h.until
      )
    END
  FROM unnest(
    p_known.keys, p_known.kinds, p_known.held, p_amounts, p_known.limits, p_known.periods, p_known.until
  ) AS h (key, kind, held, amount, max, period, until)
  WHERE c.key = h.key;
  UPDATE chat_nest.reservations AS r
  SET state = p_state, source = p_source, finished_at = p_at, actual = p_amounts, call = p_call
  WHERE r.id = p_known.id;
END $$;

-- Lock the id, which may not exist yet, and its reservation.
CREATE FUNCTION chat_nest.find(p_id text) RETURNS chat_nest.reservations
LANGUAGE plpgsql AS $$
DECLARE
  v_known chat_nest.reservations;
BEGIN
  PERFORM pg_advisory_xact_lock(hashtextextended(p_id, 7160921));  -- a seed of our own: others lock here too
  SELECT * INTO v_known FROM chat_nest.reservations AS r WHERE r.id = p_id FOR UPDATE;
  RETURN v_known;
END $$;

-- What the store calls. p_now is NULL for the server's clock.

-- v_outcome is granted, refused, conflict or, of a duplicate, the state. Of a refusal, v_line counts from 0, v_room has
-- one element, and v_mark is the rate's tat, or when the first lease on the gauge runs out.
CREATE FUNCTION chat_nest.reserve(
  p_id text, p_fingerprint text, p_call bigint, p_most bigint, p_least bigint, p_lease bigint, p_now bigint,
  p_names text[], p_keys text[], p_units text[], p_kinds text[],
  p_limits bigint[], p_fixed bigint[], p_per_million bigint[], p_periods bigint[], p_ends_at bigint[],
  OUT v_outcome text, OUT v_output bigint, OUT v_room bigint[], OUT v_line integer, OUT v_at bigint, OUT v_mark bigint
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
  IF v_known.id IS NOT NULL THEN
    IF v_known.state = 'open' AND v_known.expires_at <= v_at THEN
      v_known.state := 'expired';
      PERFORM chat_nest.charge_overdue(ARRAY[p_id], '{}', v_at, 100);
    ELSE
      PERFORM chat_nest.charge_overdue('{}', '{}', v_at, 100);
    END IF;
    v_outcome := CASE WHEN v_known.fingerprint = p_fingerprint THEN v_known.state ELSE 'conflict' END;
    v_output := CASE v_known.state WHEN 'released' THEN 0 ELSE v_known.output END;
    IF v_outcome = 'open' AND v_known.call = p_call THEN  -- the answer was lost on its way
      v_outcome := 'granted';
      v_room := ARRAY(
        SELECT CASE l.kind
          WHEN 'request' THEN l.max - chat_nest.amount(l.fixed, l.per_million, v_output)
          WHEN 'rate' THEN chat_nest.gcra_room(c.tat, v_at, l.max, l.period)
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
    SELECT c.key, c.used, c.held, c.tat FROM chat_nest.counters AS c
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
    FROM unnest(p_names, p_keys, p_units, p_kinds, p_limits, p_fixed, p_per_million, p_periods)
      WITH ORDINALITY AS l (name, key, unit, kind, max, fixed, per_million, period, number)
  ), drawn AS (
    UPDATE chat_nest.counters AS c
    SET
      held = c.held + CASE l.kind WHEN 'rate' THEN 0 ELSE l.amount END,
      tat = CASE l.kind
        WHEN 'rate' THEN chat_nest.gcra_take(c.tat, v_at, chat_nest.gcra_cost(l.amount, l.max, l.period))
        ELSE c.tat
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
  INSERT INTO chat_nest.reservations (
    id, fingerprint, state, call, output, reserved_at, expires_at,
    names, keys, units, kinds, held, limits, periods, until
  ) VALUES (
    p_id, p_fingerprint, 'open', p_call, v_output, v_at, v_at + p_lease,
    coalesce(v_names, '{}'), v_counted, coalesce(v_units, '{}'), coalesce(v_kinds, '{}'), coalesce(v_held, '{}'),
    coalesce(v_limits, '{}'), coalesce(v_periods, '{}'), coalesce(v_until, '{}')
  );
  v_outcome := 'granted';
  v_room := coalesce(v_room, '{}');
END $$;

-- p_actual is an object of amounts by unit, or NULL.
CREATE FUNCTION chat_nest.settle(
  p_id text, p_fingerprint text, p_call bigint, p_actual jsonb, p_source text, p_now bigint
) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
  v_known chat_nest.reservations := chat_nest.find(p_id);
  v_at bigint := chat_nest.now_us(p_now);
  v_overdue boolean := coalesce(v_known.state = 'open' AND v_known.expires_at <= v_at, false);
  v_own text[] := CASE WHEN v_overdue THEN ARRAY[p_id] ELSE '{}' END;
  v_amounts bigint[];
BEGIN
  IF v_known.id IS NULL OR v_known.fingerprint <> p_fingerprint OR v_known.state IN ('settled', 'released') THEN
    PERFORM chat_nest.charge_overdue(v_own, '{}', v_at, 100);
    -- If this call settled it, the answer was lost on its way.
    RETURN coalesce(
      v_known.fingerprint = p_fingerprint AND v_known.state = 'settled' AND v_known.call = p_call, false
    );
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
  END IF;
  PERFORM chat_nest.finish(v_known, 'settled', p_source, v_amounts, p_call, v_at);
  RETURN true;
END $$;

CREATE FUNCTION chat_nest.release(p_id text, p_fingerprint text, p_call bigint, p_now bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
  v_known chat_nest.reservations := chat_nest.find(p_id);
  v_at bigint := chat_nest.now_us(p_now);
  v_overdue boolean := coalesce(v_known.state = 'open' AND v_known.expires_at <= v_at, false);
  v_own text[] := CASE WHEN v_overdue THEN ARRAY[p_id] ELSE '{}' END;
  v_live boolean := coalesce(
    v_known.fingerprint = p_fingerprint AND v_known.state = 'open' AND NOT v_overdue, false
  );
BEGIN
  PERFORM chat_nest.charge_overdue(v_own, CASE WHEN v_live THEN v_known.keys ELSE '{}' END, v_at, 100);
  IF v_live THEN
    PERFORM chat_nest.finish(
      v_known, 'released', NULL, array_fill(0::bigint, ARRAY[cardinality(v_known.keys)]), p_call, v_at
    );
    RETURN true;
  END IF;
  IF v_known.id IS NULL THEN  -- it can't be reserved from now on
    INSERT INTO chat_nest.reservations (
      id, fingerprint, state, call, output, reserved_at, expires_at, finished_at,
      names, keys, units, kinds, held, actual, limits, periods, until
    ) VALUES (
      p_id, p_fingerprint, 'released', p_call, 0, v_at, v_at, v_at, '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}'
    );
    RETURN false;
  END IF;
  -- If this call gave it back, the answer was lost on its way.
  RETURN v_known.fingerprint = p_fingerprint AND v_known.state = 'released' AND v_known.call = p_call
    AND v_known.expires_at > v_known.reserved_at;
END $$;

-- Returns the ids that are live.
CREATE FUNCTION chat_nest.extend(p_ids text[], p_fingerprints text[], p_lease bigint, p_now bigint) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
  v_at bigint;
  v_live text[];
BEGIN
  PERFORM FROM chat_nest.reservations AS r WHERE r.id = ANY (p_ids) ORDER BY r.id FOR UPDATE;
  v_at := chat_nest.now_us(p_now);
  PERFORM chat_nest.charge_overdue(
    ARRAY(
      SELECT r.id FROM chat_nest.reservations AS r
      WHERE r.id = ANY (p_ids) AND r.state = 'open' AND r.expires_at <= v_at
    ),
    '{}', v_at, 100
  );
  WITH renewed AS (
    UPDATE chat_nest.reservations AS r
    SET expires_at = greatest(r.expires_at, v_at + p_lease)
    FROM unnest(p_ids, p_fingerprints) AS asked (id, fingerprint)
    WHERE r.id = asked.id AND r.fingerprint = asked.fingerprint AND r.state = 'open'
    RETURNING r.id
  )
  SELECT array_agg(renewed.id) INTO v_live FROM renewed;
  RETURN coalesce(v_live, '{}');
END $$;

-- The counters of these keys as a JSON array, as they will be when the leases that have run out are charged.
CREATE FUNCTION chat_nest.peek(p_keys text[], p_now bigint, OUT v_at bigint, OUT v_counters text)
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

-- Charge at most p_most leases that have run out. If there were fewer, delete rows that nobody asks for any more: at
-- most p_rows reservations, and those of the p_rows counters behind the key p_after that are without meaning; v_reached
-- is where to go on.
CREATE FUNCTION chat_nest.sweep(
  p_most integer, p_retention bigint, p_after text, p_rows integer, p_now bigint,
  OUT v_charged integer, OUT v_reached text
)
LANGUAGE plpgsql AS $$
DECLARE
  v_at bigint := chat_nest.now_us(p_now);
  v_found integer;
BEGIN
  v_reached := p_after;
  v_charged := chat_nest.charge_overdue('{}', '{}', v_at, p_most);
  IF v_charged = p_most THEN
    RETURN;
  END IF;
  DELETE FROM chat_nest.reservations AS r
  WHERE r.id = ANY (ARRAY(
    SELECT o.id FROM chat_nest.reservations AS o
    WHERE o.state <> 'open' AND o.finished_at <= v_at - p_retention
    ORDER BY o.finished_at LIMIT p_rows FOR UPDATE SKIP LOCKED
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
