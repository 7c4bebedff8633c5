//! Reading pending retries a page at a time.

use crate::world::World;
use floodway_store::{
    DbInstant,
    partitions::{self, Plan, Retention},
    retry::{self, NewRetry, Position},
};
use std::time::Duration;
use uuid::Uuid;

const DAY: Duration = Duration::from_secs(86_400);

fn row(due: DbInstant, id: i64, bytes: usize) -> NewRetry {
    NewRetry {
        position: Position { due, id },
        tenant: Uuid::nil(),
        subscription: Uuid::nil(),
        event_id: format!("order-{id}"),
        attempt: 2,
        lease: false,
        record_key: "k".into(),
        record: vec![7; bytes],
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_is_bounded_by_rows_by_bytes_and_by_time_and_starts_within_an_instant() {
    let world = World::new(1).await;
    let plan = Plan { retry_hours: 1, retry_days: 3, delivery_hours: 2, ..Plan::default() };
    let retention = Retention { deliveries: DAY, counts: DAY, dead_letters: DAY };
    let mut maintenance = partitions::lock(&world.pool).await.unwrap().unwrap();
    partitions::maintain(&mut maintenance, plan, retention).await.unwrap();

    let mut client = world.pool.get().await.unwrap();
    let shard = retry::take_over(&client, 0, "me", 0).await.unwrap();
    let batch = retry::begin(&mut client, 0, shard.epoch, 0, 6).await.unwrap();
    let (soon, late) =
        (batch.db_now.plus(Duration::from_secs(1)), batch.db_now.plus(Duration::from_secs(90)));
    // A record of 100 kB lives in the side table.
    let rows = [row(soon, 1, 10), row(soon, 2, 100_000), row(soon, 3, 10), row(late, 0, 10)];
    batch.add_retries(0, &rows.each_ref()).await.unwrap();
    batch.add_retries(1, &[&row(soon, 9, 10)]).await.unwrap();
    batch.commit().await.unwrap();

    let until = soon.plus(Duration::from_secs(30));
    let from = async |after: Position, limit, bytes| -> Vec<i64> {
        let rows = retry::page(&client, 0, after, until, limit, bytes).await.unwrap();
        rows.iter().map(|row| row.position.id).collect()
    };
    assert_eq!(from(shard.cursor, 10, 1 << 20).await, [1, 2, 3], "not the late one, not the other shard's");
    assert_eq!(from(shard.cursor, 2, 1 << 20).await, [1, 2]);
    assert_eq!(from(shard.cursor, 10, 1_000).await, [1]);
    assert_eq!(from(Position { due: soon, id: 1 }, 10, 1_000).await, [2], "at least one");
    assert_eq!(from(Position { due: soon, id: 2 }, 10, 1_000).await, [3]);
    assert!(from(Position { due: soon, id: 3 }, 10, 1_000).await.is_empty());
    drop((client, maintenance));
    world.end().await;
}
