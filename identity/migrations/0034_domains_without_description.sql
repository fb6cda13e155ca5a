-- Whether the empty description of a domain is none at all (null), as clients send it that were told none.
ALTER TABLE domains ADD COLUMN undescribed BOOLEAN NOT NULL DEFAULT FALSE;
