-- The rest of the key manager's records.

CREATE TABLE secret_metadata (
    secret_id TEXT NOT NULL REFERENCES secrets (id) ON DELETE CASCADE,
    key       TEXT NOT NULL,
    value     TEXT NOT NULL,
    PRIMARY KEY (secret_id, key)
);

CREATE TABLE containers (
    id         TEXT PRIMARY KEY,
    project_id TEXT NOT NULL,
    creator_id TEXT NOT NULL,
    name       TEXT,
    type       TEXT NOT NULL,
    created    BIGINT NOT NULL,
    updated    BIGINT NOT NULL
);
CREATE INDEX containers_project ON containers (project_id, created);

-- A secret that is deleted leaves its containers; a container that is deleted leaves its secrets.
CREATE TABLE container_secrets (
    container_id TEXT NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
    secret_id    TEXT NOT NULL REFERENCES secrets (id) ON DELETE CASCADE,
    name         TEXT,
    position     BIGINT NOT NULL,
    PRIMARY KEY (container_id, position)
);
CREATE INDEX container_secrets_secret ON container_secrets (secret_id);

CREATE TABLE container_acls (
    container_id   TEXT PRIMARY KEY REFERENCES containers (id) ON DELETE CASCADE,
    project_access BOOLEAN NOT NULL,
    created        BIGINT NOT NULL,
    updated        BIGINT NOT NULL
);

CREATE TABLE container_acl_users (
    container_id TEXT NOT NULL REFERENCES container_acls (container_id) ON DELETE CASCADE,
    user_id      TEXT NOT NULL,
    PRIMARY KEY (container_id, user_id)
);

CREATE TABLE container_consumers (
    container_id TEXT NOT NULL REFERENCES containers (id) ON DELETE CASCADE,
    project_id   TEXT NOT NULL,
    name         TEXT NOT NULL,
    url          TEXT NOT NULL,
    created      BIGINT NOT NULL,
    PRIMARY KEY (container_id, name, url)
);
CREATE INDEX container_consumers_project ON container_consumers (project_id);
CREATE INDEX secret_consumers_project ON secret_consumers (project_id);
CREATE INDEX secret_acl_users_user ON secret_acl_users (user_id);

-- A missing number is the service's default, -1 no limit, 0 none at all.
CREATE TABLE key_manager_quotas (
    project_id TEXT PRIMARY KEY,
    secrets    BIGINT,
    orders     BIGINT,
    containers BIGINT,
    consumers  BIGINT,
    cas        BIGINT,
    created    BIGINT NOT NULL
);

-- Projects that chose a secret store. There is one store, so the choice is kept and changes nothing.
CREATE TABLE preferred_secret_stores (
    project_id TEXT PRIMARY KEY,
    store_id   TEXT NOT NULL
);

CREATE TABLE transport_keys (
    id            TEXT PRIMARY KEY,
    plugin_name   TEXT NOT NULL,
    transport_key TEXT NOT NULL,
    created       BIGINT NOT NULL
);

ALTER TABLE orders ADD COLUMN container_id TEXT;
