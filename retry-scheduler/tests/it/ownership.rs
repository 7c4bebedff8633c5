//! Who owns a shard, and what those who do not any more can do.

use crate::world::{World, retry, retry_keys};
use floodway_schemas::due::RetryKey;
use floodway_store::{
    DbInstant,
    retry::{self as store, Position, WriteError},
};
use std::collections::BTreeSet;

const OWNERS: &str = "SELECT count(DISTINCT owner) FROM retry_shard";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_was_replaced_writes_nothing() {
    let world = World::new(1).await;
    let mut client = world.pool.get().await.unwrap();
    let zombie = store::take_over(&client, 0, "zombie", 5).await.unwrap();
    let owner = store::take_over(&client, 0, "owner", 5).await.unwrap();
    assert_eq!((zombie.next_offset, owner.next_offset), (5, 5));
    assert!(owner.epoch > zombie.epoch);
    let further = Position { due: DbInstant(owner.db_now.0 + 1), id: 0 };
    assert_eq!(store::read(&client, 0, zombie.epoch).await.unwrap(), None);
    assert_eq!(store::move_cursor(&client, 0, zombie.epoch, 5, further).await.unwrap(), None);
    assert_eq!(store::skip_to(&client, 0, zombie.epoch, 5, 9, 0).await.unwrap(), None);
    assert!(matches!(store::begin(&mut client, 0, zombie.epoch, 5, 6).await, Err(WriteError::Fenced)));
    // The owner itself cannot store a batch that does not follow the last one.
    assert!(matches!(store::begin(&mut client, 0, owner.epoch, 6, 7).await, Err(WriteError::Fenced)));
    let batch = store::begin(&mut client, 0, owner.epoch, 5, 6).await.unwrap();
    assert_eq!(batch.cursor, owner.cursor);
    batch.commit().await.unwrap();
    assert_eq!(store::read(&client, 0, owner.epoch).await.unwrap().unwrap().next_offset, 6);
    drop(client);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_that_the_database_lost_is_not_given_again() {
    let world = World::new(1).await;
    let client = world.pool.get().await.unwrap();
    let first = store::take_over(&client, 0, "first", 5).await.unwrap();
    let lost = store::take_over(&client, 0, "second", 5).await.unwrap();
    // As after a failover to a replica that had not heard of the second takeover.
    world.execute(&format!("UPDATE retry_shard SET epoch = {}, owner = 'first'", first.epoch)).await;
    let third = store::take_over(&client, 0, "third", 5).await.unwrap();
    assert!(third.epoch > lost.epoch);
    assert_eq!(store::read(&client, 0, lost.epoch).await.unwrap(), None);
    drop(client);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_takeover_waits_for_the_open_transaction_of_the_owner_before() {
    let world = World::new(1).await;
    let mut first = world.pool.get().await.unwrap();
    let second = world.pool.get().await.unwrap();
    let before = store::take_over(&first, 0, "before", 0).await.unwrap();
    let batch = store::begin(&mut first, 0, before.epoch, 0, 7).await.unwrap();
    let (after, ()) = tokio::join!(store::take_over(&second, 0, "after", 0), async {
        tokio::task::yield_now().await;
        batch.commit().await.unwrap();
    });
    assert_eq!(after.unwrap().next_offset, 7);
    drop((first, second));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outcomes_that_the_owner_before_stores_during_the_takeover_are_not_taken_for_lost() {
    let world = World::new(1).await;
    let mut client = world.pool.get().await.unwrap();
    let before = store::take_over(&client, 0, "before", 0).await.unwrap();
    let batch = store::begin(&mut client, 0, before.epoch, 0, 2).await.unwrap();
    let scheduler = world.start().await;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
        AND query LIKE '-- take_over%'";
    world.number_becomes(waiting, |n| n == 1).await;
    // The log was empty when the takeover began; the owner before it has read these two and stores them now.
    world.write(0, &[retry(1, 300), retry(2, 300)]);
    batch.commit().await.unwrap();
    world.write(0, &[retry(3, 300)]);
    assert_eq!(retry_keys(&world.read_due(1).await), BTreeSet::from([RetryKey { shard: 0, id: 2 }]));
    assert_eq!(world.number("SELECT count(*) FROM retry").await, 1);
    scheduler.health_becomes("outcomes log", |reason| reason.is_none()).await;
    scheduler.stop().await;
    drop(client);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_tells_the_group_how_far_it_is_and_leaves_it_at_once_in_the_end() {
    let world = World::new(2).await;
    let scheduler = world.start().await;
    world.number_becomes("SELECT count(*) FROM retry_shard", |n| n == 2).await;
    world.write(0, &[retry(1, 300)]);
    world.read_due(1).await;
    assert_eq!(world.members(), 1);
    world.committed_becomes(0, 1).await;
    scheduler.stop().await;
    assert_eq!(world.members(), 0, "nobody waits for a session to time out");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_that_is_fenced_takes_over_again_while_the_shard_is_assigned_to_it() {
    let world = World::new(1).await;
    let scheduler = world.start().await;
    world.write(0, &[retry(1, 300)]);
    world.read_due(1).await;
    let before = world.number("SELECT epoch FROM retry_shard").await;
    world.execute("UPDATE retry_shard SET epoch = epoch + 1, owner = 'someone else'").await;
    world.number_becomes("SELECT epoch FROM retry_shard", |epoch| epoch > before + 1).await;
    world.write(0, &[retry(2, 300)]);
    world.read_due(2).await;
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_scheduler_takes_shards_and_gives_them_back_without_losing_any_retry() {
    let world = World::new(4).await;
    let first = world.start().await;
    world.number_becomes("SELECT count(*) FROM retry_shard", |n| n == 4).await;
    let write = |from: i64| {
        (0..4).for_each(|shard| {
            world.write(shard, &(from..from + 25).map(|n| retry(n, 1_500)).collect::<Vec<_>>())
        });
    };
    write(0);
    let second = world.start().await;
    world.number_becomes(OWNERS, |n| n == 2).await;
    write(25);
    first.stop().await;
    world.number_becomes(OWNERS, |n| n == 1).await;
    write(50);
    let expected: BTreeSet<RetryKey> =
        (0..4).flat_map(|shard| (0..75).map(move |id| RetryKey { shard, id })).collect();
    assert_eq!(retry_keys(&world.read_due(300).await), expected);
    second.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn position_and_rows_stay_together_when_a_scheduler_ends_without_draining() {
    let world = World::new(1).await;
    let mut scheduler = world.start().await;
    for round in 0..3 {
        let outcomes: Vec<_> = (round * 200..(round + 1) * 200).map(|n| retry(n, 300 + n as u64)).collect();
        world.write(0, &outcomes);
        // In the middle of the batch, as far as one can tell from outside.
        world
            .number_becomes("SELECT coalesce(max(next_offset), 0) FROM retry_shard", |next| {
                next > round * 200
            })
            .await;
        scheduler.kill().await;
        // In one snapshot, for the thread may just be storing another batch.
        let apart = "SELECT next_offset - (SELECT count(*) FROM retry) FROM retry_shard";
        assert_eq!(world.number(apart).await, 0);
        scheduler = world.start().await;
    }
    let records = world.read_due(600).await;
    assert_eq!(retry_keys(&records), (0..600).map(|id| RetryKey { shard: 0, id }).collect());
    assert_eq!(world.number("SELECT count(*) - count(DISTINCT id) FROM retry").await, 0);
    assert_eq!(world.number("SELECT sum(n)::bigint FROM delivery_count").await, 600);
    scheduler.stop().await;
    world.end().await;
}
