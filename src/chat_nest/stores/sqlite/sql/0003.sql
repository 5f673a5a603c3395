-- What every process must know within a second, and the trail of operators' acts. Times are Unix microseconds.

CREATE TABLE controls (
  kind TEXT NOT NULL,  -- '' for the row whose value is the version: each change sets another random number
  name TEXT NOT NULL,
  value TEXT NOT NULL,
  reason TEXT NOT NULL,
  expires_at INTEGER,  -- NULL if it stays until it is removed
  PRIMARY KEY (kind, name)
) WITHOUT ROWID;

CREATE TABLE firsts (
  key TEXT PRIMARY KEY,  -- taken until then by the one call that was first
  expires_at INTEGER NOT NULL
) WITHOUT ROWID;

CREATE INDEX firsts_by_end ON firsts (expires_at);

CREATE TABLE reports (
  kind TEXT NOT NULL,
  name TEXT NOT NULL,
  value TEXT NOT NULL,
  expires_at INTEGER NOT NULL,
  PRIMARY KEY (kind, name)
) WITHOUT ROWID;

CREATE INDEX reports_by_end ON reports (expires_at);

CREATE TABLE acts (
  seq INTEGER PRIMARY KEY,
  at INTEGER NOT NULL,
  operator TEXT NOT NULL,
  act TEXT NOT NULL,
  target TEXT NOT NULL,
  reason TEXT NOT NULL,
  detail TEXT NOT NULL
);
