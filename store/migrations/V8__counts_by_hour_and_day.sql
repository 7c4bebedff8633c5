-- Counts rolled up: a day's minutes become hours, a day's hours a row per day, so that what is read stays small however long
-- it goes back. Rolled up is what has ended, each period once: the rows of the coarser table and the mark that says so are
-- one transaction (store/src/count_levels.rs). The finer rows are not touched; their partitions are dropped later.
--
-- A version that does not know of these tables goes on writing minutes, and reads minutes until they are dropped.
CREATE TABLE delivery_count_hour (
    hour            timestamptz NOT NULL,
    tenant_id       uuid        NOT NULL,
    subscription_id uuid        NOT NULL,
    kind            text        NOT NULL,
    n               bigint      NOT NULL
) PARTITION BY RANGE (hour);
CREATE INDEX delivery_count_hour_by_tenant ON delivery_count_hour (tenant_id, hour);
COMMENT ON TABLE delivery_count_hour IS 'Sums of delivery_count by hour, for hours before delivery_count_progress.hours_to.';

CREATE TABLE delivery_count_day (
    day             timestamptz NOT NULL,
    tenant_id       uuid        NOT NULL,
    subscription_id uuid        NOT NULL,
    kind            text        NOT NULL,
    n               bigint      NOT NULL
) PARTITION BY RANGE (day);
CREATE INDEX delivery_count_day_by_tenant ON delivery_count_day (tenant_id, day);
COMMENT ON TABLE delivery_count_day IS 'Sums of delivery_count_hour by day in UTC, for days before delivery_count_progress.days_to.';

CREATE TABLE delivery_count_progress (
    singleton    boolean     NOT NULL DEFAULT true,
    hours_to     timestamptz NOT NULL,
    days_to      timestamptz NOT NULL,
    minutes_from timestamptz NOT NULL,
    hours_from   timestamptz NOT NULL,
    moved_at     timestamptz NOT NULL,
    CONSTRAINT delivery_count_progress_pkey PRIMARY KEY (singleton),
    CONSTRAINT delivery_count_progress_one_row CHECK (singleton),
    CONSTRAINT delivery_count_progress_days_are_of_hours CHECK (days_to <= hours_to),
    CONSTRAINT delivery_count_progress_minutes_are_rolled_up CHECK (minutes_from <= hours_to),
    CONSTRAINT delivery_count_progress_hours_are_rolled_up CHECK (hours_from <= days_to)
);
COMMENT ON TABLE delivery_count_progress IS 'How far counts were rolled up, and from where on the finer ones are kept; one row.';
COMMENT ON COLUMN delivery_count_progress.hours_to IS 'Hours that start earlier are in delivery_count_hour.';
COMMENT ON COLUMN delivery_count_progress.days_to IS 'Days that start earlier are in delivery_count_day.';
COMMENT ON COLUMN delivery_count_progress.minutes_from IS 'Minutes that start earlier may be gone. A whole day.';
COMMENT ON COLUMN delivery_count_progress.hours_from IS 'Hours that start earlier may be gone. A whole day.';
COMMENT ON COLUMN delivery_count_progress.moved_at IS
    'When minutes_from or hours_from moved last: partitions are dropped only when no reader can have seen the value before.';

INSERT INTO delivery_count_progress (hours_to, days_to, minutes_from, hours_from, moved_at)
SELECT first_day, first_day, first_day, first_day, now()
FROM (SELECT date_trunc('day', coalesce(min(minute), now()), 'UTC') AS first_day FROM delivery_count) AS start;
