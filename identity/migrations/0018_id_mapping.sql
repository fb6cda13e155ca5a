-- Which entry of a domain's directory an id belongs to. Ids are digests, so the way back is kept here, also when the entry
-- is gone: if it comes back, it is the same user or group. The entries themselves are mirrored in users, user_groups and
-- group_members under the public id.

CREATE TABLE id_mapping (
    public_id   TEXT PRIMARY KEY,
    domain_id   TEXT NOT NULL REFERENCES domains (id) ON DELETE CASCADE,
    -- user | group
    entity_type TEXT NOT NULL,
    -- The value of the directory's id attribute.
    local_id    TEXT NOT NULL
);
CREATE INDEX id_mapping_domain ON id_mapping (domain_id, entity_type);
