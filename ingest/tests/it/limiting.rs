//! Bounds: rates, slow clients, connections, queues.

use crate::harness::{PATIENCE, Sender, TestIngest, settings};
use floodway_ingest::Settings;
use http_body_util::Full;
use serde_json::json;
use std::{num::NonZeroU32, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Writes, and reads until the server closes or an answer with a body is there.
pub(crate) async fn exchange(mut stream: TcpStream, bytes: &[u8]) -> String {
    stream.write_all(bytes).await.unwrap();
    read_to_close(&mut stream).await
}

async fn read_to_close(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset instead of an orderly close still leaves what was read.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the server did not close");
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn a_tenant_over_its_rate_is_told_when_to_come_back() {
    // One event in 10 s' worth of burst: what is used up stays so for the length of the test.
    let settings = Settings { burst_seconds: 10.try_into().unwrap(), ..settings() };
    let ingest = TestIngest::start_for(settings, Sender::new().with_rate(1)).await;
    let batch = |events: usize| serde_json::to_vec(&vec![json!({"type": "a"}); events]).unwrap();

    let reply = ingest.post(batch(11)).await;
    assert_eq!(reply.status, 413);
    assert_eq!(reply.json()["detail"], "this tenant's rate allows at most 10 events at once");

    assert_eq!(ingest.post(batch(10)).await.status, 202);
    let reply = ingest.post(batch(10)).await;
    assert_eq!((reply.status, reply.is_problem()), (429, true));
    let seconds: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=10).contains(&seconds), "{seconds}");
    assert_eq!(reply.json()["type"], "urn:floodway:problem:rate-limited");
    assert_eq!(
        reply.json()["detail"],
        format!("the tenant's events per second are used up; retry after {seconds} s")
    );
    ingest.stored(10).await;
    ingest.finish().await;
}

#[tokio::test]
async fn requests_and_single_keys_have_rates_too_and_answers_tell_what_is_left() {
    // So slow that nothing comes in during the test.
    let settings = Settings { burst_seconds: 1000.try_into().unwrap(), ..settings() };
    let mut sender = Sender::new();
    sender.tenant.requests_per_second = NonZeroU32::new(1);
    sender.record.events_per_second = NonZeroU32::new(1);
    let ingest = TestIngest::start_for(settings, sender).await;
    let batch = |events: usize| serde_json::to_vec(&vec![json!({"type": "a"}); events]).unwrap();

    let reply = ingest.post(batch(400)).await;
    assert_eq!(reply.status, 202);
    let mut policies: Vec<_> = reply.headers.get_all("ratelimit-policy").iter().collect();
    policies.sort();
    assert_eq!(policies, ["\"key-events\";q=1000;qu=\"events\";w=1000", "\"tenant-requests\";q=1000;w=1000"]);
    let left = reply.header("ratelimit").unwrap();
    assert!(left.contains("\"tenant-requests\";r=999;t="), "{left}");
    assert!(left.contains("\"key-events\";r=60"), "{left}");

    let reply = ingest.post(batch(900)).await;
    assert_eq!((reply.status, reply.is_problem()), (429, true));
    let detail = reply.json()["detail"].as_str().unwrap().to_owned();
    assert!(detail.starts_with("the API key's events per second are used up; retry after "), "{detail}");
    let left = reply.header("ratelimit").unwrap();
    assert!(left.contains("\"tenant-requests\";r=99"), "{left}");
    assert!(left.contains("\"key-events\";r=6"), "{left}");
    let reply = ingest.post(batch(1001)).await;
    assert_eq!(reply.json()["detail"], "this API key's rate allows at most 1000 events at once");
    // A request that is refused for its body has been counted, and is told so.
    assert!(ingest.post("{").await.header("ratelimit").is_some());
    let unknown = ingest.request().header("authorization", "Bearer x").body(Full::default()).unwrap();
    assert!(ingest.send(unknown).await.header("ratelimit").is_none());
    ingest.stored(400).await;
    ingest.finish().await;
}

