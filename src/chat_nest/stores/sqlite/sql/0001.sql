-- Amounts are integers in the line's unit. Times are Unix microseconds: datetime(t / 1000000, 'unixepoch').

CREATE TABLE counters (
  key TEXT PRIMARY KEY,
  kind TEXT NOT NULL,  -- window, rate or gauge
  used INTEGER NOT NULL CHECK (used >= 0),  -- a window's
  held INTEGER NOT NULL CHECK (held >= 0),  -- a window's or a gauge's
  tat INTEGER NOT NULL,  -- a rate's theoretical arrival time
  ends_at INTEGER NOT NULL  -- when a window is over
) WITHOUT ROWID;

CREATE TABLE reservations (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  fingerprint TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('open', 'settled', 'expired', 'released')),
  output INTEGER NOT NULL,  -- the output tokens that were granted
  reserved_at INTEGER NOT NULL,
  expires_at INTEGER NOT NULL,
  finished_at INTEGER,
  source TEXT CHECK (source IN ('reported', 'estimated', 'assumed')),
  lines TEXT NOT NULL  -- JSON; see the view reservation_lines
);

CREATE INDEX open_leases ON reservations (expires_at) WHERE state = 'open';

CREATE VIEW reservation_lines AS
SELECT
  reservations.id,
  reservations.state,
  reservations.source,
  json_extract(line.value, '$.name') AS name,
  json_extract(line.value, '$.key') AS key,
  json_extract(line.value, '$.unit') AS unit,
  json_extract(line.value, '$.kind') AS kind,
  json_extract(line.value, '$.held') AS held,
  json_extract(line.value, '$.actual') AS actual  -- NULL while the reservation is open
FROM reservations, json_each(reservations.lines) AS line;
