use crate::world::{PATIENCE, Plane, World, eventually, settings};
use floodway_control_plane::Settings;
use floodway_runtime::{config_feed::ConfigFeed, kafka::KafkaSettings};
use floodway_schemas::{config::ConfigChange, topic::Topic};
use floodway_store::outbox;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn fifty_concurrent_writers_leave_no_gap_and_each_sees_its_change_published() {
    const WRITERS: usize = 50;
    let world = World::start().await;
    let tenant = world.tenant().await;
    let subscription = world.subscription(&tenant).await;
    let path = format!("/v1/tenants/{tenant}/subscriptions/{subscription}");
    let bodies: Vec<String> = (0..WRITERS).map(|n| format!("{{\"name\":\"n{n}\"}}")).collect();
    // Half of them change one subscription, half create tenants.
    let changes = bodies.iter().enumerate().map(|(n, body)| {
        let (plane, path) = (&world.plane, &path);
        async move {
            if n % 2 == 0 { plane.patch(path, body).await } else { plane.post("/v1/tenants", body).await }
        }
    });
    let answers = futures_all(changes).await;
    assert!(answers.iter().all(|answer| matches!(answer.status, 200 | 201)), "{answers:?}");

    let rows = outbox::rows_after(&**world.pool.get().await.unwrap(), 0, 1_000).await.unwrap();
    let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
    assert_eq!(ids, (1..=WRITERS as i64 + 2).collect::<Vec<_>>());
    let records = world.config_records().await;
    let published: Vec<_> = records.iter().map(|record| (record.key.clone(), record.value.clone())).collect();
    let stored: Vec<_> = rows.iter().map(|row| (row.entity_key.clone(), row.value.clone())).collect();
    assert_eq!(published, stored, "the topic holds the outbox, in its order");

    let mut versions: HashMap<String, u64> = HashMap::new();
    for record in &records {
        let version = match record.change() {
            ConfigChange::Tenant(tenant) => tenant.version,
            ConfigChange::Subscription(subscription) => subscription.version,
            other => panic!("{other:?}"),
        };
        assert_eq!(version, versions.insert(record.key.clone(), version).unwrap_or(0) + 1, "{}", record.key);
    }
    // Each answer names an offset by which its own change is on the topic.
    for answer in answers {
        let name = answer.text("name");
        let own = records.iter().find(|record| {
            record
                .value
                .as_deref()
                .is_some_and(|value| String::from_utf8_lossy(value).contains(&format!("\"{name}\"")))
        });
        let own = own.map(|record| record.offset).or_else(|| {
            // A subscription's name is not published; its version is.
            let version = answer.json["version"].as_u64().unwrap();
            records.iter().find_map(|record| match record.change() {
                ConfigChange::Subscription(subscription) if subscription.version == version => {
                    Some(record.offset)
                }
                _ => None,
            })
        });
        assert!(own.unwrap() <= answer.offset());
    }
    world.end().await;
}

/// All futures at once, answers in order.
async fn futures_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut pending: Vec<_> = futures.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        let mut ready = true;
        for (future, output) in &mut pending {
            if output.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *output = Some(value),
                    std::task::Poll::Pending => ready = false,
                }
            }
        }
        if ready { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    pending.into_iter().map(|(_, output)| output.unwrap()).collect()
}

#[tokio::test]
async fn a_crash_between_publishing_and_recording_repeats_the_record_and_goes_on() {
    let mut world = World::start().await;
    let tenant = world.tenant().await;
    world
        .restart(async |pool| {
            // As if the process had died after the acknowledgement.
            let client = pool.get().await.unwrap();
            client.execute("UPDATE config_publication SET outbox_id = outbox_id - 1", &[]).await.unwrap();
        })
        .await;
    let next = world.tenant().await;
    let keys: Vec<String> = world.config_records().await.into_iter().map(|record| record.key).collect();
    let (tenant, next) = (format!("tenant/{tenant}"), format!("tenant/{next}"));
    assert_eq!(keys, [tenant.clone(), tenant, next]);
    world.end().await;
}

