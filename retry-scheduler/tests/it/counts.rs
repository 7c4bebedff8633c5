//! Counts across minutes, hours and days.

use crate::world::World;
use floodway_schemas::{
    UnixMillis,
    ids::{SubscriptionId, TenantId},
};
use floodway_store::{
    count_levels::{RolledUp, roll_up},
    counts::{self, CountFilter},
    partitions::{self, Plan, Retention},
};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use std::time::Duration;
use uuid::Uuid;

const DAY: Duration = Duration::from_secs(86_400);
const RETENTION: Retention =
    Retention { deliveries: DAY, counts: Duration::from_secs(396 * 86_400), dead_letters: DAY };
const PLAN: Plan = Plan { retry_hours: 1, retry_days: 3, delivery_hours: 2, count_days: 2, letter_months: 1 };
const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 1_440 * MINUTE_MS;
const TENANT: TenantId = TenantId(Uuid::from_u128(7));

/// A delta, as it was appended.
#[derive(Debug, Clone, Copy)]
struct Delta {
    minute: i64,
    subscription: u128,
    n: i64,
}

/// Makes the counts start `days` ago, with a partition for each day, as if they had never been rolled up.
async fn begin(world: &World, days: i64) -> i64 {
    let start = "SELECT (extract(epoch FROM date_trunc('day', now(), 'UTC')) * 1000)::bigint";
    let today = world.number(start).await;
    for day in 1..=days {
        let date = UnixMillis(today - day * DAY_MS).to_rfc3339();
        let end = UnixMillis(today - (day - 1) * DAY_MS).to_rfc3339();
        let name = date[..10].replace('-', "");
        world
            .execute(&format!(
                "CREATE TABLE delivery_count_{name} PARTITION OF delivery_count FOR VALUES FROM ('{date}') TO ('{end}')"
            ))
            .await;
    }
    let first = UnixMillis(today - days * DAY_MS).to_rfc3339();
    world
        .execute(&format!(
            "UPDATE delivery_count_progress SET hours_to = '{first}', days_to = '{first}', minutes_from = '{first}', \
             hours_from = '{first}'"
        ))
        .await;
    today
}

async fn append(world: &World, deltas: &[Delta]) {
    for chunk in deltas.chunks(500) {
        let rows: Vec<String> = chunk
            .iter()
            .map(|Delta { minute, subscription, n }| {
                let (at, id) = (UnixMillis(*minute).to_rfc3339(), Uuid::from_u128(*subscription));
                format!("('{at}', '{}', '{id}', 'retry', {n})", TENANT.0)
            })
            .collect();
        world.execute(&format!("INSERT INTO delivery_count VALUES {}", rows.join(","))).await;
    }
}

