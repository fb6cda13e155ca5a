-- What a service of the first release left behind, for the test of migrations: rows in every table of its schema. The
-- key-encryption key is 32 bytes of 9; alice's password is "alice-pw"; the payload is "of the first release".

INSERT INTO meta (name, value) VALUES ('kek-check', X'01b5e09be7f3e464d04aec6402bd9123e4022373de923aae4e6a1ea719fe19fd6ad085e2ccbc');
INSERT INTO domains (id, name, description) VALUES ('default', 'Default', 'The default domain'), ('d1', 'north', '');
INSERT INTO projects (id, domain_id, parent_id, name, extra) VALUES
    ('p1', 'default', 'default', 'quay', '{"cost_centre": "77"}'),
    ('p2', 'default', 'p1', 'pier', '{}');
INSERT INTO project_tags (project_id, tag) VALUES ('p1', 'blue'), ('p1', 'old');
INSERT INTO users (id, domain_id, name, default_project_id, password_hash, tokens_valid_after, options, extra) VALUES
    ('alice', 'default', 'alice', 'p1', 'bcrypt-sha256:$2b$04$WWKHtyxh6AnRioHwyRWNVuKq0W4KzRt59BRJauAQrvrqgTjMOq97m', 5, '{"ignore_password_expiry": true}', '{"email": "alice@example.org"}'),
    ('bob', 'default', 'bob', NULL, NULL, 0, '{}', '{}');
INSERT INTO user_groups (id, domain_id, name) VALUES ('g1', 'default', 'crew');
INSERT INTO group_members (group_id, user_id) VALUES ('g1', 'alice');
INSERT INTO roles (id, domain_id, name, options) VALUES
    ('r-member', NULL, 'member', '{}'), ('r-reader', NULL, 'reader', '{}'), ('r-admin', NULL, 'admin', '{"immutable": true}');
INSERT INTO implied_roles (prior_role_id, implied_role_id) VALUES ('r-member', 'r-reader');
INSERT INTO assignments (actor_type, actor_id, target_type, target_id, role_id, inherited) VALUES
    ('user', 'alice', 'project', 'p1', 'r-member', FALSE),
    ('group', 'g1', 'project', 'p1', 'r-member', TRUE),
    ('user', 'alice', 'system', 'all', 'r-admin', FALSE);
INSERT INTO regions (id, parent_region_id) VALUES ('RegionOne', NULL), ('RegionTwo', 'RegionOne');
INSERT INTO services (id, type, name) VALUES ('s1', 'key-manager', 'barbican');
INSERT INTO endpoints (id, service_id, interface, region_id, url)
    VALUES ('e1', 's1', 'public', 'RegionOne', 'https://keys.example.org:5000/key-manager');
-- Two credentials with the same rule, and one rule of one alone.
INSERT INTO app_credentials (id, user_id, project_id, name, expires_at, unrestricted, secret_hash) VALUES
    ('c1', 'alice', 'p1', 'one', NULL, FALSE, 'bcrypt-sha256:$2b$04$WWKHtyxh6AnRioHwyRWNVuKq0W4KzRt59BRJauAQrvrqgTjMOq97m'), ('c2', 'alice', 'p1', 'two', 4102444800000000, NULL, 'bcrypt-sha256:$2b$04$WWKHtyxh6AnRioHwyRWNVuKq0W4KzRt59BRJauAQrvrqgTjMOq97m');
INSERT INTO app_credential_roles (app_credential_id, role_id) VALUES ('c1', 'r-member'), ('c2', 'r-reader');
INSERT INTO app_credential_access_rules (id, app_credential_id, service, method, path) VALUES
    ('a1', 'c1', 'key-manager', 'GET', '/v1/secrets/**'),
    ('a2', 'c2', 'key-manager', 'GET', '/v1/secrets/**'),
    ('a3', 'c2', 'identity', 'GET', '/v3/auth/catalog');
INSERT INTO token_keys (id, sealed, created) VALUES (1, X'016a9d9dffd1b15670e9ce307fee0130505b5f2cc00a504fc7dabf0bb31e6b8accfa7aba85d88552d895227fd3e2205c303cccd5595b2733f436b3fcf3', 7);
INSERT INTO revoked_tokens (audit_id, expires_at) VALUES ('of-long-ago', 4102444800000000);
INSERT INTO project_keys (id, project_id, sealed, created) VALUES ('k1', 'p1', X'0183cb1b6e91eadb7cead31d6370ccaaa2904524452f4504346ffb2a85c5d1a0e2a615712c8951e7565674bfa0856125519e91bb02040f54f0e1ea848b', 8);
-- Payloads were sealed by their project's key itself.
INSERT INTO secrets (id, project_id, creator_id, name, secret_type, expiration, content_type, key_id, sealed, created, updated) VALUES
    ('11111111-1111-4111-8111-111111111111', 'p1', 'alice', 'first', 'opaque', NULL, 'text/plain', 'k1', X'01bf3566644b9a8c9915039444fb170f1c3fea637f664b08325daba466ccf93a708c6acbe5887024e749255a0d32d84970', 9, 9),
    ('22222222-2222-4222-8222-222222222222', 'p1', 'alice', 'empty', 'opaque', 4102444800000000, NULL, NULL, NULL, 10, 10);
INSERT INTO secret_acls (secret_id, project_access, created, updated)
    VALUES ('11111111-1111-4111-8111-111111111111', TRUE, 11, 11);
INSERT INTO secret_acl_users (secret_id, user_id) VALUES ('11111111-1111-4111-8111-111111111111', 'bob');
INSERT INTO secret_consumers (secret_id, project_id, service, resource_type, resource_id, created)
    VALUES ('11111111-1111-4111-8111-111111111111', 'p1', 'volume', 'volume', 'v1', 12);
INSERT INTO orders (id, project_id, creator_id, type, meta, status, secret_id, created, updated)
    VALUES ('33333333-3333-4333-8333-333333333333', 'p1', 'alice', 'key', '{"name": "ordered"}', 'ACTIVE',
            '22222222-2222-4222-8222-222222222222', 13, 13);
