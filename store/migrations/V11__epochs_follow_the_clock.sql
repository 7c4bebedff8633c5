-- What an epoch is since it follows the clock; nothing else changes.
COMMENT ON COLUMN retry_shard.epoch IS
    'Grows with each takeover, to at least the server''s clock in microseconds: a database that lost its latest takeovers does not give an epoch twice. Writes of earlier owners find no row.';
