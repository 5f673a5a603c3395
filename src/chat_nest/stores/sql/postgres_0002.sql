-- What is kept of requests, and whose a reservation is. Amounts, times and the order of locks as before: a row of
-- `requests` is written last, by whoever holds its reservation.
-- Workers of the version before go on working meanwhile: they call these functions without what is new.

ALTER TABLE chat_nest.reservations
  ADD COLUMN owner text NOT NULL DEFAULT '',  -- who was granted it
  ADD COLUMN record jsonb,  -- the claim's until it is settled
  ADD COLUMN recorded boolean NOT NULL DEFAULT true;  -- whether it gets a row in `requests`

-- One row for each request that was settled or whose lease expired; a late settlement corrects it. An id may come
-- again when its reservation is purged: that is another request.
CREATE TABLE chat_nest.requests (
  started_at bigint NOT NULL,
  id text COLLATE "C" NOT NULL,  -- the reservation's
  run text NOT NULL,  -- the id that the client was told
  caller text NOT NULL,  -- the hash of the caller's id
  group_name text NOT NULL,
  profile text NOT NULL,
  provider text NOT NULL,
  model text NOT NULL,
  seconds double precision NOT NULL,
  first_token_seconds double precision,
  input_tokens bigint NOT NULL,  -- all of them: those read from and written to a cache are among them
  output_tokens bigint NOT NULL,  -- all of them: reasoning tokens are among them
  cached_input_tokens bigint NOT NULL,
  cache_write_tokens bigint NOT NULL,
  reasoning_tokens bigint NOT NULL,
  cost_nanousd bigint,  -- NULL where the price is not known
  price text NOT NULL,  -- whose price, and of when
  source text NOT NULL CHECK (source IN ('reported', 'estimated', 'assumed')),
  ending text NOT NULL,  -- a finish reason, the code of an error, or lost
  PRIMARY KEY (started_at, id)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

-- Whoever may use the reservations may use the requests.
DO $$
DECLARE
  v_granted record;
BEGIN
  FOR v_granted IN
    SELECT a.privilege_type AS what, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS whom
    FROM pg_class AS c, aclexplode(c.relacl) AS a
    WHERE c.oid = 'chat_nest.reservations'::regclass AND a.grantee <> c.relowner
  LOOP
    EXECUTE format('GRANT %s ON chat_nest.requests TO %s', v_granted.what, v_granted.whom);
  END LOOP;
END $$;

-- Steps.

-- The record of a request of which nothing more is known: the whole hold was charged.
CREATE FUNCTION chat_nest.lost(p_known chat_nest.reservations) RETURNS jsonb
LANGUAGE sql IMMUTABLE AS $$
  SELECT p_known.record || jsonb_build_object(
    'usage', p_known.record -> 'usage' || jsonb_build_object('output_tokens', p_known.output),
    'cost', p_known.held[array_position(p_known.units, 'nanousd')]
  )
$$;

-- Write the row of each of these requests that has a record. The caller has locked their reservations.
CREATE FUNCTION chat_nest.post(p_ids text[]) RETURNS void
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

-- Charge at most p_most leases that have run out, and besides them p_own, which the caller has locked and knows to be
-- overdue. What another call is busy with is left to it. Locks the counters of these and p_keys, if there are any such
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

DROP FUNCTION chat_nest.finish(chat_nest.reservations, text, text, bigint[], bigint, bigint);

-- Turn the holds of an open or expired reservation into p_amounts. Locks its counters. A counter that is missing is a
-- window's that was over long ago, or a rate's that had drained.
CREATE FUNCTION chat_nest.finish(
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
  SET state = p_state, source = p_source, finished_at = p_at, actual = p_amounts, call = p_call,
    record = p_record
  WHERE r.id = p_known.id;
  IF p_record IS NOT NULL THEN
    PERFORM chat_nest.post(ARRAY[p_known.id]);
  END IF;
END $$;

-- What the store calls. p_now is NULL for the server's clock.

-- v_outcome is granted, refused, conflict or, of a duplicate, the state. Of a refusal, v_line counts from 0, v_room has
-- one element, and v_mark is the rate's tat, or when the first lease on the gauge runs out.
CREATE FUNCTION chat_nest.reserve(
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
  IF v_known.id IS NOT NULL THEN
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
    names, keys, units, kinds, held, limits, periods, until, owner, record, recorded
  ) VALUES (
    p_id, p_fingerprint, 'open', p_call, v_output, v_at, v_at + p_lease,
    coalesce(v_names, '{}'), v_counted, coalesce(v_units, '{}'), coalesce(v_kinds, '{}'), coalesce(v_held, '{}'),
    coalesce(v_limits, '{}'), coalesce(v_periods, '{}'), coalesce(v_until, '{}'), p_owner, p_record, p_recorded
  );
  v_outcome := 'granted';
  v_room := coalesce(v_room, '{}');
END $$;

-- For workers of the version before.
CREATE OR REPLACE FUNCTION chat_nest.reserve(
  p_id text, p_fingerprint text, p_call bigint, p_most bigint, p_least bigint, p_lease bigint, p_now bigint,
  p_names text[], p_keys text[], p_units text[], p_kinds text[],
  p_limits bigint[], p_fixed bigint[], p_per_million bigint[], p_periods bigint[], p_ends_at bigint[],
  OUT v_outcome text, OUT v_output bigint, OUT v_room bigint[], OUT v_line integer, OUT v_at bigint, OUT v_mark bigint
)
LANGUAGE plpgsql AS $$
BEGIN
  SELECT r.v_outcome, r.v_output, r.v_room, r.v_line, r.v_at, r.v_mark
  INTO v_outcome, v_output, v_room, v_line, v_at, v_mark
  FROM chat_nest.reserve(
    p_id, p_fingerprint, p_call, p_most, p_least, p_lease, p_now, p_names, p_keys, p_units, p_kinds,
    p_limits, p_fixed, p_per_million, p_periods, p_ends_at, '', NULL, true
  ) AS r;
END $$;

DROP FUNCTION chat_nest.settle(text, text, bigint, jsonb, text, bigint);

-- p_actual is an object of amounts by unit, or NULL.
CREATE FUNCTION chat_nest.settle(
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
  ELSIF v_known.record IS NOT NULL THEN  -- it began when it began: the row of a lost request is found by that
    p_record := p_record || jsonb_build_object('started_at', v_known.record -> 'started_at');
  END IF;
  PERFORM chat_nest.finish(v_known, 'settled', p_source, v_amounts, p_call, v_at, p_record);
  RETURN true;
END $$;

DROP FUNCTION chat_nest.release(text, text, bigint, bigint);

CREATE FUNCTION chat_nest.release(
  p_id text, p_fingerprint text, p_call bigint, p_now bigint, p_owner text DEFAULT ''
) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
  v_known chat_nest.reservations := chat_nest.find(p_id);
  v_at bigint := chat_nest.now_us(p_now);
  v_overdue boolean := coalesce(v_known.state = 'open' AND v_known.expires_at <= v_at, false);
  v_own text[] := CASE WHEN v_overdue THEN ARRAY[p_id] ELSE '{}' END;
  v_its boolean := coalesce(v_known.fingerprint = p_fingerprint AND v_known.owner = p_owner, false);
  v_live boolean := v_its AND v_known.state = 'open' AND NOT v_overdue;
BEGIN
  PERFORM chat_nest.charge_overdue(v_own, CASE WHEN v_live THEN v_known.keys ELSE '{}' END, v_at, 100);
  IF v_live THEN
    PERFORM chat_nest.finish(
      v_known, 'released', NULL, array_fill(0::bigint, ARRAY[cardinality(v_known.keys)]), p_call, v_at, NULL
    );
    RETURN true;
  END IF;
  IF v_known.id IS NULL THEN  -- it can't be reserved from now on
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

DROP FUNCTION chat_nest.extend(text[], text[], bigint, bigint);

-- Returns the ids that are live.
CREATE FUNCTION chat_nest.extend(
  p_ids text[], p_fingerprints text[], p_lease bigint, p_now bigint, p_owners text[] DEFAULT '{}'
) RETURNS text[]
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
    FROM unnest(p_ids, p_fingerprints, p_owners) AS asked (id, fingerprint, owner)
    WHERE r.id = asked.id AND r.fingerprint = asked.fingerprint AND r.state = 'open'
      AND r.owner = coalesce(asked.owner, '')
    RETURNING r.id
  )
  SELECT array_agg(renewed.id) INTO v_live FROM renewed;
  RETURN coalesce(v_live, '{}');
END $$;

DROP FUNCTION chat_nest.sweep(integer, bigint, text, integer, bigint);

-- Charge at most p_most leases that have run out. If there were fewer, delete rows that nobody asks for any more: at
-- most p_rows reservations, as many rows of requests that began longer ago than p_records (NULL: none), and those of the
-- p_rows counters behind the key p_after that are without meaning; v_reached is where to go on.
CREATE FUNCTION chat_nest.sweep(
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
