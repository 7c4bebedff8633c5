-- Marks of replayed dead letters by month, so that they end with the dead letters: whole partitions are dropped, by the
-- retry scheduler and by the dead letters' retention (store/src/partitions.rs). A mark is never older than its letter.
--
-- No release wrote marks before this, so none are carried over.
DROP TABLE dead_letter_replay;

CREATE TABLE dead_letter_replay (
    requested_at   timestamptz NOT NULL,
    tenant_id      uuid        NOT NULL,
    shard          integer     NOT NULL,
    outcome_offset bigint      NOT NULL,
    replay_id      uuid        NOT NULL
) PARTITION BY RANGE (requested_at);
-- "Was this dead letter replayed?", asked for each row of a list.
CREATE INDEX dead_letter_replay_letter ON dead_letter_replay (shard, outcome_offset);
COMMENT ON TABLE dead_letter_replay IS 'Requests to deliver a dead letter again, written after its record was acknowledged.';
COMMENT ON COLUMN dead_letter_replay.requested_at IS 'When the row was written, by this server''s clock.';
COMMENT ON COLUMN dead_letter_replay.shard IS 'Partition of `outcomes` of the dead letter''s id <shard>-<offset>.';
COMMENT ON COLUMN dead_letter_replay.outcome_offset IS 'Offset of the dead letter''s id <shard>-<offset>.';
