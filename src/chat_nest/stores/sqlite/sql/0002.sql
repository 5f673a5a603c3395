-- What is kept of requests. Amounts and times as before; `seconds` are seconds.

ALTER TABLE reservations ADD COLUMN record TEXT;  -- JSON, as in `requests`; the claim's until it is settled

ALTER TABLE reservations ADD COLUMN owner TEXT NOT NULL DEFAULT '';  -- who was granted it

-- One row for each request that was settled or whose lease expired; a late settlement corrects it. An id may come
-- again when its reservation is purged: that is another request.
CREATE TABLE requests (
  started_at INTEGER NOT NULL,
  id TEXT NOT NULL,  -- the reservation's
  run TEXT NOT NULL,  -- the id that the client was told
  caller TEXT NOT NULL,  -- the hash of the caller's id
  group_name TEXT NOT NULL,
  profile TEXT NOT NULL,
  provider TEXT NOT NULL,
  model TEXT NOT NULL,
  seconds REAL NOT NULL,
  first_token_seconds REAL,
  input_tokens INTEGER NOT NULL,  -- all of them: those read from and written to a cache are among them
  output_tokens INTEGER NOT NULL,  -- all of them: reasoning tokens are among them
  cached_input_tokens INTEGER NOT NULL,
  cache_write_tokens INTEGER NOT NULL,
  reasoning_tokens INTEGER NOT NULL,
  cost_nanousd INTEGER,  -- NULL where the price is not known
  price TEXT NOT NULL,  -- whose price, and of when
  source TEXT NOT NULL CHECK (source IN ('reported', 'estimated', 'assumed')),
  ending TEXT NOT NULL,  -- a finish reason, the code of an error, or lost
  PRIMARY KEY (started_at, id)
) WITHOUT ROWID;
