-- What commands to pending retries leave behind. Retries themselves are never changed: a mark says which of them are not to fire
-- when their time comes, because they were cancelled or fired before it.
--
-- A mark is appended in the transaction that stores the position of its command, and repeated with a greater `done` as its work
-- goes on. It lasts as long as a retry that it covers can be pending: its partition goes when the lowest cursor has passed it.
CREATE TABLE retry_mark (
    until           timestamptz NOT NULL,
    shard           integer     NOT NULL,
    id              bigint      NOT NULL,
    recorded_at     timestamptz NOT NULL,
    command         uuid        NOT NULL,
    action          text        NOT NULL,
    tenant_id       uuid        NOT NULL,
    subscription_id uuid,
    event_id        text,
    retry_id        bigint,
    done            bigint      NOT NULL
) PARTITION BY RANGE (until);
CREATE INDEX retry_mark_by_shard ON retry_mark (shard, id);
COMMENT ON TABLE retry_mark IS 'Commands to pending retries. Of several rows with one id the one with the greatest `done` counts.';
COMMENT ON COLUMN retry_mark.until IS 'No retry that it covers is due later.';
COMMENT ON COLUMN retry_mark.id IS 'Of the command, as an outcome in its place would have: it covers retries with lower ones.';
COMMENT ON COLUMN retry_mark.action IS 'now or cancel.';
COMMENT ON COLUMN retry_mark.subscription_id IS 'NULL: whatever subscription. The same goes for event_id and retry_id.';
COMMENT ON COLUMN retry_mark.done IS 'For now: retries that it covers up to this id were produced, or turned out to be cancelled.';
