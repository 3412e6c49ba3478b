CREATE TABLE claims (
    id       INTEGER PRIMARY KEY,
    owner    TEXT NOT NULL,
    kind     TEXT NOT NULL,
    instance TEXT NOT NULL,
    device   TEXT NOT NULL,
    bytes    INTEGER NOT NULL,
    phase    TEXT NOT NULL,
    since    INTEGER NOT NULL
) STRICT;
CREATE TABLE events (
    seq      INTEGER PRIMARY KEY,
    at       INTEGER NOT NULL,
    kind     TEXT NOT NULL,
    job      TEXT NOT NULL,
    instance TEXT NOT NULL,
    data     BLOB NOT NULL
) STRICT;
INSERT INTO events VALUES(1,1770000000000000000,'job.submitted','old','whisper',X'7b7d');
CREATE TABLE instances (
    id          TEXT PRIMARY KEY,
    plugin      TEXT NOT NULL,
    config      BLOB,
    enabled     INTEGER NOT NULL,
    pinned      INTEGER NOT NULL,
    limits      TEXT,
    isolation   TEXT,
    concurrency INTEGER NOT NULL,
    autoload    INTEGER NOT NULL,
    revision    INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL
, placement TEXT) STRICT, WITHOUT ROWID;
INSERT INTO instances VALUES('whisper','whisper',X'7b2273697a65223a226c61726765227d',1,0,NULL,NULL,0,0,1,1770000000000000000,NULL);
CREATE TABLE jobs (
    seq                 INTEGER PRIMARY KEY AUTOINCREMENT,
    id                  TEXT NOT NULL UNIQUE,
    submitter           TEXT NOT NULL,
    idem_key            TEXT,
    spec_hash           BLOB,
    instance            TEXT NOT NULL,
    status              INTEGER NOT NULL,
    priority            INTEGER NOT NULL,
    held                INTEGER NOT NULL,
    stream              INTEGER NOT NULL,
    attempt             INTEGER NOT NULL DEFAULT 0,
    max_attempts        INTEGER NOT NULL,
    revision            INTEGER NOT NULL DEFAULT 1,
    created_at          INTEGER NOT NULL,
    started_at          INTEGER NOT NULL DEFAULT 0,
    finished_at         INTEGER NOT NULL DEFAULT 0,
    not_before          INTEGER NOT NULL DEFAULT 0,
    cancel_requested_at INTEGER NOT NULL DEFAULT 0,
    cancel_reason       TEXT NOT NULL DEFAULT '',
    queue_timeout       INTEGER NOT NULL,
    run_timeout         INTEGER NOT NULL,
    cancel_grace        INTEGER NOT NULL,
    interrupt_grace     INTEGER NOT NULL,
    run_on_dep_fail     INTEGER NOT NULL,
    depends_on          TEXT,
    retry_of            TEXT NOT NULL,
    labels              TEXT,
    progress            REAL NOT NULL DEFAULT 0,
    progress_message    TEXT NOT NULL DEFAULT '',
    result_size         INTEGER,          -- NULL: no result
    result_type         TEXT NOT NULL DEFAULT '',
    result_partial      INTEGER NOT NULL DEFAULT 0,
    result_sha256       TEXT NOT NULL DEFAULT '',
    result_file         INTEGER NOT NULL DEFAULT 0,
    error               TEXT,
    last_error          TEXT,
    args                BLOB NOT NULL,    -- last, so that lists do not read them
    kwargs              BLOB NOT NULL
) STRICT;
INSERT INTO jobs VALUES(1,'old','anna',NULL,NULL,'whisper',0,5,0,0,0,3,1,1770000000000000000,0,0,0,0,'',0,0,0,0,0,NULL,'',NULL,0.0,'',NULL,'',0,'',0,NULL,NULL,X'5b315d',X'7b7d');
INSERT INTO jobs VALUES(2,'first','anna',NULL,NULL,'whisper',2,0,0,0,0,3,1,1770000000000000000,0,1770000000000000001,0,0,'',0,0,0,0,0,NULL,'',NULL,0.0,'',NULL,'',0,'',0,NULL,NULL,X'5b5d',X'7b7d');
INSERT INTO jobs VALUES(3,'second','anna',NULL,NULL,'whisper',0,0,0,0,0,3,1,1770000000000000002,0,0,0,0,'',0,0,0,0,0,'["first"]','',NULL,0.0,'',NULL,'',0,'',0,NULL,NULL,X'5b5d',X'7b7d');
CREATE TABLE leases (
    id         TEXT PRIMARY KEY,
    device     TEXT NOT NULL,
    bytes      INTEGER NOT NULL,
    holder     TEXT NOT NULL,
    note       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO leases VALUES('l1','GPU-1',8589934592,'uid:0','a game',1,0);
CREATE TABLE leftovers (
    id TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO meta VALUES('cancelled',0);
INSERT INTO meta VALUES('clean',1);
INSERT INTO meta VALUES('completed',0);
INSERT INTO meta VALUES('failed',0);
INSERT INTO meta VALUES('journal_oldest',1);
INSERT INTO meta VALUES('journal_swept',1);
CREATE TABLE profiles (
    id           INTEGER PRIMARY KEY,  -- grows with each write: the order of use
    plugin       TEXT NOT NULL,
    config_hash  TEXT NOT NULL,
    device_model TEXT NOT NULL,
    data         TEXT NOT NULL,
    UNIQUE (plugin, config_hash, device_model)
) STRICT;
CREATE TABLE results (
    job_seq INTEGER PRIMARY KEY REFERENCES jobs (seq) ON DELETE CASCADE,
    body    BLOB NOT NULL
) STRICT;
CREATE TABLE settings (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO settings VALUES('policy','queue');
CREATE UNIQUE INDEX jobs_key ON jobs (submitter, idem_key) WHERE idem_key IS NOT NULL;
CREATE INDEX jobs_status ON jobs (status, seq);
CREATE INDEX jobs_instance ON jobs (instance, status, seq);
CREATE INDEX jobs_finished ON jobs (finished_at) WHERE status >= 2;
CREATE INDEX events_job ON events (job) WHERE job <> '';
CREATE INDEX claims_owner ON claims (owner);
PRAGMA user_version = 3;
