-- What went over the wire in an attempt, for people. NULL, which every row has that is there already: nothing is known.
ALTER TABLE delivery ADD COLUMN exchange jsonb;
COMMENT ON COLUMN delivery.exchange IS
    'Address, timings and headers of the attempt, see schemas/src/exchange.rs. NULL: no attempt was made, or not recorded.';