async fn counted(world: &World, from: i64, to: i64) -> (counts::Counts, i64) {
    let filter = CountFilter {
        tenant: TENANT,
        subscription: Some(SubscriptionId(Uuid::from_u128(1))),
        from: Some(UnixMillis(from)),
        to: Some(UnixMillis(to)),
    };
    let mut client = world.pool.get().await.unwrap();
    let counts = counts::count(&mut client, &filter).await.unwrap();
    let sum = counts.subscriptions.iter().map(|subscription| subscription.by_kind["retry"]).sum();
    (counts, sum)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_deltas_are_counted_once_while_they_are_rolled_up_and_dropped() {
    const DAYS: i64 = 36;
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let world = World::new(1).await;
    let mut maintainer = partitions::lock(&world.pool).await.unwrap().unwrap();
    partitions::maintain(&mut maintainer, PLAN, RETENTION).await.unwrap();
    let today = begin(&world, DAYS).await;
    let now = world.number("SELECT (extract(epoch FROM now()) * 1000)::bigint").await;
    let minutes = (now - today) / MINUTE_MS + DAYS * 1_440;
    let deltas: Vec<Delta> = (0..3_000)
        .map(|_| Delta {
            minute: today - DAYS * DAY_MS + random.random_range(0..=minutes) * MINUTE_MS,
            subscription: random.random_range(1..=2),
            n: random.random_range(1..100),
        })
        .collect();
    append(&world, &deltas).await;

    let check = async |random: &mut StdRng| {
        for _ in 0..15 {
            let length = [3_600_000, 3 * DAY_MS, 40 * DAY_MS][random.random_range(0..3)];
            let from = today - random.random_range(0..DAYS * DAY_MS);
            let to = from + random.random_range(1..length);
            let (found, sum) = counted(&world, from, to).await;
            let (start, end) = (found.from.unwrap().0, found.to.unwrap().0);
            assert!(start <= from && end >= to && from - start < DAY_MS && end - to < DAY_MS, "{found:?}");
            let within = |delta: &&Delta| delta.subscription == 1 && (start..end).contains(&delta.minute);
            let expected: i64 = deltas.iter().filter(within).map(|delta| delta.n).sum();
            assert_eq!(sum, expected, "from {from} to {to}: {found:?}");
            // The last two days are told apart by the minute.
            assert!(from < now - 2 * DAY_MS || from - start < MINUTE_MS, "{found:?}");
        }
    };
    check(&mut random).await;
    // A pass that ends in the middle leaves whole periods: the mark does not get behind the 100th hour.
    let refused = UnixMillis(today - DAYS * DAY_MS + 100 * 3_600_000).to_rfc3339();
    let refuse = format!(
        "ALTER TABLE delivery_count_progress ADD CONSTRAINT refused CHECK (hours_to < '{refused}') NOT VALID"
    );
    world.execute(&refuse).await;
    roll_up(&mut maintainer).await.unwrap_err();
    check(&mut random).await;
    world.execute("ALTER TABLE delivery_count_progress DROP CONSTRAINT refused").await;
    let done = roll_up(&mut maintainer).await.unwrap();
    assert!(done.hours as i64 >= (DAYS - 5) * 24 && done.days as i64 >= DAYS - 5, "{done:?}");
    assert_eq!(roll_up(&mut maintainer).await.unwrap(), RolledUp::default(), "nothing is rolled up twice");
    check(&mut random).await;

    // What is finer than needed is dropped, though not while a reader may be at it.
    let partitions_of =
        |table: &str| format!("SELECT count(*) FROM pg_inherits WHERE inhparent = '{table}'::regclass");
    let report = partitions::maintain(&mut maintainer, PLAN, RETENTION).await.unwrap();
    assert_eq!((report.dropped.len(), report.blocked), (0, None));
    world.execute("UPDATE delivery_count_progress SET moved_at = moved_at - interval '2 minutes'").await;
    let report = partitions::maintain(&mut maintainer, PLAN, RETENTION).await.unwrap();
    assert_eq!(report.blocked, None);
    assert!(report.dropped.len() as i64 >= (DAYS - 3) + (DAYS - 31), "{:?}", report.dropped);
    assert!(world.number(&partitions_of("delivery_count")).await <= 6);
    assert!(world.number(&partitions_of("delivery_count_hour")).await <= 35);
    check(&mut random).await;
    drop(maintainer);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_period_is_not_rolled_up_before_the_last_batch_that_began_in_it_has_ended() {
    let world = World::new(1).await;
    let mut maintainer = partitions::lock(&world.pool).await.unwrap().unwrap();
    partitions::maintain(&mut maintainer, PLAN, RETENTION).await.unwrap();
    let today = begin(&world, 2).await;
    world
        .execute(
            "INSERT INTO retry_shard (shard, epoch, owner, next_offset, cur_due, cur_id, batched_at) \
             VALUES (0, 1, 'me', 0, clock_timestamp(), 0, clock_timestamp())",
        )
        .await;
    let mut batch = world.pool.get().await.unwrap();
    let batch = batch.transaction().await.unwrap();
    batch.execute("UPDATE retry_shard SET next_offset = 1", &[]).await.unwrap();
    let rolling = tokio::task::JoinSet::from_iter([async move {
        let done = roll_up(&mut maintainer).await;
        (done, maintainer)
    }]);
    // It waits for the open batch, which adds to the hour that has ended.
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    world.number_becomes(waiting, |n| n == 1).await;
    let minute = UnixMillis(today - DAY_MS - 5 * MINUTE_MS).to_rfc3339();
    let late = format!(
        "INSERT INTO delivery_count VALUES ('{minute}', '{}', '{}', 'retry', 5)",
        TENANT.0,
        Uuid::from_u128(1)
    );
    batch.batch_execute(&late).await.unwrap();
    batch.commit().await.unwrap();
    let (done, maintainer) = rolling.join_all().await.pop().unwrap();
    assert!(done.unwrap().hours >= 24);
    assert_eq!(counted(&world, today - 2 * DAY_MS, today).await.1, 5);
    assert_eq!(world.number("SELECT sum(n)::bigint FROM delivery_count_day").await, 5);
    drop(maintainer);
    world.end().await;
}
