//! PostgreSQL behind PgBouncer in transaction mode: sessions are shared, and no client has one of its own.

use crate::world::{World, outcome, retry, retry_keys, settings};
use floodway_retry_scheduler::Settings;
use floodway_schemas::{due::RetryKey, outcome::OutcomeKind};
use floodway_store::{
    Pool,
    dead_letters::{self, DeadLetterFilter},
    deliveries::{self, DeliveryFilter},
    testing::TestPooler,
};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_schedulers_work_behind_a_pooler_that_shares_sessions_between_them() {
    let world = World::new(4).await;
    let pooler = TestPooler::start(&world.database).await;
    // Options in a connection's start are what such poolers refuse.
    let refused = Pool::new(&pooler.url, "scheduler-under-test", 1).unwrap();
    assert!(refused.get().await.unwrap_err().to_string().contains("options"));

    let settings = Settings { batch_rows: 20, page_rows: 10, heap_rows: 40, ..settings() };
    let first = world.start_with(settings.clone(), pooler.pool("scheduler-under-test", 8)).await;
    world.number_becomes("SELECT count(*) FROM retry_shard", |n| n == 4).await;
    let second = world.start_with(settings, pooler.pool("scheduler-under-test", 8)).await;
    for shard in 0..4 {
        let mut outcomes: Vec<_> = (0..100).map(|n| retry(n, 500 + 20 * n as u64)).collect();
        outcomes.push(outcome(OutcomeKind::Dead, 100, Duration::ZERO));
        world.write(shard, &outcomes);
    }
    let expected = (0..4).flat_map(|shard| (0..100).map(move |id| RetryKey { shard, id })).collect();
    assert_eq!(retry_keys(&world.read_due(400).await), expected);
    world.number_becomes("SELECT count(*) FROM dead_letter", |n| n == 4).await;
    assert_eq!(world.number("SELECT count(*) FROM retry").await, 400);
    assert_eq!(world.number("SELECT sum(n)::bigint FROM delivery_count").await, 404);

    let pool = pooler.pool("reader", 4);
    for _ in 0..20 {
        let client = pool.get().await.unwrap();
        let filter = DeliveryFilter::of(crate::world::TENANT);
        assert_eq!(deliveries::list(&client, &filter, None, 10).await.unwrap().items.len(), 10);
        let filter = DeadLetterFilter::of(crate::world::TENANT);
        assert_eq!(dead_letters::list(&client, &filter, None, 10).await.unwrap().items.len(), 4);
    }
    first.stop().await;
    second.stop().await;
    drop(pool);
    drop(pooler);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_pooler_a_batch_is_bounded_in_time_all_the_same() {
    let world = World::new(1).await;
    let pooler = TestPooler::start(&world.database).await;
    let mut client = pooler.pool("scheduler-under-test", 1).get().await.unwrap();
    let shard = floodway_store::retry::take_over(&client, 0, "me", 0).await.unwrap();
    let batch = floodway_store::retry::begin(&mut client, 0, shard.epoch, 0, 1).await.unwrap();
    // It stays open and does nothing; the next owner's takeover has to wait for its end, and no longer.
    world.number_becomes("SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()", |n| n == 1).await;
    world.number_becomes("SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction' AND datname = current_database()", |n| n == 0).await;
    assert!(batch.commit().await.is_err());
    drop(client);
    drop(pooler);
    world.end().await;
}
