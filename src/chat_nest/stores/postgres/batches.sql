-- Many calls of one worker in one transaction: one round trip, one commit, and each counter is written once.
-- They do the ordinary cases. What they leave out, in one word `alone`, changes nothing, and the store then calls the
-- function for one claim. Locks are taken in the order that functions.sql names, and each kind in the order of its keys.

-- Reserve claims one after another. Claim i has the lines from p_firsts[i] to the one before p_firsts[i + 1]; v_rooms has
-- an element a line, the other results an element a claim, with the meaning that they have in `reserve`.
-- The counters are read into arrays, drawn on there, and written once.
CREATE OR REPLACE FUNCTION chat_nest.reserve_all(
  p_ids text[], p_fingerprints text[], p_calls bigint[], p_most bigint[], p_least bigint[], p_leases bigint[],
  p_owners text[], p_records jsonb, p_recorded boolean, p_now bigint, p_firsts integer[],
  p_names text[], p_keys text[], p_units text[], p_kinds text[],
  p_limits bigint[], p_fixed bigint[], p_per_million bigint[], p_periods bigint[], p_ends_at bigint[],
  OUT v_outcomes text[], OUT v_outputs bigint[], OUT v_rooms bigint[], OUT v_lines integer[], OUT v_at bigint,
  OUT v_marks bigint[]
)
LANGUAGE plpgsql AS $$
DECLARE
  v_known text[];
  v_counted text[];
  -- The counters.
  v_keys text[];
  v_used bigint[];
  v_held bigint[];
  v_tats bigint[];
  v_ends_at bigint[];
  v_places integer[];  -- by line: where its counter is in these arrays; NULL if it has none
  -- The claim and the line that are being looked at.
  v_output bigint;
  v_affordable numeric;
  v_amount bigint;
  v_room bigint;
  v_place integer;
  v_line integer;
  -- The granted claims, for their reservations: by claim its number and output, by counted line the rest.
  v_granted integer[] := '{}';
  v_amounts bigint[] := array_fill(NULL::bigint, ARRAY[cardinality(p_keys)]);
  v_until bigint[] := array_fill(0::bigint, ARRAY[cardinality(p_keys)]);
