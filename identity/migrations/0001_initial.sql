-- Identity and key-manager records. Times are microseconds since the Unix epoch (UTC).
-- Forward only: a change of the schema is a new file, never an edit of this one.

CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
);

-- ---------------------------------------------------------------- resources

CREATE TABLE domains (
    id          TEXT PRIMARY KEY,
    name        TEXT NOT NULL UNIQUE,
    description TEXT NOT NULL DEFAULT '',
    enabled     BOOLEAN NOT NULL DEFAULT TRUE,
    options     TEXT NOT NULL DEFAULT '{}'
);

CREATE TABLE projects (
    id          TEXT PRIMARY KEY,
    domain_id   TEXT NOT NULL REFERENCES domains (id) ON DELETE CASCADE,
    -- A project at the top of the hierarchy has its domain here, as the protocol shows it.
    parent_id   TEXT NOT NULL,
    name        TEXT NOT NULL,
    description TEXT NOT NULL DEFAULT '',
    enabled     BOOLEAN NOT NULL DEFAULT TRUE,
    options     TEXT NOT NULL DEFAULT '{}',
    extra       TEXT NOT NULL DEFAULT '{}',
    UNIQUE (domain_id, name)
);
CREATE INDEX projects_parent ON projects (parent_id);
CREATE INDEX projects_name ON projects (name);

CREATE TABLE project_tags (
    project_id TEXT NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
    tag        TEXT NOT NULL,
    PRIMARY KEY (project_id, tag)
);

-- ---------------------------------------------------------------- identities

CREATE TABLE users (
    id                  TEXT PRIMARY KEY,
    domain_id           TEXT NOT NULL REFERENCES domains (id) ON DELETE CASCADE,
    name                TEXT NOT NULL,
    enabled             BOOLEAN NOT NULL DEFAULT TRUE,
    default_project_id  TEXT,
    password_hash       TEXT,
    -- Tokens issued at or before this moment are dead (password change, user disabled).
    tokens_valid_after  BIGINT NOT NULL DEFAULT 0,
    options             TEXT NOT NULL DEFAULT '{}',
    extra               TEXT NOT NULL DEFAULT '{}',
    UNIQUE (domain_id, name)
);
CREATE INDEX users_name ON users (name);

CREATE TABLE user_groups (
    id          TEXT PRIMARY KEY,
    domain_id   TEXT NOT NULL REFERENCES domains (id) ON DELETE CASCADE,
    name        TEXT NOT NULL,
    description TEXT NOT NULL DEFAULT '',
    extra       TEXT NOT NULL DEFAULT '{}',
    UNIQUE (domain_id, name)
);

CREATE TABLE group_members (
    group_id TEXT NOT NULL REFERENCES user_groups (id) ON DELETE CASCADE,
    user_id  TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    PRIMARY KEY (group_id, user_id)
);
CREATE INDEX group_members_user ON group_members (user_id);

-- ---------------------------------------------------------------- roles and assignments

CREATE TABLE roles (
    id          TEXT PRIMARY KEY,
    domain_id   TEXT REFERENCES domains (id) ON DELETE CASCADE,
    name        TEXT NOT NULL,
    description TEXT,
    options     TEXT NOT NULL DEFAULT '{}'
);
CREATE UNIQUE INDEX roles_name ON roles (COALESCE(domain_id, ''), name);

CREATE TABLE implied_roles (
    prior_role_id   TEXT NOT NULL REFERENCES roles (id) ON DELETE CASCADE,
    implied_role_id TEXT NOT NULL REFERENCES roles (id) ON DELETE CASCADE,
    PRIMARY KEY (prior_role_id, implied_role_id)
);

-- actor_type: user | group. target_type: project | domain | system (target_id 'all').
CREATE TABLE assignments (
    actor_type  TEXT NOT NULL,
    actor_id    TEXT NOT NULL,
    target_type TEXT NOT NULL,
    target_id   TEXT NOT NULL,
    role_id     TEXT NOT NULL REFERENCES roles (id) ON DELETE CASCADE,
    inherited   BOOLEAN NOT NULL DEFAULT FALSE,
    PRIMARY KEY (actor_type, actor_id, target_type, target_id, role_id, inherited)
);
CREATE INDEX assignments_target ON assignments (target_type, target_id);

-- ---------------------------------------------------------------- catalog

CREATE TABLE regions (
    id               TEXT PRIMARY KEY,
    description      TEXT NOT NULL DEFAULT '',
    parent_region_id TEXT
);

