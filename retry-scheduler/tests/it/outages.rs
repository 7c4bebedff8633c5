//! PostgreSQL away, at the start or in the middle; the log not where it should be.

use crate::world::{DEADLINE, World, outcome, retry, retry_keys, settings};
use floodway_retry_scheduler::{Error, RetryScheduler, Settings};
use floodway_runtime::{kafka::KafkaSettings, testing};
use floodway_schemas::{due::RetryKey, outcome::OutcomeKind, topic::Topic};
use floodway_store::Pool;
use rdkafka::{
    Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};
use std::{net::SocketAddr, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// Forwards connections to a server until it is dropped, which cuts them.
pub(crate) struct Proxy {
    _tasks: JoinSet<()>,
}

impl Proxy {
    pub(crate) async fn open(address: SocketAddr, server: String) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let server = server.clone();
                connections.spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(server).await {
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
        Self { _tasks: tasks }
    }
}

/// An address that nothing listens on for now.
pub(crate) async fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_without_its_topics_says_so_instead_of_starting() {
    let pool = Pool::new(&"postgres://nobody@127.0.0.1:1/none".into(), "scheduler-under-test", 1).unwrap();
    let context = testing::context(testing::kafka());
    let error = RetryScheduler::bind(settings(), context.clone(), pool.clone()).await.unwrap_err();
    assert!(matches!(error, Error::Topics(_)) && error.to_string().contains("outcomes"), "{error}");
    let settings = Settings { heap_rows: 0, ..settings() };
    assert!(matches!(RetryScheduler::bind(settings, context, pool).await, Err(Error::Settings(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_without_kafka_starts_says_so_and_ends_when_told() {
    let pool = Pool::new(&"postgres://nobody@127.0.0.1:1/none".into(), "scheduler-under-test", 1).unwrap();
    let kafka = KafkaSettings { brokers: free_address().await.to_string(), ..testing::kafka() };
    let context = testing::context(kafka);
    let (health, shutdown) = (context.health.clone(), context.shutdown.clone());
    let scheduler = RetryScheduler::bind(settings(), context, pool).await.unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(scheduler.run());
    let is_told =
        || health.reports().iter().any(|r| r.name == "kafka" && r.reason.as_deref() != Some("starting"));
    let told = async {
        while !is_told() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, told).await.unwrap();
    assert!(!health.is_ready());
    shutdown.cancel();
    tokio::time::timeout(DEADLINE, tasks.join_next()).await.unwrap().unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_refuses_a_schema_that_is_not_its_own_at_the_start_and_waits_for_it_later() {
    let world = World::new(1).await;
    let newer = "INSERT INTO refinery_schema_history SELECT 999, 'later', applied_on, checksum \
                 FROM refinery_schema_history ORDER BY version LIMIT 1";
    world.execute(newer).await;
    let error = RetryScheduler::bind(settings(), world.topics.context(), world.pool()).await.unwrap_err();
    assert!(matches!(error, Error::Database(floodway_store::Error::Schema(_))), "{error}");
    let text = error.to_string();
    assert!(text.contains("version 999") && text.contains("use a newer binary"), "{text}");

    // The database was away at the start: what it turns out to be is told by health, and nothing is written.
    let address = free_address().await;
    let scheduler = world.start_with(settings(), world.pool_through(address)).await;
    let _proxy = Proxy::open(address, world.server()).await;
    scheduler
        .health_becomes("postgresql", |reason| reason.is_some_and(|reason| reason.contains("version 999")))
        .await;
    assert_eq!(world.number("SELECT count(*) FROM retry_shard").await, 0);
    world.execute("DELETE FROM refinery_schema_history WHERE version = 999").await;
    world.write(0, &[retry(1, 300)]);
    assert_eq!(world.read_due(1).await.len(), 1);
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_comes_later_is_waited_for() {
    let world = World::new(1).await;
    let address = free_address().await;
    let scheduler = world.start_with(settings(), world.pool_through(address)).await;
    world.write(0, &[retry(1, 300)]);
    scheduler.health_becomes("postgresql", |reason| reason.is_some_and(|reason| reason != "starting")).await;
    let _proxy = Proxy::open(address, world.server()).await;
    scheduler.health_becomes("postgresql", |reason| reason.is_none()).await;
    assert_eq!(world.read_due(1).await.len(), 1);
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_stored_twice_while_the_database_comes_and_goes() {
    let world = World::new(1).await;
    let address = free_address().await;
    let mut proxy = Some(Proxy::open(address, world.server()).await);
    let settings = Settings { batch_rows: 20, ..settings() };
    let scheduler = world.start_with(settings, world.pool_through(address)).await;
    for round in 0..5i64 {
        world.write(
            0,
            &(round * 100..round * 100 + 100).map(|n| retry(n, 300 + n as u64)).collect::<Vec<_>>(),
        );
        world
            .number_becomes("SELECT coalesce(max(next_offset), 0) FROM retry_shard", |next| {
                next > round * 100
            })
            .await;
        drop(proxy.take());
        scheduler.health_becomes("postgresql", |reason| reason.is_some()).await;
        proxy = Some(Proxy::open(address, world.server()).await);
        scheduler.health_becomes("postgresql", |reason| reason.is_none()).await;
    }
    let records = world.read_due(500).await;
    assert_eq!(retry_keys(&records), (0..500).map(|id| RetryKey { shard: 0, id }).collect());
    assert_eq!(world.number("SELECT count(*) FROM retry").await, 500);
    assert_eq!(world.number("SELECT sum(n)::bigint FROM delivery_count").await, 500);
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_are_cut_are_replaced_without_loss() {
    let world = World::new(1).await;
    let scheduler = world.start().await;
    for round in 0..6i64 {
        world.write(0, &(round * 50..round * 50 + 50).map(|n| retry(n, 400)).collect::<Vec<_>>());
        world
            .execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                 WHERE datname = current_database() AND application_name = 'scheduler-under-test'",
            )
            .await;
        world
            .number_becomes("SELECT coalesce(max(next_offset), 0) FROM retry_shard", |next| next > round * 50)
            .await;
    }
    let records = world.read_due(300).await;
    assert_eq!(retry_keys(&records), (0..300).map(|id| RetryKey { shard: 0, id }).collect());
    assert_eq!(world.number("SELECT count(*) FROM retry").await, 300);
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_no_longer_reaches_back_to_the_stored_position_is_reported_and_read_from_its_start() {
    let world = World::new(1).await;
    // As after a restore from a backup that is older than the log: nothing before offset 3 is there any more.
    world.write(0, &(0..5).map(|n| retry(n, 300)).collect::<Vec<_>>());
    let admin: AdminClient<DefaultClientContext> = world.topics.kafka.client().create().unwrap();
    let mut before = TopicPartitionList::new();
    before.add_partition_offset(&world.topics.kafka.topic(Topic::Outcomes), 0, Offset::Offset(3)).unwrap();
    admin.delete_records(&before, &AdminOptions::new()).await.unwrap();
    world
        .execute(
            "INSERT INTO retry_shard (shard, epoch, owner, next_offset, cur_due, cur_id, batched_at) \
             VALUES (0, 1, 'before', 1, clock_timestamp(), 0, clock_timestamp())",
        )
        .await;
    let scheduler = world.start().await;
    let lost = "the log starts at 3, offsets from 1 on were lost unread";
    scheduler
        .health_becomes("outcomes log", |reason| reason.is_some_and(|reason| reason.contains(lost)))
        .await;
    assert_eq!(retry_keys(&world.read_due(2).await), [3, 4].map(|id| RetryKey { shard: 0, id }).into());
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_ends_before_the_stored_position_is_reported_and_read_on_by_time() {
    let world = World::new(1).await;
    world
        .execute(
            "INSERT INTO retry_shard (shard, epoch, owner, next_offset, cur_due, cur_id, batched_at) \
             VALUES (0, 1, 'before', 1000, clock_timestamp(), 0, clock_timestamp())",
        )
        .await;
    world.write(0, &[retry(1, 300), retry(2, 300)]);
    let scheduler = world.start().await;
    scheduler
        .health_becomes("outcomes log", |reason| reason.is_some_and(|reason| reason.contains("ends at 2")))
        .await;
    // Their offsets were those of other outcomes before: their ids are not.
    let first_id = 1 << 44;
    let keys = [first_id, first_id + 1].map(|id| RetryKey { shard: 0, id });
    assert_eq!(retry_keys(&world.read_due(2).await), keys.into());
    assert_eq!(world.number("SELECT next_offset FROM retry_shard").await, 2);
    assert_eq!(world.number("SELECT count(*) FROM delivery WHERE id >= 1::bigint << 44").await, 2);
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_of_a_log_that_is_no_more_fires_whatever_the_new_one_has_at_its_offset() {
    let world = World::new(1).await;
    let scheduler = world.start().await;
    world.write(0, &[retry(1, 3_600_000)]);
    world.number_becomes("SELECT coalesce(max(next_offset), 0) FROM retry_shard", |next| next == 1).await;
    scheduler.stop().await;
    // The old log was longer. What it had at offset 2 is due soon; the new log has a delivery in doubt there, which ended.
    world
        .execute(
            "INSERT INTO retry (shard, due_at, id, tenant_id, subscription_id, event_id, attempt, record_key, rec)
                 SELECT shard, clock_timestamp() + interval '5 s', 2, tenant_id, subscription_id, event_id, attempt, record_key, rec
                 FROM retry;
             UPDATE retry_shard SET next_offset = 1000",
        )
        .await;
    let lease = Duration::from_secs(1);
    let ended = outcome(OutcomeKind::Delivered, 8, Duration::ZERO);
    world.write(
        0,
        &[outcome(OutcomeKind::Delivered, 7, Duration::ZERO), outcome(OutcomeKind::InDoubt, 8, lease), ended],
    );
    let scheduler = world.start().await;
    assert_eq!(retry_keys(&world.read_due(1).await), [RetryKey { shard: 0, id: 0 }].into());
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shards_without_a_partition_are_reported() {
    let world = World::new(1).await;
    let row = "INSERT INTO retry_shard (shard, epoch, owner, next_offset, cur_due, cur_id, batched_at) \
               VALUES (7, 1, 'before', 1000, clock_timestamp(), 0, clock_timestamp())";
    world.execute(row).await;
    let settings = Settings { maintenance_interval: Duration::from_secs(3600), ..settings() };
    let scheduler = world.start_with(settings, world.pool()).await;
    scheduler
        .health_becomes("outcomes log", |reason| {
            reason.is_some_and(|reason| reason.contains("the shards [7]"))
        })
        .await;
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_that_fell_due_while_nobody_was_there_fire_at_once() {
    let world = World::new(1).await;
    let scheduler = world.start().await;
    world.write(0, &(0..50).map(|n| retry(n, 1_000)).collect::<Vec<_>>());
    world.number_becomes("SELECT count(*) FROM retry", |n| n == 50).await;
    scheduler.kill().await;
    world.number_becomes("SELECT count(*) FROM retry WHERE due_at > clock_timestamp()", |n| n == 0).await;
    let scheduler = world.start().await;
    world.read_due(50).await;
    world.number_becomes("SELECT count(*) FROM retry, retry_shard WHERE due_at > cur_due", |n| n == 0).await;
    scheduler.stop().await;
    tokio::time::timeout(Duration::from_secs(30), world.end()).await.unwrap();
}

/// Several times what it takes to notice that clients have lost their brokers, and to replace them.
const LOST_PATIENCE: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scheduler_whose_clients_have_lost_their_brokers_for_good_loses_no_retry() {
    let world = World::new(2).await;
    let (relay, relayed) = world.topics.relayed();
    let running = world.start_in(settings(), testing::context(relayed), world.pool()).await;
    // One is produced; another is in memory, and due when the producer has no broker.
    world.write(0, &[retry(1, 0), retry(2, 20_000)]);
    world.read_due(1).await;
    world.number_becomes("SELECT max(next_offset) FROM retry_shard", |next| next == 2).await;
    world.number_becomes("SELECT count(*) FROM retry_shard", |shards| shards == 2).await;
    // A shard is taken over again when its reader, or the group's consumer, was lost. They may get away.
    const TAKEOVERS: &str = "SELECT sum(epoch)::bigint FROM retry_shard";
    let before = world.number(TAKEOVERS).await;
    let (begun, mut written) = (std::time::Instant::now(), 2);
    while world.number(TAKEOVERS).await == before {
        assert!(begun.elapsed() < LOST_PATIENCE, "no client is lost");
        tokio::task::block_in_place(|| relay.loses_clients());
        let lost_at = std::time::Instant::now();
        // These the readers have to find.
        world.write(0, &[retry(written + 1, 0)]);
        world.write(1, &[retry(written + 2, 0)]);
        written += 2;
        world.due_becomes_long(written).await;
        println!("all retries are on their way after {:?}", lost_at.elapsed());
    }
    assert_eq!(retry_keys(&world.read_due(written as usize).await).len(), written as usize);
    running.health_becomes("kafka", |reason| reason.is_none()).await;
    running.stop().await;
    world.end().await;
}
