-- What a site with hundreds of thousands of records asks for all the time must not read all of them.

-- Housekeeping looks for secrets that are over.
CREATE INDEX secrets_expiration ON secrets (expiration) WHERE expiration IS NOT NULL;
-- Pages of lists over all domains go by name and id.
CREATE INDEX users_pages ON users (name, id);
CREATE INDEX projects_pages ON projects (name, id);
DROP INDEX users_name;
DROP INDEX projects_name;
-- A role, a group or a project that goes takes its assignments along.
CREATE INDEX assignments_role ON assignments (role_id);
