-- Options of single domains (`/v3/domains/{id}/config`): where their users come from.

CREATE TABLE domain_config (
    domain_id TEXT NOT NULL REFERENCES domains (id) ON DELETE CASCADE,
    -- identity | ldap
    section   TEXT NOT NULL,
    name      TEXT NOT NULL,
    -- JSON; 'null' where the value is sealed.
    value     TEXT NOT NULL,
    -- A sensitive value (the directory's password), sealed by the key of users' credentials.
    sealed    BLOB,
    PRIMARY KEY (domain_id, section, name)
);
