-- What workers really take, by plugin, config and device model.
CREATE TABLE profiles (
    id           INTEGER PRIMARY KEY,  -- grows with each write: the order of use
    plugin       TEXT NOT NULL,
    config_hash  TEXT NOT NULL,
    device_model TEXT NOT NULL,
    data         TEXT NOT NULL,
    UNIQUE (plugin, config_hash, device_model)
) STRICT;

-- Memory set aside, written before a worker is started.
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

CREATE INDEX claims_owner ON claims (owner);

-- Memory kept for programs that are none of ours; expires_at 0: until ended.
CREATE TABLE leases (
    id         TEXT PRIMARY KEY,
    device     TEXT NOT NULL,
    bytes      INTEGER NOT NULL,
    holder     TEXT NOT NULL,
    note       TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
