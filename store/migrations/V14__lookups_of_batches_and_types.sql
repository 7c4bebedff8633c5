-- Indexes for what is there already are built partition by partition while everything goes on (store/src/missing_indexes.rs).
-- So they are created for the table only, which takes a moment; partitions that are made from now on have them.

-- Look-ups by event or type ask for single events and for batches: without this, each would read a tenant's whole open hour twice.
-- It costs nothing where no subscription asks for batches.
CREATE INDEX delivery_by_batch ON ONLY delivery (tenant_id, recorded_at) WHERE members IS NOT NULL;

-- Dead letters of a type that few, or none, are of.
CREATE INDEX dead_letter_by_type ON ONLY dead_letter (tenant_id, event_type, recorded_at, shard, id);
