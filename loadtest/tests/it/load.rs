//! The load generator against servers of the test's own, and its reconciliation against Kafka.

use crate::http::{json, serve};
use bytes::Bytes;
use floodway_loadtest::load::{
    self, Arrival, KafkaTopic, Length, LoadError, LoadPlan, Outcome, Progress, Workload, reconcile_topic,
    topic_ends,
};
use http::{Request, Response};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    producer::{FutureProducer, FutureRecord},
};
use serde_json::Value;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Far beyond what anything here takes.
const DEADLINE: Duration = Duration::from_secs(60);

fn plan(address: SocketAddr, arrival: Arrival, events: u64) -> LoadPlan {
    LoadPlan {
        arrival,
        connections: 1,
        warmup: Duration::ZERO,
        length: Length::Events(events),
        ..LoadPlan::new(format!("http://{address}"), "key")
    }
}

async fn run(plan: &LoadPlan, progress: &Arc<Progress>) -> Outcome {
    let stop = CancellationToken::new();
    let run = Box::pin(load::run(plan, progress, &stop));
    tokio::time::timeout(DEADLINE, run).await.expect("in time").unwrap()
}

async fn wait_until(is_so: impl Fn() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.expect("in time");
}

fn events(request: &Request<Bytes>) -> Vec<Value> {
    let body: Value = serde_json::from_slice(request.body()).unwrap();
    body.as_array().cloned().unwrap_or_else(|| vec![body])
}

