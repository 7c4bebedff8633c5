//! Nothing is lost, and as little as possible repeated.

use crate::{
    receiver::{Answer, Receiver},
    world::{DEADLINE, World, until},
};
use floodway_dispatcher::{Dispatcher, Settings};
use floodway_runtime::{
    testing,
    topics::{self, TopicPlan},
};
use floodway_schemas::topic::Topic;
use rdkafka::{
    Offset, TopicPartitionList,
    admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier},
    client::DefaultClientContext,
    producer::{BaseProducer, BaseRecord, Producer},
};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

const GROUP: &str = "dispatcher";

/// The run that an outcome of an event names.
fn run_of(outcome: &serde_json::Value) -> String {
    outcome["cause"].as_str().unwrap().split(':').nth(1).unwrap().to_owned()
}

/// Holds the event named `held`, answers all others.
async fn holding_receiver() -> Receiver {
    Receiver::start(|arrival| if arrival.event_id() == "held" { Answer::Held } else { Answer::status(200) })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_crash_only_what_was_not_covered_is_delivered_again_in_the_same_run() {
    let mut world = World::create(1).await;
    let mut receiver = holding_receiver().await;
    world.publish(&world.subscription(receiver.url("")));
    let first = world.run(World::settings()).await;
    for id in ["1", "2", "held", "4", "5"] {
        world.send(id, "a");
    }
    receiver.next_ids(5).await;
    let mut outcomes = world.outcomes();
    outcomes.at_least(4).await;
    let mut covered = None;
    until("the commit covers what is above the held event", || {
        covered = world.committed(Topic::Events, GROUP, 0);
        // Three offsets from the held one to the end, and no further one open.
        covered.as_ref().is_some_and(|(offset, metadata)| *offset == 2 && metadata.ends_with(":Aw"))
    })
    .await;

    first.crash();
    let second = world.run(World::settings()).await;
    assert_eq!(receiver.next().await.event_id(), "held");
    receiver.open_gate();
    world.send("6", "a");
    assert_eq!(receiver.next().await.event_id(), "6");
    let seen = outcomes.at_least(6).await;
    let runs: BTreeSet<String> = seen.iter().map(run_of).collect();
    assert_eq!(runs.len(), 1, "{runs:?}");
    assert!(covered.unwrap().1.contains(runs.first().unwrap()));
    assert!(receiver.rest().is_empty());
    world.end(&[&first, &second]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_sent_twice_is_delivered_once_and_its_first_copy_survives_a_crash() {
    let mut world = World::create(1).await;
    let mut receiver = holding_receiver().await;
    world.publish(&world.subscription(receiver.url("")));
    let first = world.run(World::settings()).await;
    let send = |world: &World, id: &str| {
        world.produce(Topic::Events, None, "k", world.event(id, "a", "{}").as_bytes());
    };
    for id in ["1", "held", "1", "held", "2"] {
        send(&world, id);
    }
    assert_eq!(receiver.next_ids(3).await, ["1", "2", "held"]);
    until("the commit covers all but the held event's first copy", || {
        world
            .committed(Topic::Events, GROUP, 0)
            .is_some_and(|(offset, metadata)| offset == 1 && metadata.ends_with(":BA"))
    })
    .await;

    first.crash();
    let second = world.run(World::settings()).await;
    assert_eq!(receiver.next().await.event_id(), "held");
    receiver.open_gate();
    // Known from the log alone: their first copies were settled by the one before, or lie before what is read again.
    for id in ["1", "2", "held", "3"] {
        send(&world, id);
    }
    assert_eq!(receiver.next().await.event_id(), "3");
    until("every record is settled", || {
        world.committed(Topic::Events, GROUP, 0).is_some_and(|(offset, _)| offset == 9)
    })
    .await;
    assert!(receiver.rest().is_empty());
    world.end(&[&first, &second]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_window_every_copy_is_delivered() {
    let mut world = World::create(1).await;
    let mut receiver = Receiver::ok().await;
    world.publish(&world.subscription(receiver.url("")));
    let running = world.run(Settings { repeat_window: Duration::ZERO, ..World::settings() }).await;
    for _ in 0..3 {
        world.send("1", "a");
    }
    assert_eq!(receiver.next_ids(3).await, ["1", "1", "1"]);
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_of_the_group_begins_a_new_run_and_delivers_again() {
    let mut world = World::create(1).await;
    let mut receiver = Receiver::ok().await;
    world.publish(&world.subscription(receiver.url("")));
    let first = world.run(World::settings()).await;
    for id in ["1", "2", "3"] {
        world.send(id, "a");
    }
    assert_eq!(receiver.next_ids(3).await, ["1", "2", "3"]);
    first.context.shutdown.cancel();
    world.ended().await.unwrap();
    assert_eq!(world.committed(Topic::Events, GROUP, 0).unwrap().0, 3, "the last commit covers everything");

    world.reset(Topic::Events, GROUP, 0, 1);
    let second = world.run(World::settings()).await;
    assert_eq!(receiver.next_ids(2).await, ["2", "3"]);
    let mut outcomes = world.outcomes();
    let seen = outcomes.at_least(5).await;
    let runs: Vec<String> = seen.iter().map(run_of).collect();
    assert!(runs[..3].iter().all(|run| *run == runs[0]));
    assert!(runs[3..].iter().all(|run| *run == runs[3] && *run != runs[0]), "{runs:?}");
    world.end(&[&second]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_ends_before_what_was_consumed_is_consumed_from_its_start() {
    let mut world = World::create(1).await;
    let mut receiver = Receiver::ok().await;
    world.publish(&world.subscription(receiver.url("")));
    for id in ["1", "2", "3"] {
        world.send(id, "a");
    }
    world.flush();
    // As of the topic's predecessor.
    world.reset(Topic::Events, GROUP, 0, 1_000);
    let running = world.run(World::settings()).await;
    assert_eq!(receiver.next_ids(3).await, ["1", "2", "3"]);
    until("the group is at the end of the topic", || {
        world.committed(Topic::Events, GROUP, 0).is_some_and(|committed| committed.0 == 3)
    })
    .await;
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_is_made_anew_under_way_is_consumed_from_its_start() {
    let mut world = World::create(1).await;
    let mut receiver = Receiver::ok().await;
    world.publish(&world.subscription(receiver.url("")));
    let running = world.run(World::settings()).await;
    for id in ["1", "2", "3"] {
        world.send(id, "a");
    }
    receiver.next_ids(3).await;
    let topic = world.topics.kafka.topic(Topic::Events);
    let admin: AdminClient<DefaultClientContext> = world.topics.kafka.client().create().unwrap();
    admin.delete_topics(&[&topic], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
    let plan = TopicPlan { partitions: 1, replication: 1, dev: true };
    let deadline = Instant::now() + DEADLINE;
    while let Err(error) = topics::apply(&world.topics.kafka, plan).await {
        assert!(Instant::now() < deadline, "{error}");
    }
    // The old producer remembers the old topic.
    let producer: BaseProducer = world.topics.kafka.producer().create().unwrap();
    for id in ["4", "5"] {
        let event = world.event(id, "a", "{}");
        producer.send(BaseRecord::to(&topic).key(id).payload(&event)).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(DEADLINE).unwrap();
    assert_eq!(receiver.next_ids(2).await, ["4", "5"]);
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_after_records_were_deleted_is_delivered() {
    let mut world = World::create(1).await;
    let mut receiver = Receiver::ok().await;
    world.publish(&world.subscription(receiver.url("")));
    for id in ["1", "2", "3", "4"] {
        world.send(id, "a");
    }
    world.flush();
    world.reset(Topic::Events, GROUP, 0, 1);
    delete_events_before(&world, 3).await;
    let running = world.run(World::settings()).await;
    assert_eq!(receiver.next().await.event_id(), "4");
    world.send("5", "a");
    assert_eq!(receiver.next().await.event_id(), "5");
    assert!(receiver.rest().is_empty());
    world.end(&[&running]).await;
}

async fn delete_events_before(world: &World, offset: i64) {
    let admin: AdminClient<DefaultClientContext> = world.topics.kafka.client().create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&world.topics.kafka.topic(Topic::Events), 0, Offset::Offset(offset)).unwrap();
    admin.delete_records(&list, &AdminOptions::new()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_offset_is_committed_only_after_kafka_acknowledged_the_outcome() {
    let mut world = World::create(1).await;
    let mut receiver = Receiver::ok().await;
    world.publish(&world.subscription(receiver.url("")));
    let running = world.run(World::settings()).await;
    world.send("1", "a");
    receiver.next().await;
    let mut outcomes = world.outcomes();
    outcomes.at_least(1).await;
    until("the first event is committed", || {
        world.committed(Topic::Events, GROUP, 0).is_some_and(|c| c.0 == 1)
    })
    .await;

    // No record fits: Kafka takes no outcome, and the dispatcher goes on trying.
    set_max_message_bytes(&world, 10).await;
    world.send("2", "a");
    receiver.next().await;
    // Nothing is claimed for many commit intervals.
    let end = Instant::now() + World::settings().commit_interval * 40;
    until("many commit intervals pass", || {
        assert_eq!(world.committed(Topic::Events, GROUP, 0).unwrap().0, 1);
        Instant::now() > end
    })
    .await;
    set_max_message_bytes(&world, Topic::Outcomes.max_record_bytes()).await;
    let seen = outcomes.at_least(2).await;
    assert_eq!(seen[1]["event_id"], "2");
    until("the second event is committed", || {
        world.committed(Topic::Events, GROUP, 0).is_some_and(|c| c.0 == 2)
    })
    .await;
    assert!(receiver.rest().is_empty(), "the outcome was produced again, not the delivery made again");
    world.end(&[&running]).await;
}

async fn set_max_message_bytes(world: &World, bytes: usize) {
    let admin: AdminClient<DefaultClientContext> = world.topics.kafka.client().create().unwrap();
    let topic = world.topics.kafka.topic(Topic::Outcomes);
    let bytes = bytes.to_string();
    let config = AlterConfig::new(ResourceSpecifier::Topic(&topic)).set("max.message.bytes", &bytes);
    for result in admin.alter_configs([&config], &AdminOptions::new()).await.unwrap() {
        result.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_that_come_and_go_lose_nothing() {
    const EVENTS: usize = 400;
    let mut world = World::create(4).await;
    let mut receiver = Receiver::ok().await;
    world.publish(&world.subscription(receiver.url("")));
    let first = world.run(World::settings()).await;
    let send =
        |range: std::ops::Range<usize>| range.for_each(|event| world.send(&format!("{event:04}"), "a"));
    send(0..100);
    let mut arrived = BTreeSet::new();
    arrived.insert(receiver.next().await.event_id().to_owned());
    let mut world = {
        send(100..200);
        world
    };
    let second = world.run(World::settings()).await;
    until("both own partitions", || second.context.health.is_ready()).await;
    for event in 200..300 {
        world.send(&format!("{event:04}"), "a");
    }
    first.context.shutdown.cancel();
    for event in 300..EVENTS {
        world.send(&format!("{event:04}"), "a");
    }
    while arrived.len() < EVENTS {
        arrived.insert(receiver.next().await.event_id().to_owned());
    }
    // Every one of them has its outcome, too.
    let mut outcomes = world.outcomes();
    let mut settled = BTreeSet::new();
    let mut count = 0;
    while settled.len() < EVENTS {
        count += 1;
        let outcome = &outcomes.at_least(count).await[count - 1];
        assert!(["delivered", "deferred"].contains(&outcome["kind"].as_str().unwrap()), "{outcome}");
        settled.insert(outcome["event_id"].as_str().unwrap().to_owned());
    }
    world.end(&[&first, &second]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_waits_for_attempts_under_way_and_commits_them() {
    let mut world = World::create(1).await;
    let mut receiver = holding_receiver().await;
    world.publish(&world.subscription(receiver.url("")));
    let running = world.run(World::settings()).await;
    world.send("held", "a");
    receiver.next().await;
    running.context.shutdown.cancel();
    receiver.open_gate();
    world.ended().await.unwrap();
    assert_eq!(world.outcomes().at_least(1).await[0]["kind"], "delivered");
    assert_eq!(world.committed(Topic::Events, GROUP, 0).unwrap().0, 1);
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_cut_off_by_the_drain_deadline_is_left_to_the_next_owner() {
    let mut world = World::create(1).await;
    let mut receiver = holding_receiver().await;
    world.publish(&world.subscription(receiver.url("")));
    let first = world.run(Settings { drain_timeout: Duration::from_millis(100), ..World::settings() }).await;
    world.send("held", "a");
    receiver.next().await;
    first.context.shutdown.cancel();
    world.ended().await.unwrap();
    assert_eq!(world.committed(Topic::Events, GROUP, 0).unwrap().0, 0);
    receiver.open_gate();
    let second = world.run(World::settings()).await;
    assert_eq!(receiver.next().await.event_id(), "held");
    world.end(&[&first, &second]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_kafka_is_reported_and_is_no_reason_to_end() {
    let mut kafka = testing::kafka();
    // Reserved and closed on every sane machine.
    kafka.brokers = "127.0.0.1:1".to_owned();
    let context = testing::context(kafka);
    let mut running = JoinSet::new();
    running.spawn(Dispatcher::bind(World::settings(), context.clone()).await.unwrap().run());
    until("health names the broker", || {
        let reports = context.health.reports();
        let kafka = reports.iter().find(|report| report.name == "kafka").unwrap();
        kafka.status == "down" && kafka.reason.as_deref().is_some_and(|reason| reason.contains("127.0.0.1:1"))
    })
    .await;
    assert!(!context.health.is_ready());
    assert!(running.try_join_next().is_none());
    context.shutdown.cancel();
    crate::world::within("end", running.join_next()).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dispatcher_whose_clients_have_lost_their_brokers_for_good_goes_on() {
    let lost_clients = || testing::counted("floodway_dispatcher_lost_clients_total");
    let before = lost_clients();
    let mut world = World::create(1).await;
    let (relay, relayed) = world.topics.relayed();
    let mut receiver = holding_receiver().await;
    world.publish(&world.subscription(receiver.url("")));
    let running = world.run_in(World::settings(), testing::context(relayed)).await;
    world.send("held", "a");
    assert_eq!(receiver.next().await.event_id(), "held");
    let (patience, begun, mut sent) = (3 * DEADLINE, Instant::now(), 1);
    // Clients may get away: until one was lost.
    while sent == 1 || lost_clients() == before {
        assert!(begun.elapsed() < patience, "no client is lost");
        tokio::task::block_in_place(|| relay.loses_clients());
        let lost_at = Instant::now();
        // Its outcome has no broker to go to, nor does the consumer have one to read the next event from.
        receiver.open_gate();
        let next = format!("next-{sent}");
        world.send(&next, "a");
        sent += 1;
        while !receiver.rest().iter().any(|arrival| arrival.event_id() == next) {
            assert!(lost_at.elapsed() < patience, "nothing is delivered");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        println!("delivers again after {:?}", lost_at.elapsed());
    }
    // The event that was held may have been delivered again: its outcome was not committed.
    let (mut outcomes, mut settled) = (world.outcomes(), BTreeSet::new());
    while settled.len() < sent {
        let seen = outcomes.seen.len();
        let outcome = &outcomes.at_least(seen + 1).await[seen];
        settled.insert(outcome["event_id"].as_str().unwrap().to_owned());
    }
    world.end(&[&running]).await;
}