#[tokio::test]
async fn a_replica_that_does_not_publish_still_answers_after_publication() {
    let mut world = World::start().await;
    world.tenant().await;
    let mut second = Plane::start(settings(), world.topics.context(), world.pool.clone()).await;
    let created = second.post("/v1/tenants", r#"{"name":"by the second"}"#).await;
    assert_eq!(created.status, 201, "{created:?}");
    let records = world.config_records().await;
    let position =
        records.iter().position(|record| record.key == format!("tenant/{}", created.text("id"))).unwrap();
    assert!(records[position].offset <= created.offset());
    // The second one takes over when the first ends.
    world.plane.stop().await;
    let created = second.post("/v1/tenants", r#"{"name":"after the first"}"#).await;
    assert_eq!(created.status, 201, "{created:?}");
    assert_eq!(world.config_records().await.len(), 3);
    second.stop().await;
    world.end().await;
}

#[tokio::test]
async fn a_change_that_cannot_be_published_in_time_is_stored_and_published_later() {
    let mut world = World::start().await;
    world.plane.stop().await;
    // Another session holds the right to publish and does nothing with it.
    let idle = world.pool.dedicated().await.unwrap();
    assert!(outbox::try_become_publisher(&idle).await.unwrap());
    let impatient = Settings { publish_deadline: Duration::from_millis(200), ..settings() };
    world.plane = Plane::start(impatient, world.topics.context(), world.pool.clone()).await;
    let created = world.plane.post("/v1/tenants", r#"{"name":"later"}"#).await;
    assert_eq!(created.status, 202, "{created:?}");
    assert!(created.json["config_offset"].is_null());
    assert_eq!(world.plane.get(&format!("/v1/tenants/{}", created.text("id"))).await.status, 200);
    assert_eq!(world.config_records().await, []);
    drop(idle);
    eventually("published", || async { world.config_records().await.len() == 1 }).await;
    world.end().await;
}

#[tokio::test]
async fn it_becomes_ready_and_publishes_through_a_lost_session() {
    let world = World::start().await;
    world.tenant().await;
    eventually("ready", || async { world.plane.context.health.is_ready() }).await;
    let client = world.pool.get().await.unwrap();
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert_eq!(client.query(kill, &[]).await.unwrap().len(), 1);
    drop(client);
    world.tenant().await;
    assert_eq!(world.config_records().await.len(), 2);
    world.end().await;
}

#[tokio::test]
async fn what_an_earlier_publisher_still_has_in_flight_never_reaches_the_topic() {
    let mut world = World::start().await;
    let tenant = world.tenant().await;
    let subscription = world.subscription(&tenant).await;
    let key = format!("subscription/{subscription}");
    let record = world.config_records().await.into_iter().find(|record| record.key == key).unwrap();
    world.plane.stop().await;

    // A publisher that was cut off in the middle of a batch: one record sent, another one not yet.
    let kafka = world.topics.kafka.clone();
    let value = record.value.unwrap();
    let send = |old: &ThreadedProducer<DefaultProducerContext>, kafka: &KafkaSettings| {
        let topic = kafka.topic(Topic::Config);
        old.send(BaseRecord::to(&topic).key(&key).payload(&value)).map_err(|(error, _)| error).unwrap();
        old.flush(PATIENCE).unwrap();
    };
    let old: ThreadedProducer<DefaultProducerContext> =
        kafka.producer().set("transactional.id", kafka.group("config-publisher")).create().unwrap();
    old.init_transactions(PATIENCE).unwrap();
    old.begin_transaction().unwrap();
    send(&old, &kafka);

    world.plane = Plane::start(settings(), world.topics.context(), world.pool.clone()).await;
    let path = format!("/v1/tenants/{tenant}/subscriptions/{subscription}");
    assert_eq!(world.plane.delete(&path).await.status, 200);
    send(&old, &kafka);
    assert!(old.commit_transaction(PATIENCE).is_err(), "fenced");

    let after = world.tenant().await;
    let records: Vec<(String, bool)> =
        world.config_records().await.into_iter().map(|record| (record.key, record.value.is_some())).collect();
    let tenant = format!("tenant/{tenant}");
    let expected =
        [(tenant, true), (key.clone(), true), (key.clone(), false), (format!("tenant/{after}"), true)];
    assert_eq!(records, expected, "the deletion stands");
    tokio::task::spawn_blocking(move || drop(old)).await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_publisher_that_was_shut_out_takes_over_again() {
    let world = World::start().await;
    world.tenant().await;
    let kafka = &world.topics.kafka;
    let other: ThreadedProducer<DefaultProducerContext> =
        kafka.producer().set("transactional.id", kafka.group("config-publisher")).create().unwrap();
    other.init_transactions(PATIENCE).unwrap();
    world.tenant().await;
    assert_eq!(world.config_records().await.len(), 2);
    tokio::task::spawn_blocking(move || drop(other)).await.unwrap();
    world.end().await;
}

#[tokio::test]
async fn a_feed_knows_what_was_published_and_stays_current_without_changes() {
    let world = World::start().await;
    world.tenant().await;
    let (applied, stop) = (Arc::new(AtomicI64::new(-1)), CancellationToken::new());
    let offset = Arc::clone(&applied);
    let feed = ConfigFeed::start(&world.topics.kafka, stop.clone(), move |_, at| {
        offset.store(at, Ordering::Relaxed);
    })
    .unwrap();
    let freshness = feed.freshness();
    eventually("caught up", || async { feed.is_caught_up() }).await;
    assert_eq!(applied.load(Ordering::Relaxed), 0);
    // What ends a transaction takes an offset of its own, behind the last record.
    let later = Instant::now() + Duration::from_secs(3);
    eventually("current later", || async { freshness.current_as_of().is_some_and(|at| at > later) }).await;
    let created = world.plane.post("/v1/tenants", r#"{"name":"after a while"}"#).await;
    eventually("applied", || async { applied.load(Ordering::Relaxed) == created.offset() }).await;
    stop.cancel();
    tokio::task::spawn_blocking(move || feed.join()).await.unwrap();
    world.end().await;
}
