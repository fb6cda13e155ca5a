-- Pages of the list of groups over all domains go by name and id.
CREATE INDEX user_groups_pages ON user_groups (name, id);
