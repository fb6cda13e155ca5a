-- One row that grows with every change of identity records, in the same transaction: how a replica learns of the changes of the
-- others. SQLite has one process and keeps this number in its memory.

CREATE TABLE generation (
    only_one BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (only_one),
    value    BIGINT NOT NULL
);
INSERT INTO generation (value) VALUES (0);

-- The replicas that are there, and the fingerprints of the key-encryption keys that each has: the key that seals is changed only
-- when all have the new one.
CREATE TABLE replicas (
    name TEXT COLLATE "C" PRIMARY KEY,
    keys TEXT COLLATE "C" NOT NULL,
    -- Seconds since the Unix epoch, by the clock of the server.
    seen BIGINT NOT NULL
);
