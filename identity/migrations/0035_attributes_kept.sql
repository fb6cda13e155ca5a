-- Whether the empty description of a project or group is none at all (null), as for domains.
ALTER TABLE projects ADD COLUMN undescribed BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE user_groups ADD COLUMN undescribed BOOLEAN NOT NULL DEFAULT FALSE;
-- Attributes that the API does not define but gives back, a JSON object, as users, groups and projects have them.
ALTER TABLE domains ADD COLUMN extra TEXT NOT NULL DEFAULT '{}';
ALTER TABLE roles ADD COLUMN extra TEXT NOT NULL DEFAULT '{}';
ALTER TABLE regions ADD COLUMN extra TEXT NOT NULL DEFAULT '{}';
ALTER TABLE services ADD COLUMN extra TEXT NOT NULL DEFAULT '{}';
ALTER TABLE endpoints ADD COLUMN extra TEXT NOT NULL DEFAULT '{}';
-- What the project that acts as a domain is tagged with, a JSON list.
ALTER TABLE domains ADD COLUMN tags TEXT NOT NULL DEFAULT '[]';
