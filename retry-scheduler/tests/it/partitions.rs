//! Partitions ahead of the clock and behind it.

use crate::world::{World, retry, settings};
use floodway_schemas::ids::{SubscriptionId, TenantId};
use floodway_store::{
    deliveries::{self, DeliveryFilter},
    delivery_indexes, missing_indexes,
    partitions::{self, Plan, Retention},
};
use std::time::Duration;
use uuid::Uuid;

const TENANT: TenantId = TenantId(Uuid::from_u128(7));
const DAY: Duration = Duration::from_secs(86_400);
const RETENTION: Retention = Retention { deliveries: DAY, counts: DAY, dead_letters: DAY };

fn count(table: &str, name: &str) -> String {
    format!(
        "SELECT count(*) FROM pg_class LEFT JOIN pg_inherits ON inhrelid = oid \
         WHERE relname = '{name}' OR (inhparent = '{table}'::regclass AND relname LIKE '{name}')"
    )
}

/// A partition of long ago.
fn old_partition(table: &str) -> String {
    format!(
        "CREATE TABLE {table}_20200102_03 PARTITION OF {table} \
         FOR VALUES FROM ('2020-01-02T03:00:00Z') TO ('2020-01-02T04:00:00Z')"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_are_made_ahead_and_dropped_behind_the_cursor() {
    let world = World::new(1).await;
    world.execute(&old_partition("retry")).await;
    world.execute(&old_partition("delivery")).await;
    world.execute(&old_partition("dead_letter_replay")).await;
    let plan = Plan { retry_hours: 1, retry_days: 3, delivery_hours: 2, ..Plan::default() };
    let mut client = partitions::lock(&world.pool).await.unwrap().unwrap();
    assert!(partitions::lock(&world.pool).await.unwrap().is_none(), "one at a time");

    let report = partitions::maintain(&mut client, plan, RETENTION).await.unwrap();
    assert_eq!(
        report.dropped,
        ["delivery_20200102_03", "dead_letter_replay_20200102_03"],
        "no cursor is past the retries yet"
    );
    assert!(report.ahead >= Duration::from_secs(2 * 3600));
    assert!(report.created.iter().any(|name| name.starts_with("dead_letter_")));
    let months = world.number(&count("dead_letter_replay", "dead_letter_replay_______")).await;
    assert_eq!(months, 2, "replays of dead letters have the months of dead letters");
    let again = partitions::maintain(&mut client, plan, RETENTION).await.unwrap();
    assert!(again.created.is_empty() && again.dropped.is_empty(), "{again:?}");

    // A shard's cursor holds them, wherever the others are.
    for (shard, cursor) in [(0, "clock_timestamp()"), (1, "'2020-01-02T03:59:59Z'")] {
        world
            .execute(&format!(
                "INSERT INTO retry_shard (shard, epoch, owner, next_offset, cur_due, cur_id, batched_at) \
                 VALUES ({shard}, 1, 'me', 0, {cursor}, 0, clock_timestamp())"
            ))
            .await;
        let report = partitions::maintain(&mut client, plan, RETENTION).await.unwrap();
        let dropped: &[&str] = if shard == 0 { &["retry_20200102_03"] } else { &[] };
        assert_eq!(report.dropped, dropped);
        world.execute(&format!("DROP TABLE IF EXISTS retry_20200102_03; {}", old_partition("retry"))).await;
    }
    world.execute("UPDATE retry_shard SET cur_due = clock_timestamp()").await;
    let report = partitions::maintain(&mut client, plan, RETENTION).await.unwrap();
    assert_eq!(report.dropped, ["retry_20200102_03"]);
    drop(client);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_crash_left_of_dropping_is_finished() {
    let world = World::new(1).await;
    world.execute(&old_partition("delivery")).await;
    world.execute("ALTER TABLE delivery DETACH PARTITION delivery_20200102_03").await;
    world.execute(&old_partition("retry")).await;
    // A reader keeps the second half of DETACH CONCURRENTLY waiting, until its statement times out.
    let mut reader = world.pool.get().await.unwrap();
    let reading = reader.transaction().await.unwrap();
    reading.query("SELECT count(*) FROM retry", &[]).await.unwrap();
    let client = world.pool.get().await.unwrap();
    client.batch_execute("SET statement_timeout = 500").await.unwrap();
    let detach = "ALTER TABLE retry DETACH PARTITION retry_20200102_03 CONCURRENTLY";
    assert!(client.batch_execute(detach).await.is_err());
    reading.rollback().await.unwrap();

    let mut client = partitions::lock(&world.pool).await.unwrap().unwrap();
    let plan = Plan { retry_hours: 1, retry_days: 3, delivery_hours: 2, ..Plan::default() };
    let report = partitions::maintain(&mut client, plan, RETENTION).await.unwrap();
    let mut dropped = report.dropped;
    dropped.sort();
    assert_eq!(report.blocked, None);
    assert_eq!(dropped, ["delivery_20200102_03", "retry_20200102_03"]);
    assert_eq!(world.number(&count("retry", "retry_20200102_03")).await, 0);
    drop((client, reader));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_shard_lets_old_partitions_go_and_a_missing_one_is_made_when_needed() {
    let world = World::new(1).await;
    world.execute(&old_partition("retry")).await;
    let mut settings = settings();
    settings.maintenance_interval = Duration::from_secs(3600);
    let scheduler = world.start_with(settings, world.pool()).await;
    world.number_becomes(&count("retry", "retry_2%"), |n| n > 3).await;
    world.number_becomes("SELECT count(*) FROM retry_shard", |n| n == 1).await;
    // The cursor of a shard without any retry follows the clock.
    let lag = "SELECT extract(epoch FROM clock_timestamp() - min(cur_due))::bigint FROM retry_shard";
    world.number_becomes(lag, |seconds| seconds <= 2).await;
    // All partitions of history vanish; the next batch asks for new ones and waits for them. The same pass drops.
    world
        .execute(
            "DO $$ DECLARE name text; BEGIN FOR name IN SELECT c.relname FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid \
             WHERE inhparent = 'delivery'::regclass LOOP EXECUTE 'DROP TABLE ' || name; END LOOP; END $$",
        )
        .await;
    world.write(0, &[retry(1, 300)]);
    world.read_due(1).await;
    world.number_becomes(&count("retry", "retry_20200102_03"), |n| n == 0).await;
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_that_comes_near_is_replaced_by_hours_if_it_is_empty() {
    let world = World::new(1).await;
    let mut client = partitions::lock(&world.pool).await.unwrap().unwrap();
    let far = Plan { retry_hours: 1, retry_days: 6, ..Plan::default() };
    partitions::maintain(&mut client, far, RETENTION).await.unwrap();
    let row = "INSERT INTO retry VALUES (0, clock_timestamp() + interval '4 days', 1, gen_random_uuid(), \
               gen_random_uuid(), 'order-1', 1, 'k', 'r')";
    world.execute(row).await;
    let days = world.number(&count("retry", "retry_________")).await;
    let near = Plan { retry_hours: 5 * 24, ..far };
    partitions::maintain(&mut client, near, RETENTION).await.unwrap();
    // The day with the row, and what still lies beyond the hours, stay days.
    let left = world.number(&count("retry", "retry_________")).await;
    assert!((1..=2).contains(&left) && days > left, "{days} days, then {left}");
    assert_eq!(world.number("SELECT count(*) FROM retry").await, 1);
    for hours in (0..5 * 24).step_by(5) {
        let row = format!(
            "INSERT INTO retry VALUES (0, clock_timestamp() + interval '{hours} hours', 2, gen_random_uuid(), \
             gen_random_uuid(), 'order-2', 1, 'k', 'r')"
        );
        world.execute(&row).await;
    }
    drop(client);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_hour_of_history_is_indexed_when_it_has_closed_and_found_by_everything_before_and_after() {
    let world = World::new(1).await;
    let mut client = partitions::lock(&world.pool).await.unwrap().unwrap();
    let plan = Plan { retry_hours: 1, retry_days: 3, delivery_hours: 2, ..Plan::default() };
    let retention = Retention { deliveries: 9_000 * DAY, ..RETENTION };
    world.execute(&old_partition("delivery")).await;
    partitions::maintain(&mut client, plan, retention).await.unwrap();
    for (at, event) in [("'2020-01-02T03:30:00Z'", "old"), ("clock_timestamp()", "new")] {
        for n in 0..20 {
            let (status, members) =
                if n == 7 { (418, "'{inside}', '{order.paid}'") } else { (500, "NULL, NULL") };
            world
                .execute(&format!(
                    "INSERT INTO delivery VALUES ({at}, 0, {n}, {at}, '{tenant}', '{tenant}', '{event}-{n}', 'order.created', 1, \
                     'retry', NULL, {status}, 'status', NULL, 1, NULL, NULL, NULL, {members})",
                    tenant = TENANT.0
                ))
                .await;
        }
    }
    let text = |text: &str| Some(text.to_owned());
    let of = || DeliveryFilter::of(TENANT);
    let check = async || {
        for (filter, expected) in [
            (of(), 40),
            (DeliveryFilter { subscription: Some(SubscriptionId(TENANT.0)), ..of() }, 40),
            (DeliveryFilter { event_id: text("old-3"), ..of() }, 1),
            (DeliveryFilter { event_id: text("old-7"), ..of() }, 1),
            (DeliveryFilter { event_id: text("inside"), ..of() }, 2),
            (DeliveryFilter { event_type: text("order.created"), ..of() }, 40),
            (DeliveryFilter { event_type: text("order.paid"), ..of() }, 2),
            (DeliveryFilter { kind: text("retry"), ..of() }, 40),
            (DeliveryFilter { kind: text("dead"), ..of() }, 0),
            (DeliveryFilter { status: Some(418), error: text("status"), ..of() }, 2),
        ] {
            let client = world.pool.get().await.unwrap();
            let (mut found, mut cursor) = (Vec::new(), None);
            loop {
                let page = deliveries::list(&client, &filter, cursor, 7).await.unwrap();
                found.extend(page.items.into_iter().map(|row| row.place));
                cursor = page.next_cursor.map(|cursor| cursor.parse().unwrap());
                if cursor.is_none() {
                    break;
                }
            }
            assert_eq!(found.len(), expected, "{filter:?}");
            assert!(found.is_sorted_by(|one, next| one > next), "{filter:?}");
        }
    };
    check().await;
    assert_eq!(delivery_indexes::build(&mut client).await.unwrap(), ["delivery_20200102_03"]);
    assert!(delivery_indexes::build(&mut client).await.unwrap().is_empty(), "once");
    let indexes = |at: &str| {
        format!(
            "SELECT count(*) FROM pg_index WHERE indrelid = (SELECT tableoid FROM delivery WHERE event_id = '{at}-0')"
        )
    };
    assert_eq!((world.number(&indexes("old")).await, world.number(&indexes("new")).await), (9, 2));
    check().await;
    drop(client);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_of_a_new_version_is_built_for_partitions_that_were_there_before_it() {
    let world = World::new(1).await;
    let mut client = partitions::lock(&world.pool).await.unwrap().unwrap();
    // As a database of an older version has them: one partition with rows, and one whose hour was indexed.
    world.execute("DROP INDEX delivery_by_batch; DROP INDEX dead_letter_by_type").await;
    world.execute(&old_partition("delivery")).await;
    world.execute(&old_partition("dead_letter")).await;
    let older = "CREATE INDEX delivery_20200102_03_by_batch ON delivery_20200102_03 (tenant_id, recorded_at) WHERE members IS NOT NULL";
    world.execute(older).await;
    let migration = include_str!("../../../store/migrations/V14__lookups_of_batches_and_types.sql");
    world.execute(migration).await;
    let valid = "SELECT count(*) FROM pg_index WHERE indisvalid \
                 AND indexrelid IN ('delivery_by_batch'::regclass, 'dead_letter_by_type'::regclass)";
    assert_eq!(world.number(valid).await, 0);
    // One that is made now has both, although those of the tables are not complete.
    let plan = Plan { retry_hours: 1, retry_days: 3, delivery_hours: 2, ..Plan::default() };
    let retention = Retention { deliveries: 9_000 * DAY, dead_letters: 9_000 * DAY, ..RETENTION };
    partitions::maintain(&mut client, plan, retention).await.unwrap();
    let built = missing_indexes::complete(&mut client).await.unwrap();
    assert_eq!(built, ["dead_letter_20200102_03_by_type", "delivery_20200102_03_by_batch"]);
    assert_eq!(world.number(valid).await, 2);
    assert!(missing_indexes::complete(&mut client).await.unwrap().is_empty());
    drop(client);
    world.end().await;
}
