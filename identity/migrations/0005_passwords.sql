-- Passwords that end, their history, and lock-out after failed logins.

-- When the password must be changed (microseconds); NULL: never.
ALTER TABLE users ADD COLUMN password_expires_at BIGINT;

-- Hashes of a user's passwords, the present one too; as many as a site wants to compare with.
CREATE TABLE password_history (
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created BIGINT NOT NULL,
    hash    TEXT NOT NULL,
    PRIMARY KEY (user_id, created)
);

-- Users that may not log in for a time after too many failures.
CREATE TABLE lockouts (
    user_id TEXT PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE,
    until   BIGINT NOT NULL
);