BEGIN
  PERFORM pg_advisory_xact_lock(id.lock)
  FROM (SELECT hashtextextended(asked, 7160921) AS lock FROM unnest(p_ids) AS asked ORDER BY 1) AS id;
  v_at := chat_nest.now_us(p_now);
  v_known := ARRAY(SELECT r.id FROM chat_nest.reservations AS r WHERE r.id = ANY (p_ids));
  v_outcomes := array_fill('alone'::text, ARRAY[cardinality(p_ids)]);
  v_outputs := array_fill(0::bigint, ARRAY[cardinality(p_ids)]);
  v_rooms := array_fill(0::bigint, ARRAY[cardinality(p_keys)]);
  v_lines := array_fill(0, ARRAY[cardinality(p_ids)]);
  v_marks := array_fill(NULL::bigint, ARRAY[cardinality(p_ids)]);
  IF v_known @> p_ids THEN
    RETURN;
  END IF;
  v_counted := ARRAY(SELECT DISTINCT l.key FROM unnest(p_keys, p_kinds) AS l (key, kind) WHERE l.kind <> 'request');
  INSERT INTO chat_nest.counters (key, kind, ends_at)
  SELECT DISTINCT ON (l.key COLLATE "C") l.key, l.kind, l.ends_at
  FROM unnest(p_keys, p_kinds, p_ends_at) AS l (key, kind, ends_at)
  WHERE l.kind <> 'request' AND NOT EXISTS (SELECT FROM chat_nest.counters AS c WHERE c.key = l.key)
  ORDER BY l.key COLLATE "C"
  ON CONFLICT DO NOTHING;
  PERFORM chat_nest.charge_overdue('{}', v_counted, v_at, 100);
  SELECT array_agg(c.key), array_agg(c.used), array_agg(c.held), array_agg(c.tat), array_agg(c.ends_at)
  INTO v_keys, v_used, v_held, v_tats, v_ends_at
  FROM (
    SELECT * FROM chat_nest.counters AS o WHERE o.key = ANY (v_counted) ORDER BY o.key FOR NO KEY UPDATE
  ) AS c;
  IF cardinality(v_counted) > coalesce(cardinality(v_keys), 0) THEN
    RAISE serialization_failure USING MESSAGE = 'a counter was purged at this moment';
  END IF;
  SELECT array_agg(c.place ORDER BY l.number) INTO v_places
  FROM unnest(p_keys, p_kinds) WITH ORDINALITY AS l (key, kind, number)
  LEFT JOIN unnest(v_keys) WITH ORDINALITY AS c (key, place) ON c.key = l.key AND l.kind <> 'request';
  IF EXISTS (
    SELECT FROM unnest(p_kinds, v_places) AS l (kind, place)
    WHERE l.kind = 'rate' AND v_ends_at[l.place] - v_at > 1000000
  ) THEN
    RETURN;  -- the clock was set back
  END IF;

  FOR i IN 1 .. cardinality(p_ids) LOOP
    CONTINUE WHEN p_ids[i] = ANY (v_known);
    v_output := p_most[i];
    v_line := NULL;
    FOR n IN p_firsts[i] .. p_firsts[i + 1] - 1 LOOP
      v_place := v_places[n];
      v_room := CASE p_kinds[n]
        WHEN 'request' THEN p_limits[n]
        WHEN 'rate' THEN chat_nest.gcra_room(v_tats[v_place], v_at, p_limits[n], p_periods[n])
        ELSE greatest(0, p_limits[n] - v_used[v_place] - v_held[v_place])
      END;
      v_affordable := chat_nest.affordable(v_room, p_fixed[n], p_per_million[n]);
      IF v_affordable < p_least[i] THEN
        v_line := n;
        EXIT;
      END IF;
      v_output := least(v_output, v_affordable);
    END LOOP;

    IF v_line IS NOT NULL THEN
      v_outcomes[i] := 'refused';
      v_lines[i] := v_line - p_firsts[i];
      v_rooms[v_line] := v_room;
      IF p_kinds[v_line] = 'rate' THEN
        v_marks[i] := v_tats[v_place];
      ELSIF p_kinds[v_line] = 'gauge' THEN
        v_marks[i] := (  -- of the reservations before this batch, and of those in it
          SELECT min(r.ends_at) FROM (
            (SELECT o.expires_at AS ends_at FROM chat_nest.reservations AS o
            WHERE o.state = 'open' AND p_keys[v_line] = ANY (o.keys) ORDER BY o.expires_at LIMIT 1)
            UNION ALL
            SELECT v_at + p_leases[g.claim] FROM unnest(v_granted) AS g (claim)
            WHERE v_places[v_line] = ANY (v_places[p_firsts[g.claim] : p_firsts[g.claim + 1] - 1])
          ) AS r
        );
      END IF;
      CONTINUE;
    END IF;

    v_outcomes[i] := 'granted';
    v_outputs[i] := v_output;
    v_granted := v_granted || i;
    v_known := v_known || p_ids[i];  -- the same id may come again in this batch
    FOR n IN p_firsts[i] .. p_firsts[i + 1] - 1 LOOP
      v_place := v_places[n];
      v_amount := chat_nest.amount(p_fixed[n], p_per_million[n], v_output);
      IF p_kinds[n] = 'request' THEN
        v_rooms[n] := p_limits[n] - v_amount;
        CONTINUE;
      END IF;
      v_amounts[n] := v_amount;
      IF p_kinds[n] = 'rate' THEN
        v_tats[v_place] := chat_nest.gcra_take(
          v_tats[v_place], v_at, chat_nest.gcra_cost(v_amount, p_limits[n], p_periods[n])
        );
        v_ends_at[v_place] := greatest(v_ends_at[v_place], v_at);
        v_until[n] := v_tats[v_place];
        v_rooms[n] := chat_nest.gcra_room(v_tats[v_place], v_at, p_limits[n], p_periods[n]);
      ELSE
        v_held[v_place] := v_held[v_place] + v_amount;
        v_rooms[n] := p_limits[n] - v_used[v_place] - v_held[v_place];
        v_ends_at[v_place] := greatest(v_ends_at[v_place], p_ends_at[n]);
      END IF;
    END LOOP;
  END LOOP;

  UPDATE chat_nest.counters AS c
  SET held = drawn.held, tat = drawn.tat, ends_at = drawn.ends_at
  FROM unnest(v_keys, v_held, v_tats, v_ends_at) AS drawn (key, held, tat, ends_at)
  WHERE c.key = drawn.key AND (c.held, c.tat, c.ends_at) <> (drawn.held, drawn.tat, drawn.ends_at);
  INSERT INTO chat_nest.reservations (
    id, fingerprint, state, call, output, reserved_at, expires_at,
    names, keys, units, kinds, held, limits, periods, until, owner, record, recorded
  )
  SELECT
    p_ids[i], p_fingerprints[i], 'open', p_calls[i], v_outputs[i], v_at, v_at + p_leases[i],
    coalesce(l.names, '{}'), coalesce(l.keys, '{}'), coalesce(l.units, '{}'), coalesce(l.kinds, '{}'),
    coalesce(l.held, '{}'), coalesce(l.limits, '{}'), coalesce(l.periods, '{}'), coalesce(l.until, '{}'),
    p_owners[i], nullif(p_records -> (i - 1), 'null'), p_recorded
  FROM unnest(v_granted) AS i, LATERAL (
    SELECT
      array_agg(p_names[n]) AS names, array_agg(p_keys[n]) AS keys, array_agg(p_units[n]) AS units,
      array_agg(p_kinds[n]) AS kinds, array_agg(v_amounts[n]) AS held, array_agg(p_limits[n]) AS limits,
      array_agg(p_periods[n]) AS periods, array_agg(v_until[n]) AS until
    FROM generate_series(p_firsts[i], p_firsts[i + 1] - 1) AS n
    WHERE v_amounts[n] IS NOT NULL
  ) AS l;
