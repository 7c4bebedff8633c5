-- Pending retries, dead letters and history: what became of each delivery.
--
-- Why no queue table: rows here are only ever appended. Progress is a cursor per shard, and space returns by dropping
-- whole partitions, so nothing on the hot path leaves dead tuples behind, and no long reader can slow it down.
-- Why no DEFAULT partitions: with one, partitions could not be detached concurrently. The retry scheduler creates
-- partitions ahead of time (store/src/partitions.rs); an insert that finds none is retried after it did.
-- Why few constraints on the bulk tables: each is paid per row at COPY speed, and their one writer checks the same.
--
-- Owner: retry-scheduler; the control plane reads. A *shard* is a partition of the topic `outcomes`; an `id` is the
-- offset in it of the outcome that a row came from. Both together identify a row for ever.

CREATE TABLE retry_shard (
    shard       integer     NOT NULL,
    epoch       bigint      NOT NULL,
    owner       text        NOT NULL,
    next_offset bigint      NOT NULL,
    cur_due     timestamptz NOT NULL,
    cur_id      bigint      NOT NULL,
    batched_at  timestamptz NOT NULL,
    CONSTRAINT retry_shard_pkey PRIMARY KEY (shard),
    CONSTRAINT retry_shard_shard_not_negative CHECK (shard >= 0),
    CONSTRAINT retry_shard_epoch_positive CHECK (epoch > 0),
    CONSTRAINT retry_shard_next_offset_not_negative CHECK (next_offset >= 0)
-- A few rows that are updated all the time: room for versions on the page, and eager vacuuming.
) WITH (fillfactor = 10, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
COMMENT ON TABLE retry_shard IS 'Progress of each shard. Every write to a shard is fenced by its epoch.';
COMMENT ON COLUMN retry_shard.epoch IS 'Grows by one with each takeover; writes of earlier owners find no row.';
COMMENT ON COLUMN retry_shard.owner IS 'Which process took over last, for people.';
COMMENT ON COLUMN retry_shard.next_offset IS 'Next offset of `outcomes` to read: the source of truth, not the group''s offset.';
COMMENT ON COLUMN retry_shard.cur_due IS 'Cursor: every retry up to (cur_due, cur_id) was produced to `due` and acknowledged.';
COMMENT ON COLUMN retry_shard.batched_at IS 'When next_offset moved last; finds the place again if the topic was cut short.';

CREATE TABLE retry (
    shard           integer     NOT NULL,
    due_at          timestamptz NOT NULL,
    id              bigint      NOT NULL,
    tenant_id       uuid        NOT NULL,
    subscription_id uuid        NOT NULL,
    event_id        text        NOT NULL,
    attempt         integer     NOT NULL,
    record_key      text        NOT NULL,
    rec             bytea       NOT NULL
) PARTITION BY RANGE (due_at);
-- Compressing events again at every insert would cost more than the disk.
ALTER TABLE retry ALTER COLUMN rec SET STORAGE EXTERNAL;
-- The only index: a shard's rows in the order in which they fall due.
CREATE INDEX retry_by_due ON retry (shard, due_at, id);
COMMENT ON TABLE retry IS 'Deliveries to be made later. Rows behind the shard''s cursor are done.';
COMMENT ON COLUMN retry.attempt IS 'Number of the attempt to make.';
COMMENT ON COLUMN retry.record_key IS 'Kafka key of the record on `due`.';
COMMENT ON COLUMN retry.rec IS 'Value of the record on `due`, ready to produce.';

CREATE TABLE delivery (
    recorded_at     timestamptz NOT NULL,
    shard           integer     NOT NULL,
    id              bigint      NOT NULL,
    at              timestamptz NOT NULL,
    tenant_id       uuid        NOT NULL,
    subscription_id uuid        NOT NULL,
    event_id        text        NOT NULL,
    event_type      text        NOT NULL,
    attempt         integer     NOT NULL,
    kind            text        NOT NULL,
    reason          text,
    status          integer,
    error           text,
    detail          text,
    duration_ms     integer,
    next_at         timestamptz,
    response        text
) PARTITION BY RANGE (recorded_at);
-- A tenant's deliveries, newest first; other filters are applied to what it yields.
CREATE INDEX delivery_by_tenant ON delivery (tenant_id, recorded_at, shard, id);
COMMENT ON TABLE delivery IS 'History: failures and final outcomes, and successes where the subscription asks for them.';
COMMENT ON COLUMN delivery.recorded_at IS 'When the row was written, by this server''s clock.';
COMMENT ON COLUMN delivery.at IS 'When the attempt ended, by the dispatcher''s clock.';
COMMENT ON COLUMN delivery.kind IS 'What was decided, see schemas/src/outcome.rs.';
COMMENT ON COLUMN delivery.status IS 'HTTP status. NULL: no response came.';
COMMENT ON COLUMN delivery.next_at IS 'When the next attempt is due. NULL: there is none.';

CREATE TABLE delivery_count (
    minute          timestamptz NOT NULL,
    tenant_id       uuid        NOT NULL,
    subscription_id uuid        NOT NULL,
    kind            text        NOT NULL,
    n               bigint      NOT NULL
) PARTITION BY RANGE (minute);
CREATE INDEX delivery_count_by_tenant ON delivery_count (tenant_id, minute);
COMMENT ON TABLE delivery_count IS 'Numbers of outcomes, as deltas: several rows may stand for the same minute; readers add them up.';
COMMENT ON COLUMN delivery_count.minute IS 'Start of the minute in which they were recorded, by this server''s clock.';

CREATE TABLE dead_letter (
    recorded_at     timestamptz NOT NULL,
    shard           integer     NOT NULL,
    id              bigint      NOT NULL,
    at              timestamptz NOT NULL,
    since           timestamptz NOT NULL,
    tenant_id       uuid        NOT NULL,
    subscription_id uuid        NOT NULL,
    event_id        text        NOT NULL,
    event_type      text        NOT NULL,
    record_key      text        NOT NULL,
    attempts        integer     NOT NULL,
    reason          text        NOT NULL,
    status          integer,
    error           text,
    detail          text,
    response        text,
    event           bytea       NOT NULL
) PARTITION BY RANGE (recorded_at);
ALTER TABLE dead_letter ALTER COLUMN event SET STORAGE EXTERNAL;
-- Pages of a tenant's dead letters, newest first.
CREATE INDEX dead_letter_by_tenant ON dead_letter (tenant_id, recorded_at, shard, id);
-- Look-ups by the public id <shard>-<id>.
CREATE INDEX dead_letter_by_id ON dead_letter (shard, id);
COMMENT ON TABLE dead_letter IS 'Deliveries given up, with their events. The topic `dead-letters` has the same records.';
COMMENT ON COLUMN dead_letter.since IS 'Where the delivery''s age started.';
COMMENT ON COLUMN dead_letter.record_key IS 'Kafka key under which the event is delivered again.';
COMMENT ON COLUMN dead_letter.event IS 'The event''s envelope, byte for byte.';
