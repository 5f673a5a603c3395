-- The tables of a new database. Amounts are integers in the line's unit; times are Unix microseconds: to_timestamp(t / 1e6).

CREATE TABLE chat_nest.counters (
  key text COLLATE "C" PRIMARY KEY,
  kind text NOT NULL CHECK (kind IN ('window', 'rate', 'gauge')),
  used bigint NOT NULL DEFAULT 0 CHECK (used >= 0),  -- a window's
  held bigint NOT NULL DEFAULT 0 CHECK (held >= 0),  -- a window's or a gauge's
  tat bigint NOT NULL DEFAULT 0,  -- a rate's theoretical arrival time
  ends_at bigint NOT NULL  -- when a window is over; when a rate's tat was last changed
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

CREATE TABLE chat_nest.reservations (
  id text COLLATE "C" PRIMARY KEY,
  fingerprint text NOT NULL,
  state text NOT NULL CHECK (state IN ('open', 'settled', 'expired', 'released')),
  call bigint NOT NULL,  -- the call that reserved, settled or released it: the same call again gets the same answer
  output bigint NOT NULL,  -- the output tokens that were granted
  reserved_at bigint NOT NULL,  -- or when its lease was renewed last
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
  until bigint[] NOT NULL,  -- when the hold has drained
  owner text NOT NULL DEFAULT '',  -- the caller that was granted it
  record jsonb,  -- the claim's until it is settled
  recorded boolean NOT NULL DEFAULT true  -- whether it gets a row in `requests`
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

CREATE INDEX open_leases ON chat_nest.reservations (expires_at) WHERE state = 'open';
CREATE INDEX finished ON chat_nest.reservations (finished_at) WHERE state <> 'open';

CREATE VIEW chat_nest.reservation_lines AS
SELECT r.id, r.state, r.source, line.name, line.key, line.unit, line.kind, line.held, line.actual
FROM chat_nest.reservations AS r,
  unnest(r.names, r.keys, r.units, r.kinds, r.held, r.actual) AS line (name, key, unit, kind, held, actual);

-- One row for each request that was settled or whose lease expired; a late settlement corrects it. After a reservation
-- is purged, its id may come again: that is another request.
CREATE TABLE chat_nest.requests (
  started_at bigint NOT NULL,
  id text COLLATE "C" NOT NULL,  -- the reservation's
  run text NOT NULL,  -- the id that the client received
  caller text NOT NULL,  -- the hash of the caller's id
  group_name text NOT NULL,
  profile text NOT NULL,
  provider text NOT NULL,
  model text NOT NULL,
  seconds double precision NOT NULL,
  first_token_seconds double precision,
  input_tokens bigint NOT NULL,  -- all of them, including those read from and written to a cache
  output_tokens bigint NOT NULL,  -- all of them, including reasoning tokens
  cached_input_tokens bigint NOT NULL,
  cache_write_tokens bigint NOT NULL,
  reasoning_tokens bigint NOT NULL,
  cost_nanousd bigint,  -- NULL if the price is unknown
  price text NOT NULL,  -- the price's source and date
  source text NOT NULL CHECK (source IN ('reported', 'estimated', 'assumed')),
  ending text NOT NULL,  -- a finish reason, the code of an error, or lost
  PRIMARY KEY (started_at, id)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

-- What every process must know within a second, such as a pause.
CREATE TABLE chat_nest.controls (
  kind text COLLATE "C" NOT NULL,  -- '' for the row whose value is the version: each change sets another random number
  name text COLLATE "C" NOT NULL,
  value text NOT NULL,
  reason text NOT NULL,
  expires_at bigint,  -- NULL if it stays until it is removed
  PRIMARY KEY (kind, name)
);

CREATE TABLE chat_nest.firsts (
  key text COLLATE "C" PRIMARY KEY,  -- taken until then by the one call that was first
  call bigint NOT NULL,  -- the same call again gets the same answer
  expires_at bigint NOT NULL
);

CREATE INDEX firsts_by_end ON chat_nest.firsts (expires_at);

-- Rows that are read when they are asked for.
CREATE TABLE chat_nest.reports (
  kind text COLLATE "C" NOT NULL,
  name text COLLATE "C" NOT NULL,
  value text NOT NULL,
  expires_at bigint NOT NULL,
  PRIMARY KEY (kind, name)
) WITH (autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

CREATE INDEX reports_by_end ON chat_nest.reports (expires_at);

-- The trail of operators' acts.
CREATE TABLE chat_nest.acts (
  seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  at bigint NOT NULL,
  operator text NOT NULL,
  act text NOT NULL,
  target text NOT NULL,
  reason text NOT NULL,
  detail text NOT NULL
);