END $$;

-- Settle open reservations, and return the ids of those that it settled. It leaves out what is not open, overdue, of
-- another owner, or above its hold on a rate: without these, the order of the settlements does not matter, and what
-- they change on a counter is one sum.
CREATE OR REPLACE FUNCTION chat_nest.settle_all(
  p_ids text[], p_fingerprints text[], p_owners text[], p_calls bigint[], p_actuals jsonb, p_sources text[],
  p_records jsonb, p_now bigint
) RETURNS text[]
LANGUAGE plpgsql AS $$
DECLARE
  v_locked text[];  -- one that is reserved from now on is not: to wait for it would be out of order
  v_at bigint;
  v_ids text[];
  v_keys text[];
BEGIN
  v_locked := ARRAY(SELECT r.id FROM chat_nest.reservations AS r WHERE r.id = ANY (p_ids) ORDER BY r.id FOR UPDATE);
  v_at := chat_nest.now_us(p_now);
  WITH asked AS (
    SELECT DISTINCT ON (s.id) s.*, nullif(p_records -> (s.number - 1)::integer, 'null') AS record, ARRAY(
      SELECT coalesce((p_actuals -> (s.number - 1)::integer ->> h.unit)::bigint, h.held)
      FROM unnest(r.units, r.held) WITH ORDINALITY AS h (unit, held, number)
      ORDER BY h.number
    ) AS amounts
    FROM unnest(p_ids, p_fingerprints, p_owners, p_calls, p_sources)
      WITH ORDINALITY AS s (id, fingerprint, owner, call, source, number)
    JOIN chat_nest.reservations AS r ON r.id = s.id
    WHERE r.id = ANY (v_locked) AND r.state = 'open' AND r.expires_at > v_at
      AND r.fingerprint = s.fingerprint AND r.owner = s.owner
    ORDER BY s.id, s.number  -- of two settlements of one id the first counts
  ), settled AS (
    UPDATE chat_nest.reservations AS r
    SET state = 'settled', source = a.source, finished_at = v_at, actual = a.amounts, call = a.call,
      record = CASE
        WHEN a.record IS NULL THEN r.record
        WHEN r.record IS NULL THEN a.record
        ELSE a.record || jsonb_build_object('started_at', r.record -> 'started_at')
      END
    FROM asked AS a
    WHERE r.id = a.id AND NOT EXISTS (
      SELECT FROM unnest(r.kinds, r.held, a.amounts) AS h (kind, held, amount)
      WHERE h.kind = 'rate' AND h.amount > h.held
    )
    RETURNING r.id
  )
  SELECT array_agg(s.id) INTO v_ids FROM settled AS s;
  IF v_ids IS NULL THEN
    RETURN '{}';
  END IF;

  v_keys := ARRAY(
    SELECT DISTINCT h.key
    FROM chat_nest.reservations AS r, unnest(r.keys, r.kinds, r.held, r.actual) AS h (key, kind, held, amount)
    WHERE r.id = ANY (v_ids) AND NOT (h.kind = 'rate' AND h.amount = h.held)
  );
  PERFORM chat_nest.charge_overdue('{}', v_keys, v_at, 100);
  PERFORM FROM chat_nest.counters AS c WHERE c.key = ANY (v_keys) ORDER BY c.key FOR NO KEY UPDATE;
  UPDATE chat_nest.counters AS c
  SET
    used = c.used + sums.used,
    held = c.held - sums.held,
    tat = chat_nest.gcra_seen(c.tat, c.ends_at, v_at) - sums.given,
    ends_at = CASE c.kind WHEN 'rate' THEN chat_nest.gcra_changed(c.ends_at, v_at) ELSE c.ends_at END
  FROM (
    SELECT
      h.key,
      coalesce(sum(h.amount) FILTER (WHERE h.kind = 'window'), 0)::bigint AS used,
      coalesce(sum(h.held) FILTER (WHERE h.kind <> 'rate'), 0)::bigint AS held,
      coalesce(sum(least(
        chat_nest.gcra_cost(h.held, h.max, h.period) - chat_nest.gcra_cost(h.amount, h.max, h.period),
        greatest(0, h.until - v_at)
      )) FILTER (WHERE h.kind = 'rate'), 0)::bigint AS given
    FROM chat_nest.reservations AS r,
      unnest(r.keys, r.kinds, r.held, r.actual, r.limits, r.periods, r.until)
        AS h (key, kind, held, amount, max, period, until)
    WHERE r.id = ANY (v_ids) AND h.key = ANY (v_keys)
    GROUP BY h.key
  ) AS sums
  WHERE c.key = sums.key;
  PERFORM chat_nest.post(v_ids);
  RETURN v_ids;
END $$;
