-- History by tenant and time, without what tells rows of the same instant apart: all rows of a batch have one instant, and
-- equal keys are stored once. Indexes of closed hours are built hour by hour (store/src/delivery_indexes.rs).
DROP INDEX delivery_by_tenant;
CREATE INDEX delivery_by_time ON delivery (tenant_id, recorded_at);

-- Dead letters are few, so theirs are indexed at once. Those of a subscription, and those of an event.
CREATE INDEX dead_letter_by_subscription ON dead_letter (subscription_id, recorded_at, shard, id);
CREATE INDEX dead_letter_by_event ON dead_letter (event_id);
CREATE INDEX dead_letter_by_member ON dead_letter USING gin (members) WHERE members IS NOT NULL;