CREATE TABLE services (
    id          TEXT PRIMARY KEY,
    type        TEXT NOT NULL,
    name        TEXT,
    description TEXT,
    enabled     BOOLEAN NOT NULL DEFAULT TRUE
);

CREATE TABLE endpoints (
    id         TEXT PRIMARY KEY,
    service_id TEXT NOT NULL REFERENCES services (id) ON DELETE CASCADE,
    interface  TEXT NOT NULL,
    region_id  TEXT REFERENCES regions (id),
    url        TEXT NOT NULL,
    enabled    BOOLEAN NOT NULL DEFAULT TRUE
);

-- ---------------------------------------------------------------- application credentials, tokens

CREATE TABLE app_credentials (
    id           TEXT PRIMARY KEY,
    user_id      TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    project_id   TEXT NOT NULL REFERENCES projects (id) ON DELETE CASCADE,
    name         TEXT NOT NULL,
    description  TEXT,
    expires_at   BIGINT,
    unrestricted BOOLEAN,
    secret_hash  TEXT NOT NULL,
    UNIQUE (user_id, name)
);

CREATE TABLE app_credential_roles (
    app_credential_id TEXT NOT NULL REFERENCES app_credentials (id) ON DELETE CASCADE,
    role_id           TEXT NOT NULL REFERENCES roles (id) ON DELETE CASCADE,
    PRIMARY KEY (app_credential_id, role_id)
);

CREATE TABLE app_credential_access_rules (
    id                TEXT PRIMARY KEY,
    app_credential_id TEXT NOT NULL REFERENCES app_credentials (id) ON DELETE CASCADE,
    service           TEXT NOT NULL,
    method            TEXT NOT NULL,
    path              TEXT NOT NULL
);
CREATE INDEX access_rules_credential ON app_credential_access_rules (app_credential_id);

-- Keys that seal tokens, themselves sealed by the key-encryption key. The newest one seals, all open.
CREATE TABLE token_keys (
    id      BIGINT PRIMARY KEY,
    sealed  BLOB NOT NULL,
    created BIGINT NOT NULL
);

CREATE TABLE revoked_tokens (
    audit_id   TEXT PRIMARY KEY,
    expires_at BIGINT NOT NULL
);

-- ---------------------------------------------------------------- key manager

-- One data key a project, sealed by the key-encryption key.
CREATE TABLE project_keys (
    id         TEXT PRIMARY KEY,
    project_id TEXT NOT NULL UNIQUE,
    sealed     BLOB NOT NULL,
    created    BIGINT NOT NULL
);

CREATE TABLE secrets (
    id           TEXT PRIMARY KEY,
    project_id   TEXT NOT NULL,
    creator_id   TEXT NOT NULL,
    name         TEXT,
    secret_type  TEXT NOT NULL,
    algorithm    TEXT,
    bit_length   BIGINT,
    mode         TEXT,
    expiration   BIGINT,
    content_type TEXT,
    key_id       TEXT REFERENCES project_keys (id),
    sealed       BLOB,
    created      BIGINT NOT NULL,
    updated      BIGINT NOT NULL
);
CREATE INDEX secrets_project ON secrets (project_id, created);

CREATE TABLE secret_acls (
    secret_id      TEXT PRIMARY KEY REFERENCES secrets (id) ON DELETE CASCADE,
    project_access BOOLEAN NOT NULL,
    created        BIGINT NOT NULL,
    updated        BIGINT NOT NULL
);

CREATE TABLE secret_acl_users (
    secret_id TEXT NOT NULL REFERENCES secret_acls (secret_id) ON DELETE CASCADE,
    user_id   TEXT NOT NULL,
    PRIMARY KEY (secret_id, user_id)
);

CREATE TABLE secret_consumers (
    secret_id     TEXT NOT NULL REFERENCES secrets (id) ON DELETE CASCADE,
    project_id    TEXT NOT NULL,
    service       TEXT NOT NULL,
    resource_type TEXT NOT NULL,
    resource_id   TEXT NOT NULL,
    created       BIGINT NOT NULL,
    PRIMARY KEY (secret_id, service, resource_type, resource_id)
);

CREATE TABLE orders (
    id           TEXT PRIMARY KEY,
    project_id   TEXT NOT NULL,
    creator_id   TEXT NOT NULL,
    type         TEXT NOT NULL,
    meta         TEXT NOT NULL,
    status       TEXT NOT NULL,
    secret_id    TEXT,
    error_status TEXT,
    error_reason TEXT,
    created      BIGINT NOT NULL,
    updated      BIGINT NOT NULL
);
CREATE INDEX orders_project ON orders (project_id, created);
