-- Trusts (OS-TRUST): a user (the trustor) lets another one (the trustee) act with roles of its own on one project.

CREATE TABLE trusts (
    id                   TEXT PRIMARY KEY,
    trustor_id           TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    trustee_id           TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    project_id           TEXT REFERENCES projects (id) ON DELETE CASCADE,
    impersonation        BOOLEAN NOT NULL,
    -- Microseconds; NULL: never.
    expires_at           BIGINT,
    -- Logins that are left; NULL: any number.
    remaining_uses       BIGINT,
    -- What was passed on ends with the trust that it came from.
    redelegated_trust_id TEXT REFERENCES trusts (id) ON DELETE CASCADE,
    redelegation_count   BIGINT NOT NULL,
    extra                TEXT NOT NULL DEFAULT '{}',
    UNIQUE (trustor_id, trustee_id, project_id, impersonation, expires_at)
);
CREATE INDEX trusts_trustee ON trusts (trustee_id);
CREATE INDEX trusts_project ON trusts (project_id);
CREATE INDEX trusts_redelegated ON trusts (redelegated_trust_id);

-- A role that is deleted stays here on purpose: the trust is then for more than its trustor has, and ends.
CREATE TABLE trust_roles (
    trust_id TEXT NOT NULL REFERENCES trusts (id) ON DELETE CASCADE,
    role_id  TEXT NOT NULL,
    PRIMARY KEY (trust_id, role_id)
);
