use crate::http::{json, serve};
use bytes::Bytes;
use floodway_loadtest::send::{
    InvalidTarget, SendError, SendPlan, SendReport, payload::Payload, record::SendRecord, send,
};
use http::{Request, Response};
use serde_json::{Value, json as value};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The ids of a request's events.
fn ids(request: &Request<Bytes>) -> Vec<String> {
    let body: Value = serde_json::from_slice(request.body()).unwrap();
    let events = body.as_array().cloned().unwrap_or_else(|| vec![body]);
    events.iter().map(|event| event["id"].as_str().unwrap().to_owned()).collect()
}

fn accepted(ids: &[String]) -> Response<Bytes> {
    json(202, value!({ "accepted": ids.len(), "ids": ids }).to_string())
}

/// Runs a plan of `events` against an ingest that answers the n-th request, from 0, by a function.
async fn run(
    events: u64,
    plan: SendPlan,
    answer: impl Fn(usize, &Request<Bytes>) -> Response<Bytes> + Send + Sync + 'static,
) -> (Result<SendReport, SendError>, Arc<SendRecord>, Vec<(Vec<String>, Instant)>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let answer = Arc::new(answer);
    let mut tasks = JoinSet::new();
    let requests = Arc::clone(&seen);
    let address = serve(&mut tasks, move |request: Request<Bytes>| {
        assert_eq!(request.uri().path(), "/v1/events");
        assert_eq!(request.headers()["authorization"], "Bearer fw_test_key");
        let number = {
            let mut seen = requests.lock().unwrap();
            seen.push((ids(&request), Instant::now()));
            seen.len() - 1
        };
        let response = answer(number, &request);
        async move { response }
    })
    .await;
    let plan = SendPlan { url: format!("http://{address}"), key: "fw_test_key".into(), ..plan };
    let record = Arc::new(SendRecord::new("run", events));
    let report = send(&plan, &record, &CancellationToken::new()).await;
    let seen = seen.lock().unwrap().clone();
    (report, record, seen)
}

fn one_connection(batch: usize) -> SendPlan {
    SendPlan { batch, connections: 1, ..SendPlan::default() }
}

#[tokio::test]
async fn every_event_is_sent_once_and_accepted() {
    let plan = SendPlan { batch: 30, connections: 4, ..SendPlan::default() };
    let (report, record, seen) = run(100, plan, |_, request| accepted(&ids(request))).await;
    let report = report.unwrap();
    assert_eq!((report.tally.accepted, report.tally.requests, report.tally.repeats), (100, 4, 0));
    assert_eq!(report.latency.len(), 4);
    let mut ids: Vec<String> = seen.into_iter().flat_map(|(ids, _)| ids).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), 100);
    assert!(ids.iter().all(|id| record.is_accepted(record.number_of(id).unwrap())));
}

#[tokio::test]
async fn of_a_mixed_answer_only_what_may_yet_succeed_is_sent_again() {
    let (report, record, seen) = run(4, one_connection(4), |number, request| match number {
        0 => json(
            207,
            value!({ "results": [
                { "index": 0, "id": "run-0", "status": 202 },
                { "index": 1, "id": "run-1", "status": 400, "problem": { "title": "bad" } },
                { "index": 2, "id": "run-2", "status": 503, "problem": { "outcome": "not_persisted" } },
                { "index": 3, "id": "run-3", "status": 429, "problem": {} },
            ] })
            .to_string(),
        ),
        _ => accepted(&ids(request)),
    })
    .await;
    let tally = report.unwrap().tally;
    assert_eq!((tally.accepted, tally.repeats, tally.throttled), (3, 2, 1));
    assert_eq!(tally.refused, BTreeMap::from([(400, 1)]));
    assert_eq!(seen[1].0, ["run-2", "run-3"]);
    assert!(!record.is_accepted(1));
}

#[tokio::test]
async fn a_retry_after_is_waited_for() {
    let (report, _, seen) = run(2, one_connection(2), |number, request| match number {
        0 => Response::builder()
            .status(429)
            .header("retry-after", "1")
            .body(Bytes::from_static(b"{}"))
            .unwrap(),
        _ => accepted(&ids(request)),
    })
    .await;
    let tally = report.unwrap().tally;
    assert_eq!((tally.accepted, tally.throttled, tally.requests), (2, 1, 2));
    assert!(seen[1].1 - seen[0].1 >= Duration::from_secs(1));
}

#[tokio::test]
async fn events_that_are_never_acknowledged_are_reported_after_a_bounded_number_of_tries() {
    for (outcome, unknown, not_persisted) in [("unknown", 3, 0), ("not_persisted", 0, 3)] {
        let plan = SendPlan { tries: 3, longest_wait: Duration::from_millis(10), ..one_connection(3) };
        let (report, record, seen) =
            run(3, plan, move |_, _| json(503, value!({ "outcome": outcome }).to_string())).await;
        let tally = report.unwrap().tally;
        assert_eq!((tally.unknown, tally.not_persisted, tally.accepted), (unknown, not_persisted, 0));
        assert_eq!((seen.len(), record.accepted()), (3, 0));
    }
}

#[tokio::test]
async fn a_repeat_has_the_same_bytes() {
    let bodies = Arc::new(Mutex::new(HashMap::<usize, Bytes>::new()));
    let kept = Arc::clone(&bodies);
    let plan =
        SendPlan { payload: Payload::Sized { event_type: "t".into(), bytes: 200 }, ..one_connection(1) };
    let (report, _, _) = run(1, plan, move |number, request| {
        kept.lock().unwrap().insert(number, request.body().clone());
        if number == 0 { json(503, "") } else { accepted(&ids(request)) }
    })
    .await;
    assert_eq!(report.unwrap().tally.accepted, 1);
    let bodies = bodies.lock().unwrap();
    assert_eq!(bodies[&0], bodies[&1]);
    assert_eq!(bodies[&0][0], b'{', "one event alone goes as an object");
}

#[tokio::test]
async fn a_rate_is_kept() {
    let plan = SendPlan { rate: Some(100.0), ..one_connection(10) };
    let (report, _, _) = run(50, plan, |_, request| accepted(&ids(request))).await;
    // The fifth batch of ten is due 0.4 s after the first.
    assert!(report.unwrap().elapsed >= Duration::from_millis(400));
}

#[tokio::test]
async fn a_wrong_key_ends_the_run_at_once() {
    let (report, _, seen) = run(1000, one_connection(10), |_, _| json(401, "{}")).await;
    assert!(matches!(report, Err(SendError::Unauthorized(_))));
    assert_eq!(seen.len(), 1);
}

#[tokio::test]
async fn an_ingest_that_is_not_there_leaves_every_event_unknown() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let plan = SendPlan {
        url: format!("http://{free}"),
        key: "k".into(),
        tries: 2,
        longest_wait: Duration::from_millis(10),
        ..one_connection(5)
    };
    let record = Arc::new(SendRecord::new("run", 10));
    let report = send(&plan, &record, &CancellationToken::new()).await.unwrap();
    assert_eq!((report.tally.unknown, report.tally.requests), (10, 4));
}

#[tokio::test]
async fn urls_that_cannot_be_sent_to_are_named() {
    for url in ["https://example.com", "example.com", "http:///x", ""] {
        let plan = SendPlan { url: url.into(), key: "k".into(), ..SendPlan::default() };
        let record = Arc::new(SendRecord::new("run", 1));
        let error = send(&plan, &record, &CancellationToken::new()).await.unwrap_err();
        assert!(matches!(error, SendError::Target(InvalidTarget::Url(_))), "{url}");
    }
}
