-- Failed logins in a row, counted for all replicas; only where a site locks out, and only of users that exist. SQLite has one process,
-- which counts in its memory.

CREATE TABLE failed_logins (
    user_id  TEXT COLLATE "C" NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    -- What was wrong: password or totp.
    proof    TEXT COLLATE "C" NOT NULL,
    failures BIGINT NOT NULL,
    -- Of the last one, in microseconds.
    last     BIGINT NOT NULL,
    PRIMARY KEY (user_id, proof)
);
