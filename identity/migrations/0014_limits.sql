-- Unified limits: how much of a resource of a service a project or domain may have. A registered limit is the default for
-- all; a limit is another value for one project or domain. -1 means no limit.

CREATE TABLE registered_limits (
    id            TEXT PRIMARY KEY,
    service_id    TEXT NOT NULL REFERENCES services (id),
    region_id     TEXT REFERENCES regions (id),
    resource_name TEXT NOT NULL,
    default_limit BIGINT NOT NULL,
    description   TEXT
);
CREATE UNIQUE INDEX registered_limits_one ON registered_limits (service_id, resource_name, coalesce(region_id, ''));
CREATE INDEX registered_limits_region ON registered_limits (region_id);

CREATE TABLE limits (
    id                  TEXT PRIMARY KEY,
    registered_limit_id TEXT NOT NULL REFERENCES registered_limits (id),
    -- Exactly one of the two.
    project_id          TEXT REFERENCES projects (id) ON DELETE CASCADE,
    domain_id           TEXT REFERENCES domains (id) ON DELETE CASCADE,
    resource_limit      BIGINT NOT NULL,
    description         TEXT
);
CREATE UNIQUE INDEX limits_one ON limits (registered_limit_id, coalesce(project_id, ''), coalesce(domain_id, ''));
CREATE INDEX limits_project ON limits (project_id);
CREATE INDEX limits_domain ON limits (domain_id);
