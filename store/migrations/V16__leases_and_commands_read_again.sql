-- Leases told apart from retries that wait. Schedulers of before write `false` for both, and list and count them together.
ALTER TABLE retry ADD COLUMN lease boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN retry.lease IS
    'A delivery under way: the row fires only if its attempt''s own outcome has not come by then. No command covers it.';

-- Commands that are read again because the log of a shard was cut short. What followed such a command when it was read first has lower
-- ids than it has now: without a lower bound it would cover that, too.
ALTER TABLE retry_shard
    ADD COLUMN read_again_to bigint NOT NULL DEFAULT 0,
    ADD CONSTRAINT retry_shard_read_again_to_not_negative CHECK (read_again_to >= 0);
COMMENT ON COLUMN retry_shard.read_again_to IS
    'Where the log ended when it was found cut short: commands before this offset may have been read before, with lower ids.';
ALTER TABLE retry_mark ADD COLUMN first_id bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN retry_mark.first_id IS 'It covers no retry with a lower id: those are of a log that was cut short and read again.';
