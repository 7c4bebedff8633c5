-- Delivery of many events in one request. NULL, which every row has that is there already, is what held before: one event each.
ALTER TABLE subscription
    ADD COLUMN batch jsonb,
    ADD CONSTRAINT subscription_batch_object CHECK (jsonb_typeof(batch) = 'object');
COMMENT ON COLUMN subscription.batch IS
    'When batches close, see schemas/src/batch.rs. NULL: one event per request.';

-- A batch has one row, which history also finds by each of its events. Why no row per event: the rows of one outcome would have
-- the same place in lists, and a batch of a thousand would cost a thousand rows for each of its attempts.
ALTER TABLE delivery
    ADD COLUMN members text[],
    ADD COLUMN member_types text[];
COMMENT ON COLUMN delivery.members IS 'Ids of the events of a batch, whose own id is event_id. NULL: a single event.';
COMMENT ON COLUMN delivery.member_types IS 'Types of the events of a batch, each once. NULL: a single event.';

ALTER TABLE dead_letter ADD COLUMN members text[];
COMMENT ON COLUMN dead_letter.members IS 'Ids of the events of a batch, whose own id is event_id. NULL: a single event.';
COMMENT ON COLUMN dead_letter.event IS 'The event''s envelope, or the array of a batch''s, byte for byte.';
