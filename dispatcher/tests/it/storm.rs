//! Dispatchers of one group come and go all the time.

use crate::{
    receiver::{Answer, Receiver},
    world::{Running, World, until},
};
use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use floodway_dispatcher::Settings;
use floodway_schemas::topic::Topic;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

const PARTITIONS: i32 = 4;
const GROUP: &str = "dispatcher";
const ROUNDS: usize = 12;
const EVENTS_PER_ROUND: usize = 40;
/// What a former owner still has waiting or under way may be sent after a new owner settled it.
const GRACE: Duration = Duration::from_secs(10);

/// Which offsets a commit covers.
struct Covered {
    at: Instant,
    partition: i64,
    high: i64,
    open: BTreeSet<i64>,
}

impl Covered {
    fn of(world: &World, partition: i32) -> Option<Self> {
        let (watermark, metadata) = world.committed(Topic::Events, GROUP, partition)?;
        let encoded = metadata.rsplit(':').next()?;
        let bytes = STANDARD_NO_PAD.decode(encoded).unwrap();
        let mut numbers = VecDeque::from(varints(&bytes));
        let (mut high, mut open) = (watermark, BTreeSet::new());
        if let Some(length) = numbers.pop_front() {
            high += length;
            let mut offset = watermark;
            open.insert(offset);
            for distance in numbers {
                offset += distance;
                open.insert(offset);
            }
        }
        Some(Self { at: Instant::now(), partition: partition.into(), high, open })
    }

    fn covers(&self, (partition, offset): (i64, i64)) -> bool {
        partition == self.partition && offset < self.high && !self.open.contains(&offset)
    }
}

fn varints(bytes: &[u8]) -> Vec<i64> {
    let (mut numbers, mut number, mut shift) = (Vec::new(), 0, 0);
    for byte in bytes {
        number |= i64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            numbers.push(number);
            (number, shift) = (0, 0);
        }
    }
    numbers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_rebalances_loses_nothing_and_repeats_nothing_that_a_commit_covered() {
    let mut world = World::create(PARTITIONS).await;
    let arrivals: Arc<Mutex<Vec<(String, String, Instant)>>> = Arc::default();
    let noted = Arc::clone(&arrivals);
    let receiver = Receiver::start(move |arrival| {
        let noted_as = (arrival.path.clone(), arrival.event_id().to_owned(), Instant::now());
        noted.lock().unwrap().push(noted_as);
        match arrival.path.as_str() {
            "/slow" => Answer::After(Duration::from_millis(300)),
            _ => Answer::status(200),
        }
    })
    .await;
    let endpoints = ["slow", "fast"].map(|path| world.subscription(receiver.url(path)));
    endpoints.iter().for_each(|endpoint| world.publish(endpoint));

    let settings = || Settings { drain_timeout: Duration::from_secs(2), ..World::settings() };
    let mut live: VecDeque<Running> = VecDeque::from([world.run(settings()).await]);
    let mut gone = Vec::new();
    let mut covered: Vec<Covered> = Vec::new();
    for round in 0..ROUNDS {
        let before = arrivals.lock().unwrap().len();
        for number in 0..EVENTS_PER_ROUND {
            world.send(&format!("{round}-{number}"), "a");
        }
        match round % 4 {
            0 | 2 => live.push_back(world.run(settings()).await),
            step => {
                let oldest = live.pop_front().unwrap();
                if step == 1 {
                    oldest.context.shutdown.cancel();
                } else {
                    oldest.crash();
                }
                gone.push(oldest);
            }
        }
        until("deliveries go on", || arrivals.lock().unwrap().len() >= before + EVENTS_PER_ROUND).await;
        covered.extend((0..PARTITIONS).filter_map(|partition| Covered::of(&world, partition)));
    }

    // The ledger: every delivery has an outcome.
    let mut outcomes = world.outcomes();
    let mut settled: BTreeMap<(String, String), String> = BTreeMap::new();
    let mut records: BTreeMap<String, (i64, i64)> = BTreeMap::new();
    let mut count = 0;
    while settled.len() < 2 * ROUNDS * EVENTS_PER_ROUND {
        count += 1;
        let outcome = &outcomes.at_least(count).await[count - 1];
        let text = |field: &str| outcome[field].as_str().unwrap().to_owned();
        let numbers: Vec<i64> = text("cause").rsplit(':').take(2).map(|part| part.parse().unwrap()).collect();
        records.insert(text("event_id"), (numbers[1], numbers[0]));
        settled.insert((text("subscription"), text("event_id")), text("kind"));
    }
    let arrived = arrivals.lock().unwrap().clone();
    for ((subscription, event), kind) in &settled {
        let path = if *subscription == endpoints[0].id.to_string() { "/slow" } else { "/fast" };
        let came = arrived.iter().any(|arrival| arrival.0 == path && arrival.1 == *event);
        assert!(came || kind == "deferred", "{event} for {path}: {kind}");
    }
    for (path, event, at) in &arrived {
        let record = records[event];
        let late = covered.iter().find(|commit| commit.covers(record) && *at > commit.at + GRACE);
        assert!(late.is_none(), "{event} {record:?} came to {path} long after a commit that covers it");
    }
    let all: Vec<&Running> = gone.iter().chain(&live).collect();
    world.end(&all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn giving_partitions_up_waits_for_no_endpoint() {
    let mut world = World::create(2).await;
    let mut receiver = Receiver::start(|_| Answer::Held).await;
    world.publish(&world.subscription(receiver.url("")));
    let first = world.run(World::settings()).await;
    for partition in 0..2 {
        let event = world.event(&format!("held-{partition}"), "a", "{}");
        world.produce(Topic::Events, Some(partition), "k", event.as_bytes());
    }
    assert_eq!(receiver.next_ids(2).await, ["held-0", "held-1"]);
    let second = world.run(World::settings()).await;
    // The new owner of one of the partitions delivers again what the first one has under way, which goes on.
    assert!(receiver.next().await.event_id().starts_with("held-"));
    receiver.open_gate();
    world.end(&[&first, &second]).await;
}
