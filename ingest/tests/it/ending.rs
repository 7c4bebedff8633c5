//! The end of the process.

use crate::harness::{Sender, TestIngest, eventually, settings, stored};
use floodway_ingest::Settings;
use std::time::{Duration, Instant};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// A request whose body is not complete yet.
async fn half_sent(ingest: &TestIngest) -> TcpStream {
    let mut stream = TcpStream::connect(ingest.address).await.unwrap();
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         expect: 100-continue\r\ncontent-length: 12\r\n\r\n",
        ingest.sender.key
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The interim answer shows that the server waits for the body.
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream
}

#[tokio::test]
async fn requests_in_flight_at_shutdown_are_accepted_and_stored() {
    let ingest = TestIngest::start(settings()).await;
    let mut streams = Vec::new();
    for _ in 0..8 {
        streams.push(half_sent(&ingest).await);
    }
    ingest.context.shutdown.cancel();
    let address = ingest.address;
    eventually("no new connections", || std::net::TcpStream::connect(address).is_err()).await;

    for stream in &mut streams {
        stream.write_all(br#"{"type":"a"}"#).await.unwrap();
    }
    for stream in &mut streams {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
    }
    let (kafka, tenant) = (ingest.topics.kafka.clone(), ingest.sender.tenant.id);
    let topics = ingest.stop().await;
    stored(&kafka, tenant, 8).await;
    topics.delete().await;
}

#[tokio::test]
async fn a_request_that_never_ends_is_cut_off_at_the_drain_deadline() {
    let settings = Settings {
        publish_timeout: Duration::from_secs(1),
        drain_timeout: Duration::from_millis(2500),
        ..settings()
    };
    let ingest = TestIngest::start_for(settings, Sender::new()).await;
    let _stream = half_sent(&ingest).await;
    let asked = Instant::now();
    let topics = ingest.stop().await;
    let took = asked.elapsed();
    assert!(took >= Duration::from_millis(2400) && took < Duration::from_secs(20), "{took:?}");
    topics.delete().await;
}

/// A whole request.
fn request(ingest: &TestIngest) -> String {
    format!(
        "POST /v1/events HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: 12\r\n\r\n{{\"type\":\"a\"}}",
        ingest.sender.key
    )
}

#[tokio::test]
async fn requests_just_sent_at_shutdown_are_accepted_on_new_and_on_idle_connections() {
    let ingest = TestIngest::start(settings()).await;
    let mut streams = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(ingest.address).await.unwrap();
        stream.write_all(request(&ingest).as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"]}") {
            stream.read_buf(&mut answer).await.unwrap();
        }
        streams.push(stream);
    }
    for _ in 0..8 {
        streams.push(TcpStream::connect(ingest.address).await.unwrap());
    }
    for stream in &mut streams {
        stream.write_all(request(&ingest).as_bytes()).await.unwrap();
    }
    ingest.context.shutdown.cancel();
    for stream in &mut streams {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    }
    let (kafka, tenant) = (ingest.topics.kafka.clone(), ingest.sender.tenant.id);
    let topics = ingest.stop().await;
    stored(&kafka, tenant, 24).await;
    topics.delete().await;
}

#[tokio::test]
async fn connections_without_a_request_delay_the_end_by_a_moment_only() {
    let ingest = TestIngest::start(settings()).await;
    let _silent = TcpStream::connect(ingest.address).await.unwrap();
    let asked = Instant::now();
    ingest.finish().await;
    // Well below the header timeout and the drain deadline.
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
}
