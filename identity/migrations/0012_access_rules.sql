-- Access rules belong to a user and are shared by its application credentials: one that is the same is the same rule, and it stays
-- when the credential goes.

CREATE TABLE access_rules (
    id      TEXT PRIMARY KEY,
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    service TEXT NOT NULL,
    method  TEXT NOT NULL,
    path    TEXT NOT NULL,
    UNIQUE (user_id, service, method, path)
);

CREATE TABLE app_credential_rules (
    app_credential_id TEXT NOT NULL REFERENCES app_credentials (id) ON DELETE CASCADE,
    access_rule_id    TEXT NOT NULL REFERENCES access_rules (id),
    PRIMARY KEY (app_credential_id, access_rule_id)
);
CREATE INDEX app_credential_rules_rule ON app_credential_rules (access_rule_id);

INSERT INTO access_rules (id, user_id, service, method, path)
SELECT MIN(r.id), c.user_id, r.service, r.method, r.path
FROM app_credential_access_rules r
JOIN app_credentials c ON c.id = r.app_credential_id
GROUP BY c.user_id, r.service, r.method, r.path;

INSERT INTO app_credential_rules (app_credential_id, access_rule_id)
SELECT DISTINCT r.app_credential_id, a.id
FROM app_credential_access_rules r
JOIN app_credentials c ON c.id = r.app_credential_id
JOIN access_rules a ON a.user_id = c.user_id AND a.service = r.service AND a.method = r.method AND a.path = r.path;

DROP TABLE app_credential_access_rules;
