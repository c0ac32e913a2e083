-- The history (append-only) and who may take part. Times are milliseconds since the Unix epoch.
-- A migration that was released is never changed; the next one gets the next number.

PRAGMA application_id = 1414678850; -- "TRIB"

-- One row a sequence of events; `next_seq` is what a writer compares and swaps.
CREATE TABLE stream (
    name     TEXT    PRIMARY KEY CHECK (name = 'registry' OR name GLOB 'run/[a-z0-9]*'),
    next_seq INTEGER NOT NULL CHECK (next_seq > 0)
) STRICT, WITHOUT ROWID;

-- The leaves of the audit log: the events themselves. An entry of a C2SP log has at most 65,535
-- bytes.
CREATE TABLE leaf (
    idx    INTEGER PRIMARY KEY CHECK (idx >= 0),
    stream TEXT    NOT NULL REFERENCES stream (name),
    seq    INTEGER NOT NULL CHECK (seq >= 0),
    bytes  BLOB    NOT NULL CHECK (length(bytes) BETWEEN 1 AND 65535),
    UNIQUE (stream, seq)
) STRICT;

-- Complete subtrees of the log's Merkle tree; level 0 holds the leaf hashes.
CREATE TABLE node (
    level INTEGER NOT NULL CHECK (level BETWEEN 0 AND 62),
    idx   INTEGER NOT NULL CHECK (idx >= 0),
    hash  BLOB    NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (level, idx)
) STRICT, WITHOUT ROWID;

-- The log's head: one row.
CREATE TABLE head (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    size INTEGER NOT NULL CHECK (size >= 0),
    root BLOB    NOT NULL CHECK (length(root) = 32)
) STRICT;
-- SHA-256 of nothing: the root of the empty tree.
INSERT INTO head (id, size, root)
VALUES (1, 0, x'e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855');

CREATE TRIGGER leaf_follows_the_last BEFORE INSERT ON leaf
WHEN NEW.idx <> (SELECT COALESCE(MAX(idx) + 1, 0) FROM leaf)
  OR NEW.seq <> (SELECT COALESCE(MAX(seq) + 1, 0) FROM leaf WHERE stream = NEW.stream)
BEGIN SELECT RAISE(ABORT, 'a leaf must follow the last one'); END;
CREATE TRIGGER leaf_never_changes BEFORE UPDATE ON leaf
BEGIN SELECT RAISE(ABORT, 'the history is append-only'); END;
CREATE TRIGGER leaf_never_goes BEFORE DELETE ON leaf
BEGIN SELECT RAISE(ABORT, 'the history is append-only'); END;
CREATE TRIGGER node_never_changes BEFORE UPDATE ON node
BEGIN SELECT RAISE(ABORT, 'the history is append-only'); END;
CREATE TRIGGER node_never_goes BEFORE DELETE ON node
BEGIN SELECT RAISE(ABORT, 'the history is append-only'); END;
CREATE TRIGGER head_only_grows BEFORE UPDATE ON head WHEN NEW.size <= OLD.size
BEGIN SELECT RAISE(ABORT, 'the history is append-only'); END;
CREATE TRIGGER stream_only_grows BEFORE UPDATE ON stream WHEN NEW.next_seq <= OLD.next_seq
BEGIN SELECT RAISE(ABORT, 'the history is append-only'); END;

-- One-time tokens, by their digest: a copy of this file enrols nobody.
CREATE TABLE invitation (
    token_digest BLOB    PRIMARY KEY CHECK (length(token_digest) = 32),
    member       TEXT    NOT NULL CHECK (member GLOB 'site/[a-z0-9]*'
                                      OR member GLOB 'operator/[a-z0-9]*'
                                      OR member GLOB 'auditor/[a-z0-9]*'),
    expires      INTEGER NOT NULL,
    -- Set together when the token is used; the same key gets the same certificate again.
    key_digest   BLOB CHECK (length(key_digest) = 32),
    certificate  BLOB CHECK (length(certificate) BETWEEN 1 AND 16384),
    CHECK ((key_digest IS NULL) = (certificate IS NULL))
) STRICT, WITHOUT ROWID;

-- Who has a certificate, and whether it is good.
CREATE TABLE member (
    member      TEXT    PRIMARY KEY CHECK (member GLOB 'site/[a-z0-9]*'
                                        OR member GLOB 'operator/[a-z0-9]*'
                                        OR member GLOB 'auditor/[a-z0-9]*'),
    state       TEXT    NOT NULL CHECK (state IN ('active', 'suspended', 'revoked')),
    serial      TEXT    NOT NULL UNIQUE CHECK (length(serial) BETWEEN 1 AND 64),
    certificate BLOB    NOT NULL CHECK (length(certificate) BETWEEN 1 AND 16384),
    expires     INTEGER NOT NULL,
    -- Convenience for tables, not history; may lag behind.
    last_seen   INTEGER
) STRICT, WITHOUT ROWID;
