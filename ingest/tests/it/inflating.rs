//! Compressed bodies.

use crate::harness::{Reply, TestIngest, eventually, settings};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use floodway_ingest::Settings;
use floodway_schemas::event::Event;
use http_body_util::Full;
use std::io::Write;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 3).unwrap()
}

async fn send(ingest: &TestIngest, coding: &str, body: impl Into<Bytes>) -> Reply {
    let request = ingest.request().header("content-encoding", coding);
    ingest.send(request.body(Full::new(body.into())).unwrap()).await
}

#[tokio::test]
async fn compressed_events_are_stored_as_if_they_had_been_sent_plain() {
    let ingest = TestIngest::start(settings()).await;
    let data = format!("{{ \"filler\" : \"{}\" }}", "some text, ".repeat(20_000));
    let event = |id: &str| format!(r#"{{"type":"a","id":"{id}","data":{data}}}"#);
    for (coding, id, compressed) in [
        ("gzip", "1", gzip(event("1").as_bytes())),
        ("x-gzip", "2", gzip(event("2").as_bytes())),
        ("zstd", "3", zstd(event("3").as_bytes())),
        ("ZSTD", "4", [zstd(&event("4").as_bytes()[..9]), zstd(&event("4").as_bytes()[9..])].concat()),
        ("gzip", "5", [gzip(&event("5").as_bytes()[..9]), gzip(&event("5").as_bytes()[9..])].concat()),
    ] {
        assert!(compressed.len() < 10_000);
        let reply = send(&ingest, coding, compressed).await;
        assert_eq!((reply.status, reply.json()["ids"][0].as_str()), (202, Some(id)), "{coding}");
    }
    for stored in ingest.stored(5).await {
        assert_eq!(&*Event::decode(&stored.value).unwrap().body(), data.as_bytes());
    }
    ingest.finish().await;
}

#[tokio::test]
async fn a_bomb_is_stopped_at_the_limit_and_the_server_goes_on() {
    let limit = 2 * 1024 * 1024;
    let ingest = TestIngest::start(Settings { max_inflated_bytes: limit, ..settings() }).await;
    let bomb = vec![b' '; 20 * 1024 * 1024];
    for (coding, compressed) in [("gzip", gzip(&bomb)), ("zstd", zstd(&bomb))] {
        let reply = send(&ingest, coding, compressed).await;
        assert_eq!((reply.status, reply.is_problem()), (413, true), "{coding}");
        assert_eq!(reply.json()["type"], "urn:floodway:problem:inflated-body-too-large");
        assert_eq!(
            reply.json()["detail"],
            format!("a request body may have at most {limit} bytes when inflated")
        );
    }
    assert_eq!(send(&ingest, "gzip", gzip(br#"{"type":"a"}"#)).await.status, 202);
    eventually("still ready", || ingest.context.health.is_ready()).await;
    ingest.finish().await;
}

#[tokio::test]
async fn a_compressed_body_that_is_broken_is_malformed() {
    let ingest = TestIngest::start(settings()).await;
    let good = br#"{"type":"a"}"#;
    for (coding, other, compressed) in [("gzip", zstd(good), gzip(good)), ("zstd", gzip(good), zstd(good))] {
        let cut = compressed[..compressed.len() - 1].to_vec();
        let trailing = [compressed.as_slice(), b"x"].concat();
        for body in [cut, trailing, other, good.to_vec(), Vec::new()] {
            let reply = send(&ingest, coding, body).await;
            assert_eq!((reply.status, reply.is_problem()), (400, true), "{coding}");
            let detail = reply.json()["detail"].as_str().unwrap().to_owned();
            assert!(detail.starts_with(&format!("the body is not valid {coding}: ")), "{detail}");
        }
    }
    ingest.finish().await;
}
