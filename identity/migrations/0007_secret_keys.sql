-- A key for each secret, sealed by its project's key. Destroying it destroys the secret for good.
--
-- SQLite overwrites what is deleted, but when it balances its trees it sometimes leaves copies of moved rows in
-- the unused part of a page. So these rows never move: all have the same length, are only added at the end, and
-- are overwritten where they lie. None is ever deleted; a free one is used again.

CREATE TABLE secret_keys (
    slot    INTEGER PRIMARY KEY,
    wrapped BLOB NOT NULL,
    free    BOOLEAN NOT NULL
);
CREATE INDEX secret_keys_free ON secret_keys (slot) WHERE free;

-- NULL: there is no payload, or it was sealed by the project's key itself, as releases before this one did.
ALTER TABLE secrets ADD COLUMN key_slot BIGINT;
CREATE INDEX secrets_without_key ON secrets (id) WHERE key_slot IS NULL AND sealed IS NOT NULL;

-- Whatever deletes a secret destroys its key.
CREATE TRIGGER secret_keys_destroy AFTER DELETE ON secrets WHEN OLD.key_slot IS NOT NULL
BEGIN
    UPDATE secret_keys SET wrapped = zeroblob(length(wrapped)), free = TRUE WHERE slot = OLD.key_slot;
END;
