-- How instances ended. A row has at most 256 KiB: see lastwords.go, which clips.
-- exit, lines, memory, sockets and findings are JSON, as the types that
-- relay.LastWords has them in. Their names and times are what agents chose, but
-- JSON text is UTF-8, so they are TEXT.

CREATE TABLE last_words (
  seq        INTEGER PRIMARY KEY,
  id         TEXT    NOT NULL UNIQUE,
  app        TEXT    NOT NULL,
  instance   TEXT    NOT NULL,
  boot_id    TEXT    NOT NULL,
  platform   TEXT    NOT NULL,
  process    TEXT    NOT NULL,
  release    TEXT    NOT NULL,
  commit_id  TEXT    NOT NULL,
  region     TEXT    NOT NULL,
  started_at INTEGER,
  ended_at   INTEGER NOT NULL,
  exit       TEXT,                      -- NULL: the agent was lost
  reason     TEXT    NOT NULL,
  mem_limit  INTEGER NOT NULL,
  lines      TEXT    NOT NULL,
  memory     TEXT    NOT NULL,
  sockets    TEXT    NOT NULL,
  findings   TEXT    NOT NULL
) STRICT;
CREATE UNIQUE INDEX last_words_boot ON last_words(app, instance, boot_id);
-- Lists, newest first, and what goes when an app has too many.
CREATE INDEX last_words_by_app  ON last_words(app, ended_at);
CREATE INDEX last_words_by_time ON last_words(ended_at);
