-- Commands that are read again because the log of a shard was cut short. What followed such a command when it was read first has lower
-- ids than it has now: without a lower bound it would cover that, too.
ALTER TABLE retry_mark ADD COLUMN first_id bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN retry_mark.first_id IS 'It covers no retry with a lower id: those are of a log that was cut short and read again.';
