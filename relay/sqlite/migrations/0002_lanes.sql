-- Destinations, replays, retention and usage; and what a webhook costs, halved:
-- the delivery and attempt tables are built anew with fewer and smaller indexes.
-- The conventions of 0001 hold. Foreign keys are declared and not enforced: rows
-- are deleted in one place (expire.go), children first.

-- Where deliveries go: (app, endpoint, destination). Interned, so that every
-- delivery and every index entry has a small number instead of three names. Rows
-- are never deleted.
CREATE TABLE lane (
  seq         INTEGER PRIMARY KEY,
  app         TEXT    NOT NULL,
  endpoint    TEXT    NOT NULL,
  destination TEXT    NOT NULL,         -- '' is the app
  waiting     INTEGER NOT NULL,         -- unfinished deliveries
  UNIQUE (app, endpoint, destination)
) STRICT;
INSERT INTO lane (app, endpoint, destination, waiting)
  SELECT app, endpoint, '', sum(state IN (0,1)) FROM delivery GROUP BY app, endpoint;

ALTER TABLE event ADD COLUMN refusal         TEXT    NOT NULL DEFAULT '';
ALTER TABLE event ADD COLUMN body_expires_at INTEGER;                     -- NULL: with the event
ALTER TABLE event ADD COLUMN body_gone       INTEGER NOT NULL DEFAULT 0;  -- 1: retention deleted it
ALTER TABLE event ADD COLUMN due_at          INTEGER;                     -- when retention looks next, NULL: never
-- The latest received_at among this row and those before it. It grows with seq,
-- so that a time is found in the rows themselves, without an index (search.go).
ALTER TABLE event ADD COLUMN high_at         INTEGER NOT NULL DEFAULT 0;
UPDATE event SET due_at = expires_at, high_at = h.high_at
  FROM (SELECT seq, max(received_at) OVER (ORDER BY seq) AS high_at FROM event) h WHERE h.seq = event.seq;
DROP INDEX event_expiry;
CREATE INDEX event_due ON event(due_at) WHERE due_at IS NOT NULL;

-- At least the greatest high_at - received_at there ever was.
CREATE TABLE lateness (micros INTEGER NOT NULL) STRICT;
INSERT INTO lateness SELECT coalesce(max(high_at - received_at), 0) FROM event;

-- codec: 0 data is the body, 2 data is the name of a file in <database>-bodies.
CREATE UNIQUE INDEX event_body_file ON event_body(data) WHERE codec = 2;

CREATE TABLE usage (
  app    TEXT    NOT NULL PRIMARY KEY,
  events INTEGER NOT NULL,
  bytes  INTEGER NOT NULL               -- of bodies that are still there
) STRICT, WITHOUT ROWID;
INSERT INTO usage SELECT app, count(*), sum(body_len) FROM event GROUP BY app;

CREATE TABLE delivery_2 (
  seq         INTEGER PRIMARY KEY,
  id          TEXT    NOT NULL UNIQUE,
  event_seq   INTEGER NOT NULL REFERENCES event(seq),
  lane        INTEGER NOT NULL REFERENCES lane(seq),
  state       INTEGER NOT NULL,         -- 0 ready 1 leased 2 done 3 dead 4 cancelled
  -- 1 while an older unfinished delivery has the same lane and order key. It is
  -- stored, not computed by the claim: behind one failing delivery of a busy key
  -- thousands may wait, and a claim must not look at each of them.
  blocked     INTEGER NOT NULL,
  order_key   BLOB,                     -- NULL: no order is kept
  origin      INTEGER NOT NULL,         -- 0 live 1 replay
  replay      TEXT,                     -- the replay's id, NULL: none
  attempt     INTEGER NOT NULL,         -- counted ones
  attempts    INTEGER NOT NULL,         -- the highest number among its attempts
  next_at     INTEGER NOT NULL,
  lease_owner TEXT,
  lease_until INTEGER,
  lease_gen   INTEGER NOT NULL,         -- fencing token, only ever grows
  last_status INTEGER NOT NULL,
  last_error  TEXT    NOT NULL
) STRICT;
INSERT INTO delivery_2
  SELECT d.seq, d.id, d.event_seq, l.seq, d.state, d.blocked, d.order_key, 0, NULL, d.attempt,
    (SELECT coalesce(max(a.number), 0) FROM attempt a WHERE a.delivery_seq = d.seq),
    d.next_at, d.lease_owner, d.lease_until, d.lease_gen, d.last_status, d.last_error
  FROM delivery d JOIN lane l ON l.app = d.app AND l.endpoint = d.endpoint ORDER BY d.seq;

-- seq is the delivery's seq times 2^24 plus the attempt's number: attempts lie
-- beside those of their delivery and need no index.
CREATE TABLE attempt_2 (
  seq          INTEGER PRIMARY KEY,
  started_at   INTEGER,
  ended_at     INTEGER,
  instance     TEXT    NOT NULL,
  outcome      INTEGER NOT NULL,        -- 0 done 1 rejected 2 timeout 3 unknown 4 unsent 5 booting
  status       INTEGER NOT NULL,
  retry_in     INTEGER NOT NULL,
  header       TEXT    NOT NULL,
  body         BLOB    NOT NULL,
  error        TEXT    NOT NULL
) STRICT;
INSERT INTO attempt_2
  SELECT (delivery_seq << 24) + number, started_at, ended_at, instance, outcome, status, retry_in, header, body, error
  FROM attempt ORDER BY delivery_seq, number;

DROP TABLE attempt;
DROP TABLE delivery;
ALTER TABLE attempt_2 RENAME TO attempt;
ALTER TABLE delivery_2 RENAME TO delivery;

-- Serves the claim: what could be claimed, in the order in which it is due.
CREATE INDEX delivery_ready ON delivery(lane, next_at) WHERE state = 0 AND blocked = 0;
-- Finds the head of an order key, and the one delivery of it that is not blocked.
CREATE INDEX delivery_order ON delivery(lane, order_key, blocked) WHERE state IN (0,1) AND order_key IS NOT NULL;
CREATE INDEX delivery_lease    ON delivery(lease_until) WHERE state = 1;
CREATE INDEX delivery_by_event ON delivery(event_seq);
CREATE INDEX delivery_failed   ON delivery(event_seq) WHERE state IN (3,4);
CREATE INDEX delivery_replay   ON delivery(replay) WHERE replay IS NOT NULL AND state = 0;

CREATE TABLE replay (
  seq         INTEGER PRIMARY KEY,
  id          TEXT    NOT NULL UNIQUE,
  app         TEXT    NOT NULL,
  made_by     TEXT    NOT NULL,
  created_at  INTEGER NOT NULL,
  filter      TEXT    NOT NULL,         -- JSON, see replay.go
  destination TEXT    NOT NULL,
  rate        REAL    NOT NULL,
  state       INTEGER NOT NULL,         -- 0 planned 1 running 2 done 3 cancelled
  planned     INTEGER NOT NULL,
  cursor      TEXT    NOT NULL,         -- the last event a delivery was made for
  cursor_seq  INTEGER NOT NULL,         -- everything up to this event was looked at
  made        INTEGER NOT NULL,
  done        INTEGER NOT NULL,
  dead        INTEGER NOT NULL,
  cancelled   INTEGER NOT NULL
) STRICT;
CREATE INDEX replay_by_app ON replay(app);
