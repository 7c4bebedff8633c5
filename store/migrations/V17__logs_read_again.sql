-- Where a log was cut short, commands may be read again.
ALTER TABLE retry_shard
    ADD COLUMN read_again_to bigint NOT NULL DEFAULT 0,
    ADD CONSTRAINT retry_shard_read_again_to_not_negative CHECK (read_again_to >= 0);
COMMENT ON COLUMN retry_shard.read_again_to IS
    'Where the log ended when it was found cut short: commands before this offset may have been read before, with lower ids.';
