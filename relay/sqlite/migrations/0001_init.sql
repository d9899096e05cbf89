-- The first schema. A migration is never edited once released: a later one is
-- added beside it, with the next number.
--
-- Conventions
--   Times are INTEGER microseconds since 1970 UTC, durations INTEGER
--   microseconds. NULL is "no time" where a column allows it.
--   TEXT is what this program chose, BLOB is what a sender chose: a sender's
--   bytes need not be UTF-8 and come back unchanged.
--   header is JSON [["name","value"],...] in wire order with duplicates kept;
--   every byte of a name or value is the code point of the same number
--   (ISO-8859-1), so that ASCII stays readable and every byte survives.
--   seq is the order in which rows were committed; id is the public name.

CREATE TABLE app (
  id         TEXT    NOT NULL PRIMARY KEY,
  created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE token (
  seq        INTEGER PRIMARY KEY,
  id         TEXT    NOT NULL UNIQUE,
  app        TEXT    NOT NULL,          -- '' for admin tokens
  scope      TEXT    NOT NULL,
  issued_at  INTEGER NOT NULL,
  expires_at INTEGER,                   -- NULL: never
  revoked_at INTEGER
) STRICT;
CREATE INDEX token_revoked ON token(expires_at, id) WHERE revoked_at IS NOT NULL;

-- An event's metadata outlives its body, so they are two tables: retention
-- deletes a body without rewriting the row that lists show.
CREATE TABLE event (
  seq         INTEGER PRIMARY KEY,
  id          TEXT    NOT NULL UNIQUE,
  app         TEXT    NOT NULL,
  endpoint    TEXT    NOT NULL,
  received_at INTEGER NOT NULL,
  method      TEXT    NOT NULL,
  target      BLOB    NOT NULL,
  public_url  BLOB    NOT NULL,
  header      TEXT    NOT NULL,
  body_len    INTEGER NOT NULL,
  body_sha256 BLOB    NOT NULL,
  remote_ip   TEXT    NOT NULL,
  type        BLOB    NOT NULL,
  sent_at     INTEGER,
  dedupe_key  BLOB,                     -- NULL: the provider sends none
  verified    INTEGER NOT NULL,
  expires_at  INTEGER                   -- NULL: kept
) STRICT;
CREATE UNIQUE INDEX event_dedupe ON event(app, endpoint, dedupe_key) WHERE dedupe_key IS NOT NULL;
CREATE INDEX event_by_app      ON event(app);            -- with seq, which ends every index
CREATE INDEX event_by_endpoint ON event(app, endpoint);
CREATE INDEX event_expiry      ON event(expires_at);

CREATE TABLE event_body (
  event_seq INTEGER PRIMARY KEY REFERENCES event(seq) ON DELETE CASCADE,
  codec     INTEGER NOT NULL,           -- 0: data is the body. Others are refused, see events.go
  data      BLOB
) STRICT;

CREATE TABLE delivery (
  seq         INTEGER PRIMARY KEY,
  id          TEXT    NOT NULL UNIQUE,
  event_seq   INTEGER NOT NULL REFERENCES event(seq) ON DELETE CASCADE,
  app         TEXT    NOT NULL,
  endpoint    TEXT    NOT NULL,
  state       INTEGER NOT NULL,         -- 0 ready 1 leased 2 done 3 dead 4 cancelled
  order_key   BLOB,                     -- NULL: no order is kept
  -- 1 while an older unfinished delivery has the same app, endpoint and key. It
  -- is stored, not computed by the claim: behind one failing delivery of a busy
  -- key thousands may wait, and a claim must not look at each of them.
  blocked     INTEGER NOT NULL DEFAULT 0,
  attempt     INTEGER NOT NULL,
  next_at     INTEGER NOT NULL,
  lease_owner TEXT,
  lease_until INTEGER,
  lease_gen   INTEGER NOT NULL,         -- fencing token, only ever grows
  last_status INTEGER NOT NULL,
  last_error  TEXT    NOT NULL
) STRICT;
-- Serves the claim (state = 0, blocked = 0, next_at in order) and the backlog.
CREATE INDEX delivery_waiting ON delivery(app, endpoint, state, blocked, next_at) WHERE state IN (0,1);
-- Finds the head of an order key, and the one delivery of it that is not blocked.
CREATE INDEX delivery_order ON delivery(app, endpoint, order_key, blocked)
  WHERE state IN (0,1) AND order_key IS NOT NULL;
CREATE INDEX delivery_lease    ON delivery(lease_until) WHERE state = 1;
CREATE INDEX delivery_by_event ON delivery(event_seq);

CREATE TABLE attempt (
  seq          INTEGER PRIMARY KEY,
  delivery_seq INTEGER NOT NULL REFERENCES delivery(seq) ON DELETE CASCADE,
  number       INTEGER NOT NULL,
  started_at   INTEGER,
  ended_at     INTEGER,
  instance     TEXT    NOT NULL,
  outcome      INTEGER NOT NULL,        -- 0 done 1 rejected 2 timeout 3 unknown 4 unsent
  status       INTEGER NOT NULL,
  retry_in     INTEGER NOT NULL,
  header       TEXT    NOT NULL,
  body         BLOB    NOT NULL,
  error        TEXT    NOT NULL,
  UNIQUE (delivery_seq, number)
) STRICT;