fn accepted(count: usize) -> Response<Bytes> {
    json(202, format!(r#"{{"accepted":{count},"ids":[]}}"#))
}

/// A server that holds all its answers until it is told to give them.
async fn held(tasks: &mut JoinSet<()>) -> (SocketAddr, watch::Sender<bool>) {
    let (release, released) = watch::channel(false);
    let address = serve(tasks, move |request| {
        let mut released = released.clone();
        async move {
            released.wait_for(|released| *released).await.unwrap();
            accepted(events(&request).len())
        }
    })
    .await;
    (address, release)
}

#[tokio::test]
async fn a_stall_of_the_server_is_in_the_latency_of_every_request_that_was_due_meanwhile() {
    let mut tasks = JoinSet::new();
    let (address, release) = held(&mut tasks).await;
    let progress = Arc::new(Progress::default());
    let plan = plan(address, Arrival::Open { rate: 1000.0 }, 200);
    let (outcome, ()) = tokio::join!(run(&plan, &progress), async {
        // One request is at the server, all others have become due: 199 ms have passed.
        wait_until(|| progress.backlog.load(Relaxed) == 199).await;
        release.send_replace(true);
    });
    let report = outcome.report;
    assert_eq!((report.totals.requests, report.totals.accepted, report.latency.count), (200, 200, 200));
    // Request n was due at n ms, and no answer came before 199 ms.
    assert!(report.latency.max >= 199_000, "{:?}", report.latency);
    assert!(report.latency.p50 >= 99_000, "{:?}", report.latency);
    // Counted from its sending no request is slower than from when it was due, and most hardly waited.
    assert!(report.service.p50 <= report.latency.p50 && report.service.count == 200);
    assert_eq!(progress.backlog.load(Relaxed), 0);
}

#[tokio::test]
async fn requests_that_find_no_room_to_wait_are_counted_and_spoil_the_run() {
    let mut tasks = JoinSet::new();
    let (address, release) = held(&mut tasks).await;
    let progress = Arc::new(Progress::default());
    let plan = LoadPlan { max_backlog: 50, ..plan(address, Arrival::Open { rate: 1000.0 }, 200) };
    let (outcome, ()) = tokio::join!(run(&plan, &progress), async {
        wait_until(|| progress.dropped.load(Relaxed) == 149).await;
        release.send_replace(true);
    });
    let report = outcome.report;
    assert_eq!((report.totals.requests, report.totals.dropped_requests), (51, 149));
    assert!(!report.valid);
    assert!(report.invalid_because[0].contains("149 requests"), "{:?}", report.invalid_because);
}

#[tokio::test]
async fn a_closed_loop_sends_so_many_events_over_all_connections_and_threads_each_with_its_own_id() {
    let mut tasks = JoinSet::new();
    let ids = Arc::new(std::sync::Mutex::new(std::collections::BTreeSet::new()));
    let seen = Arc::clone(&ids);
    let address = serve(&mut tasks, move |request| {
        let events = events(&request);
        let mut seen = seen.lock().unwrap();
        seen.extend(events.iter().map(|event| event["id"].as_str().unwrap().to_owned()));
        let mut answer = accepted(events.len());
        // Every third request loses its connection, properly.
        if seen.len() % 30 == 0 {
            answer.headers_mut().insert("connection", "close".parse().unwrap());
        }
        async move { answer }
    })
    .await;
    let workload = Workload { events_per_request: 10, keys: 20, ..Workload::default() };
    let plan = LoadPlan {
        workload,
        connections: 8,
        threads: 2,
        ledger: true,
        ..plan(address, Arrival::Closed, 995)
    };
    let outcome = run(&plan, &Arc::default()).await;
    let ledger = outcome.ledger.unwrap();
    assert_eq!((ledger.sent(), ledger.acknowledged(), ledger.unknown()), (1000, 1000, 0));
    assert_eq!(outcome.report.totals.requests, 100);
    let ids = ids.lock().unwrap();
    assert_eq!(ids.len(), 1000);
    assert!(ids.iter().all(|id| ledger.is_acknowledged(id)));
}

#[tokio::test]
async fn every_kind_of_answer_has_its_class() {
    let mut tasks = JoinSet::new();
    let number = Arc::new(AtomicU64::new(0));
    let address = serve(&mut tasks, move |_| {
        let answer = match number.fetch_add(1, Relaxed) {
            0 => accepted(2),
            1 => json(207, r#"{"results":[{"index":0,"status":202},{"index":1,"status":400}]}"#),
            2 => json(429, "{}"),
            3 => json(503, r#"{"outcome":"not_persisted"}"#),
            4 => json(503, "{}"),
            // Longer than what was promised: cannot be read.
            _ => Response::builder()
                .status(202)
                .header("transfer-encoding", "chunked")
                .body("x".into())
                .unwrap(),
        };
        async move { answer }
    })
    .await;
    let workload = Workload { events_per_request: 2, ..Workload::default() };
    let plan = LoadPlan { workload, ledger: true, ..plan(address, Arrival::Closed, 12) };
    let outcome = run(&plan, &Arc::default()).await;
    let totals = outcome.report.totals;
    let errors = totals.errors;
    assert_eq!((totals.events, totals.accepted), (12, 3));
    assert_eq!((errors.refused, errors.throttled, errors.not_persisted), (1, 2, 2));
    assert_eq!((errors.unknown, errors.transport), (2, 2));
    assert!(outcome.report.invalid_because[0].starts_with("9 events not acknowledged"));
    // Accepted, in part accepted, unknown, and none.
    assert_eq!(outcome.report.latency.count, 4);
    let ledger = outcome.ledger.unwrap();
    assert_eq!((ledger.acknowledged(), ledger.refused(), ledger.unknown()), (3, 5, 4));
}

#[tokio::test]
async fn a_key_that_is_not_accepted_ends_the_run() {
    let mut tasks = JoinSet::new();
    let address = serve(&mut tasks, |_| async { json(401, "{}") }).await;
    let plan = LoadPlan { connections: 4, threads: 2, ..plan(address, Arrival::Closed, 1_000_000_000) };
    let (progress, stop) = (Arc::default(), CancellationToken::new());
    let result = Box::pin(load::run(&plan, &progress, &stop));
    let result = tokio::time::timeout(DEADLINE, result).await.expect("in time");
    assert!(matches!(result, Err(LoadError::Unauthorized(401))));
}

#[tokio::test]
async fn a_run_that_is_stopped_reports_what_never_got_an_answer_as_unknown() {
    let mut tasks = JoinSet::new();
    let (address, _never) = held(&mut tasks).await;
    let (progress, stop) = (Arc::new(Progress::default()), CancellationToken::new());
    let plan = LoadPlan { connections: 3, ledger: true, ..plan(address, Arrival::Closed, 100) };
    let (outcome, ()) = tokio::join!(Box::pin(load::run(&plan, &progress, &stop)), async {
        wait_until(|| progress.sent.load(Relaxed) == 3).await;
        stop.cancel();
    });
    let outcome = outcome.unwrap();
    assert_eq!(outcome.report.totals.errors.transport, 3);
    assert!(!outcome.report.valid);
    assert_eq!(outcome.ledger.unwrap().unknown(), 3);
}

#[tokio::test]
async fn nobody_listening_is_an_error_and_no_run() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let plan = plan(address, Arrival::Closed, 1);
    let result = Box::pin(load::run(&plan, &Arc::default(), &CancellationToken::new())).await;
    assert!(matches!(result, Err(LoadError::Connect { .. })));
}

/// An ingest that acknowledges everything, but loses event 3 of connection 0 and stores event 5 twice.
async fn faulty_ingest(tasks: &mut JoinSet<()>, producer: FutureProducer, topic: String) -> SocketAddr {
    serve(tasks, move |request| {
        let (producer, topic) = (producer.clone(), topic.clone());
        async move {
            let events = events(&request);
            for event in &events {
                let copies = match &event["id"].as_str().unwrap()[21..] {
                    "-00000-000000000003" => 0,
                    "-00000-000000000005" => 2,
                    _ => 1,
                };
                let (key, value) = (event["partitionkey"].to_string(), event.to_string());
                for _ in 0..copies {
                    let record = FutureRecord::to(&topic).key(&key).payload(&value);
                    producer.send(record, DEADLINE).await.unwrap();
                }
            }
            accepted(events.len())
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_topic_tells_what_was_lost_and_what_was_repeated() {
    let brokers =
        std::env::var("FLOODWAY_KAFKA_BROKERS").expect("FLOODWAY_KAFKA_BROKERS names a running Kafka");
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", &brokers);
    let name = format!("loadtest-{:016x}.events", rand::random::<u64>());
    let admin: AdminClient<DefaultClientContext> = config.create().unwrap();
    let topic = NewTopic::new(&name, 3, TopicReplication::Fixed(1));
    admin.create_topics([&topic], &AdminOptions::new()).await.unwrap().remove(0).unwrap();
    let producer: FutureProducer = config.create().unwrap();
    // What is there before the run is not looked at.
    producer.send(FutureRecord::<(), _>::to(&name).payload("before"), DEADLINE).await.unwrap();

    let topic = KafkaTopic { brokers, topic: name.clone(), settings: Vec::new() };
    let before = {
        let topic = topic.clone();
        tokio::task::spawn_blocking(move || topic_ends(&topic)).await.unwrap().unwrap()
    };
    let mut tasks = JoinSet::new();
    let address = faulty_ingest(&mut tasks, producer.clone(), name.clone()).await;
    let workload = Workload { events_per_request: 5, keys: 6, ..Workload::default() };
    let plan = LoadPlan { workload, connections: 3, ledger: true, ..plan(address, Arrival::Closed, 300) };
    let ledger = run(&plan, &Arc::default()).await.ledger.unwrap();
    producer.send(FutureRecord::<(), _>::to(&name).payload("of somebody else"), DEADLINE).await.unwrap();

    let run = ledger.run().to_owned();
    let reconcile = move || reconcile_topic(&ledger, &topic, &before);
    let found = tokio::task::spawn_blocking(reconcile).await.unwrap().unwrap();
    admin.delete_topics(&[&name], &AdminOptions::new()).await.unwrap();
    assert_eq!((found.acknowledged, found.lost, found.repeated), (300, 1, 1));
    assert_eq!(found.lost_samples, [format!("{run}-00000-000000000003")]);
    assert_eq!((found.foreign, found.out_of_order, found.moved), (1, 0, 0));
    assert_eq!(found.records, 301);
}
