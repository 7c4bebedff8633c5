-- What went over the wire as text. As jsonb the server takes it apart when it is written, which took more of its time than all other
-- columns together, and it is only ever read as a whole. Rows that are there keep theirs in `exchange`.
ALTER TABLE delivery ADD COLUMN wire text;
COMMENT ON COLUMN delivery.wire IS
    'Address, timings and headers of the attempt, as JSON, see schemas/src/exchange.rs. NULL: no attempt was made, or not recorded, or see exchange.';
COMMENT ON COLUMN delivery.exchange IS 'What wire is, in rows written before schema 19.';