#[tokio::test]
async fn a_tenant_without_rates_is_told_of_none_and_the_defaults_are_for_such_tenants() {
    let limited = Settings {
        default_requests_per_second: NonZeroU32::new(1),
        burst_seconds: 2.try_into().unwrap(),
        ..settings()
    };
    let ingest = TestIngest::start(settings()).await;
    let reply = ingest.post(r#"{"type":"a"}"#).await;
    assert!(reply.header("ratelimit").is_none() && reply.header("ratelimit-policy").is_none());
    ingest.finish().await;
    let ingest = TestIngest::start(limited).await;
    let deadline = std::time::Instant::now() + PATIENCE;
    // On a slow machine a request a second may be all that is sent.
    loop {
        let reply = ingest.post(r#"{"type":"a"}"#).await;
        if reply.status == 429 {
            assert!(reply.header("retry-after").is_some());
            assert_eq!(reply.header("ratelimit-policy"), Some("\"tenant-requests\";q=2;w=2"));
            break;
        }
        assert_eq!(reply.status, 202);
        assert!(std::time::Instant::now() < deadline, "never limited");
    }
    ingest.finish().await;
}

#[tokio::test]
async fn a_body_that_trickles_in_gets_408() {
    let ingest = TestIngest::start(Settings { body_timeout: Duration::from_millis(300), ..settings() }).await;
    let stream = TcpStream::connect(ingest.address).await.unwrap();
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: 100\r\n\r\n{{\"type\":",
        ingest.sender.key
    );
    let answer = exchange(stream, head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    let body = r#"{"type":"urn:floodway:problem:slow-body","title":"Request timeout","status":408,"detail":"the body must arrive within 300 ms"}"#;
    assert!(answer.ends_with(body), "{answer}");
    ingest.finish().await;
}

#[tokio::test]
async fn connections_that_never_send_a_request_are_closed() {
    let ingest =
        TestIngest::start(Settings { header_timeout: Duration::from_millis(300), ..settings() }).await;
    // Nothing; the beginning of HTTP/2's preface, or of a POST; half a header.
    for sent in ["", "P", "POST /v1/events HTTP/1.1\r\nhost:"] {
        let stream = TcpStream::connect(ingest.address).await.unwrap();
        exchange(stream, sent.as_bytes()).await;
    }
    ingest.finish().await;
}

#[tokio::test]
async fn a_connection_over_the_limit_is_turned_away_and_the_others_go_on() {
    let ingest = TestIngest::start(Settings { max_connections: 2, ..settings() }).await;
    let mut kept = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(ingest.address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        // Its answer shows that the connection has its place.
        let mut first = [0; 12];
        timeout(PATIENCE, stream.read_exact(&mut first)).await.unwrap().unwrap();
        assert_eq!(&first, b"HTTP/1.1 404");
        kept.push(stream);
    }
    let mut refused = TcpStream::connect(ingest.address).await.unwrap();
    let answer = read_to_close(&mut refused).await;
    assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");

    drop(kept);
    // Their places become free as soon as the server notices.
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let mut stream = TcpStream::connect(ingest.address).await.unwrap();
        if stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.is_ok() {
            let answer = read_to_close(&mut stream).await;
            if answer.starts_with("HTTP/1.1 404") {
                break;
            }
        }
        assert!(std::time::Instant::now() < deadline, "no place became free");
    }
    ingest.finish().await;
}

#[tokio::test]
async fn a_full_queue_is_said_of_each_event_that_was_not_written() {
    let ingest = TestIngest::start(Settings { queue_events: 5, ..settings() }).await;
    let events: Vec<_> = (0..1000).map(|n| json!({"type": "a", "id": format!("e-{n}")})).collect();
    let reply = ingest.post(serde_json::to_vec(&events).unwrap()).await;
    assert_eq!((reply.status, reply.header("retry-after")), (207, Some("1")));
    let results = reply.json()["results"].as_array().unwrap().clone();
    let accepted = results.iter().filter(|result| result["status"] == 202).count();
    assert!((5..1000).contains(&accepted), "{accepted}");
    // From the first refusal on, the rest of the batch.
    assert!(results[accepted..].iter().all(|result| result["status"] == 503));
    assert_eq!(
        results[999],
        json!({"index": 999, "id": "e-999", "status": 503, "outcome": "not_persisted", "problem": {
            "type": "urn:floodway:problem:not-persisted", "title": "Event not persisted", "status": 503,
            "detail": "the queue to Kafka had no room; nothing was written, send the event again",
        }})
    );
    ingest.stored(accepted).await;
    ingest.finish().await;
}

#[tokio::test]
async fn bodies_beyond_the_memory_set_aside_for_them_are_refused_until_others_are_answered() {
    let bytes = 1024 * 1024;
    let ingest =
        TestIngest::start(Settings { max_body_bytes: bytes, max_reading_bytes: bytes, ..settings() }).await;
    // Announced, and so reserved; the interim answer shows that the server waits for the body.
    let mut holder = TcpStream::connect(ingest.address).await.unwrap();
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         expect: 100-continue\r\nconnection: close\r\ncontent-length: {bytes}\r\n\r\n",
        ingest.sender.key
    );
    holder.write_all(head.as_bytes()).await.unwrap();
    let mut interim = [0; 25];
    timeout(PATIENCE, holder.read_exact(&mut interim)).await.unwrap().unwrap();

    let reply = ingest.post(r#"{"type":"a"}"#).await;
    assert_eq!((reply.status, reply.header("retry-after"), reply.is_problem()), (503, Some("1"), true));
    assert_eq!(reply.json()["outcome"], "not_persisted");

    let mut body = br#"{"type":"a"}"#.to_vec();
    body.resize(bytes, b' ');
    holder.write_all(&body).await.unwrap();
    let answer = read_to_close(&mut holder).await;
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    assert_eq!(ingest.post(r#"{"type":"b"}"#).await.status, 202);
    ingest.stored(2).await;
    ingest.finish().await;
}

#[tokio::test]
async fn one_address_takes_no_more_than_its_share_of_the_connections() {
    let ingest = TestIngest::start(Settings { max_connections_per_address: 1, ..settings() }).await;
    let mut kept = TcpStream::connect(ingest.address).await.unwrap();
    kept.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    timeout(PATIENCE, kept.read_exact(&mut first)).await.unwrap().unwrap();
    let mut refused = TcpStream::connect(ingest.address).await.unwrap();
    let answer = read_to_close(&mut refused).await;
    assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");

    // Another address of this machine has a share of its own.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let other = socket.connect(ingest.address).await.unwrap();
    let answer = exchange(other, b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    drop(kept);
    ingest.finish().await;
}

#[tokio::test]
async fn requests_beyond_those_that_may_be_in_progress_are_refused_and_counted() {
    let ingest = TestIngest::start(Settings { workers: 1, max_requests: 1, ..settings() }).await;
    let mut holder = TcpStream::connect(ingest.address).await.unwrap();
    let body = r#"{"type":"a"}"#;
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         expect: 100-continue\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        ingest.sender.key,
        body.len()
    );
    holder.write_all(head.as_bytes()).await.unwrap();
    // The interim answer shows that the request has begun.
    let mut interim = [0; 25];
    timeout(PATIENCE, holder.read_exact(&mut interim)).await.unwrap().unwrap();
    let reply = ingest.post(body).await;
    assert_eq!((reply.status, reply.header("retry-after"), reply.is_problem()), (503, Some("1"), true));
    assert_eq!(reply.json()["detail"], "too many requests are in progress; nothing was written");

    holder.write_all(body.as_bytes()).await.unwrap();
    let answer = read_to_close(&mut holder).await;
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    assert_eq!(ingest.post(body).await.status, 202);
    let metrics = floodway_runtime::tally::render();
    let value = |name: &str| {
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_else(|| panic!("{name}: {metrics}"));
        line.trim().parse::<f64>().unwrap()
    };
    // Other tests count in the same process.
    for name in [
        "floodway_ingest_requests_total{status=\"202\"}",
        "floodway_ingest_requests_refused_total{reason=\"busy\"}",
        "floodway_ingest_events_accepted_total",
        "floodway_ingest_batch_events_sum",
        "floodway_ingest_body_bytes_sum",
        "floodway_ingest_request_seconds_count",
        "floodway_ingest_ack_seconds_count",
    ] {
        assert!(value(name) >= 1.0, "{name}");
    }
    ingest.stored(2).await;
    ingest.finish().await;
}
