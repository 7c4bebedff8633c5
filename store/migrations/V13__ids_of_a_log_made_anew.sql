-- Ids that never come again, also where `outcomes` was made anew and its offsets begin at 0 once more.
ALTER TABLE retry_shard
    ADD COLUMN first_id bigint NOT NULL DEFAULT 0,
    ADD CONSTRAINT retry_shard_first_id_not_negative CHECK (first_id >= 0);
COMMENT ON COLUMN retry_shard.first_id IS
    'Id of offset 0 of the log: an outcome''s id is this and its offset. Grows when the log is read on from an earlier offset than before.';
