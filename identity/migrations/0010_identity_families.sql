-- Families of the identity API that are kept whole: each record is one JSON object. The owners are columns, so that a
-- record ends with its user, project or domain.

CREATE TABLE documents (
    -- policy | credential | endpoint_group
    family     TEXT NOT NULL,
    id         TEXT NOT NULL,
    user_id    TEXT REFERENCES users (id) ON DELETE CASCADE,
    project_id TEXT REFERENCES projects (id) ON DELETE CASCADE,
    domain_id  TEXT REFERENCES domains (id) ON DELETE CASCADE,
    body       TEXT NOT NULL,
    -- What nobody may read in the database (credential blobs), sealed by a key of its own under the key-encryption key.
    sealed     BLOB,
    PRIMARY KEY (family, id)
);
CREATE INDEX documents_user ON documents (user_id);
CREATE INDEX documents_project ON documents (project_id);
CREATE INDEX documents_domain ON documents (domain_id);

-- Pairs of the catalog's families: endpoint_project, endpoint_group_project, policy_endpoint, policy_service,
-- policy_region_service (the second id is region/service).
CREATE TABLE associations (
    family    TEXT NOT NULL,
    first_id  TEXT NOT NULL,
    second_id TEXT NOT NULL,
    PRIMARY KEY (family, first_id, second_id)
);
CREATE INDEX associations_second ON associations (family, second_id);
