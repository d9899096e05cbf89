-- Calls to the outside, and what says which may leave. The conventions of 0001
-- hold. status, kind, form and verdict are the words of package relay.

CREATE TABLE manifest (
  number     INTEGER PRIMARY KEY,       -- 1, 2, 3 …: rows are never deleted
  sha256     TEXT    NOT NULL,
  origin     TEXT    NOT NULL,
  applied_at INTEGER NOT NULL,
  applied_by TEXT    NOT NULL,
  base       INTEGER NOT NULL,
  status     TEXT    NOT NULL,
  ended_at   INTEGER,
  note       TEXT    NOT NULL,
  signature  TEXT    NOT NULL,
  key_id     TEXT    NOT NULL
) STRICT;

-- Apart, so that a change of a status does not write the text anew.
CREATE TABLE manifest_source (
  number INTEGER PRIMARY KEY REFERENCES manifest(number),
  source BLOB NOT NULL
) STRICT;

CREATE TABLE egress_order (
  seq        INTEGER PRIMARY KEY,
  id         TEXT    NOT NULL UNIQUE,
  kind       TEXT    NOT NULL,
  app        TEXT    NOT NULL,          -- '': all
  what       TEXT    NOT NULL,
  reason     TEXT    NOT NULL,
  owner      TEXT    NOT NULL,
  made_by    TEXT    NOT NULL,
  created_at INTEGER NOT NULL,
  until      INTEGER NOT NULL,
  ended_at   INTEGER                    -- NULL: not before its time
) STRICT;
CREATE INDEX egress_order_live ON egress_order(until) WHERE ended_at IS NULL;

-- Sums of calls. The hour comes first in the key: what is written each second
-- lies together, and what retention deletes lies at the beginning.
CREATE TABLE flow_sum (
  hour     INTEGER NOT NULL,            -- hours since 1970
  app      TEXT    NOT NULL,
  target   TEXT    NOT NULL,
  form     TEXT    NOT NULL,
  method   TEXT    NOT NULL,
  verdict  TEXT    NOT NULL,
  rule     TEXT    NOT NULL,
  calls    INTEGER NOT NULL,
  failed   INTEGER NOT NULL,
  up       INTEGER NOT NULL,
  down     INTEGER NOT NULL,
  first_at INTEGER NOT NULL,
  last_at  INTEGER NOT NULL,
  PRIMARY KEY (hour, app, target, form, method, verdict, rule)
) STRICT, WITHOUT ROWID;

-- What was ever called and let through; it outlives the sums.
CREATE TABLE egress_target (
  app      TEXT    NOT NULL,
  target   TEXT    NOT NULL,
  first_at INTEGER NOT NULL,
  last_at  INTEGER NOT NULL,
  PRIMARY KEY (app, target)
) STRICT, WITHOUT ROWID;

CREATE TABLE audit (
  seq     INTEGER PRIMARY KEY,
  id      TEXT    NOT NULL UNIQUE,
  at      INTEGER NOT NULL,
  made_by TEXT    NOT NULL,
  app     TEXT    NOT NULL,             -- '': the relay
  action  TEXT    NOT NULL,
  subject TEXT    NOT NULL,
  detail  TEXT    NOT NULL
) STRICT;
CREATE INDEX audit_by_app ON audit(app); -- with seq, which ends every index
