-- Replicas of several releases on one database: the lowest migration that a program has to know to work on these records, and the
-- highest one that each replica's program knows.

ALTER TABLE generation ADD COLUMN needs BIGINT NOT NULL DEFAULT 0;
ALTER TABLE replicas ADD COLUMN knows BIGINT NOT NULL DEFAULT 0;
