-- Times are Unix nanoseconds, durations nanoseconds, 0 meaning "none".
-- jobs.status: 0 pending, 1 running, 2 completed, 3 failed, 4 cancelled.
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

CREATE UNIQUE INDEX jobs_key ON jobs (submitter, idem_key) WHERE idem_key IS NOT NULL;
CREATE INDEX jobs_status ON jobs (status, seq);
CREATE INDEX jobs_instance ON jobs (instance, status, seq);
CREATE INDEX jobs_finished ON jobs (finished_at) WHERE status >= 2;

-- Results up to 1 MiB; bigger ones are files.
CREATE TABLE results (
    job_seq INTEGER PRIMARY KEY REFERENCES jobs (seq) ON DELETE CASCADE,
    body    BLOB NOT NULL
) STRICT;

-- Pruned jobs whose files beside the database may still exist.
CREATE TABLE leftovers (
    id TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;

-- The journal. Events of retained jobs outlive the journal's own bound
-- (meta.journal_oldest): they are the head of the job's log.
CREATE TABLE events (
    seq      INTEGER PRIMARY KEY,
    at       INTEGER NOT NULL,
    kind     TEXT NOT NULL,
    job      TEXT NOT NULL,
    instance TEXT NOT NULL,
    data     BLOB NOT NULL
) STRICT;

CREATE INDEX events_job ON events (job) WHERE job <> '';

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
) STRICT, WITHOUT ROWID;

CREATE TABLE settings (
    key   TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO meta (key, value) VALUES
    ('journal_oldest', 1), ('journal_swept', 1), ('clean', 0),
    ('completed', 0), ('failed', 0), ('cancelled', 0);
