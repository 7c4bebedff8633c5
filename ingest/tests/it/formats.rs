//! The ways in which events are written: plain JSON, lines, and the modes of the CloudEvents HTTP binding.

use crate::harness::{Reply, Stored, TestIngest, settings};
use bytes::Bytes;
use floodway_ingest::Settings;
use floodway_schemas::event::Event;
use http_body_util::Full;
use serde_json::{Value, json};

const EXAMPLE: &str =
    r#"{"specversion":"1.0","type":"com.example.someevent","source":"/mycontext","id":"A-1"}"#;

/// Sends a body with these headers beside the usual ones.
async fn send(ingest: &TestIngest, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Reply {
    let mut request = ingest.request().body(Full::new(body.into())).unwrap();
    request.headers_mut().remove("content-type");
    for (name, value) in headers {
        request.headers_mut().append(name.parse::<http::HeaderName>().unwrap(), value.parse().unwrap());
    }
    ingest.send(request).await
}

async fn send_as(ingest: &TestIngest, content_type: &str, body: impl Into<Bytes>) -> Reply {
    send(ingest, &[("content-type", content_type)], body).await
}

fn statuses(reply: &Reply) -> Vec<u64> {
    let results = reply.json()["results"].clone();
    results.as_array().unwrap().iter().map(|result| result["status"].as_u64().unwrap()).collect()
}

/// What a record is, around the one thing that the test cannot know.
fn envelope(ingest: &TestIngest, stored: &Stored, before: &str, after: &str) -> String {
    let mut received_at = Vec::new();
    Event::decode(&stored.value).unwrap().received_at.write_rfc3339(&mut received_at);
    let received_at = String::from_utf8(received_at).unwrap();
    format!(r#"{{{before},"tenantid":"{}","receivedat":"{received_at}"{after}}}"#, ingest.sender.tenant.id)
}

#[tokio::test]
async fn a_line_that_cannot_be_read_fails_alone() {
    let ingest = TestIngest::start(Settings { max_batch_events: 6, ..settings() }).await;
    let body = b"{\"type\":\"a\",\"id\":\"0\",\"data\":\"\xC3\xA9\"}\r\n\n{\"type\":\"a\",\n \n[{\"type\":\"a\"}]\n\
        {\"type\":\"a\",\"id\":\"\xFF\"}\n{\"type\":\"a\",\"id\":\"0\"}\n{\"type\":\"a\",\"id\":\"5\",\"data\": { \"b\" :1.0 }}";
    let reply = send_as(&ingest, "application/x-ndjson", body.as_slice()).await;
    assert_eq!((reply.status, statuses(&reply)), (207, vec![202, 400, 400, 400, 202, 202]));
    let results = reply.json()["results"].clone();
    let detail = |index: usize| results[index]["problem"]["detail"].as_str().unwrap().to_owned();
    assert!(detail(1).starts_with("not valid JSON: EOF"), "{}", detail(1));
    assert_eq!(detail(2), "an event must be a JSON object");
    assert!(detail(3).starts_with("not valid JSON: "), "{}", detail(3));
    assert_eq!(results[4], json!({"index": 4, "id": "0", "status": 202, "duplicate_of": 0}));

    let stored = ingest.stored(2).await;
    let mut bodies: Vec<_> =
        stored.iter().map(|record| Event::decode(&record.value).unwrap().body().to_vec()).collect();
    bodies.sort();
    assert_eq!(bodies, [b"\"\xC3\xA9\"".to_vec(), b"{ \"b\" :1.0 }".to_vec()]);

    for content_type in ["application/ndjson", "application/jsonl; charset=utf-8", "application/x-jsonlines"]
    {
        assert_eq!(send_as(&ingest, content_type, "{\"type\":\"a\"}\n").await.status, 202, "{content_type}");
    }
    let reply = send_as(&ingest, "application/x-ndjson", "{\"type\":\"a\"}\n".repeat(7)).await;
    assert_eq!(
        (reply.status, reply.json()["type"].as_str()),
        (413, Some("urn:floodway:problem:batch-too-large"))
    );
    let reply = send_as(&ingest, "application/x-ndjson", "\n\n").await;
    assert_eq!(
        (reply.status, reply.json()["type"].as_str()),
        (400, Some("urn:floodway:problem:empty-batch"))
    );
    ingest.finish().await;
}

/// HTTP binding 3.1: each request with the event's envelope on the topic, byte for byte.
#[tokio::test]
async fn an_event_in_binary_mode_is_stored_as_it_was_sent() {
    let ingest = TestIngest::start(settings()).await;
    let required: [(&str, &str); 3] = [("ce-specversion", "1.0"), ("ce-type", "t"), ("ce-source", "/s")];
    type Case<'a> = (&'a [(&'a str, &'a str)], &'a [u8], &'a str, &'a str);
    let table: [Case<'_>; 4] = [
        (
            &[
                ("ce-id", "json"),
                ("Content-Type", "application/json; charset=utf-8"),
                ("CE-Time", "2018-04-05T03:56:24Z"),
            ],
            b" { \"b\" :1.0e2,\n\"a\":\"\\u00e9\" }\n",
            r#","time":"2018-04-05T03:56:24Z","datacontenttype":"application/json; charset=utf-8""#,
            ",\"data\":{ \"b\" :1.0e2,\n\"a\":\"\\u00e9\" }",
        ),
        (
            &[("ce-id", "bytes"), ("content-type", "image/png"), ("ce-comexampleothervalue", "5")],
            &[0, 0xFF, 0x0B],
            r#","datacontenttype":"image/png""#,
            r#","comexampleothervalue":"5","data_base64":"AP8L""#,
        ),
        (
            &[
                ("ce-id", "text"),
                ("ce-subject", "Euro%20%E2%82%AC%20%F0%9F%98%80"),
                ("ce-partitionkey", "\"k\""),
            ],
            b"{}",
            ",\"subject\":\"Euro \u{20ac} \u{1f600}\",\"partitionkey\":\"k\"",
            r#","data_base64":"e30=""#,
        ),
        (
            &[("ce-id", "none"), ("content-type", "application/x-ndjson")],
            b"",
            r#","datacontenttype":"application/x-ndjson""#,
            "",
        ),
    ];
    for (more, body, ..) in table {
        let reply = send(&ingest, &[&required[..], more].concat(), body).await;
        assert_eq!((reply.status, reply.json()["ids"][0].as_str()), (202, Some(more[0].1)));
    }
    let stored = ingest.stored(table.len()).await;
    for (more, body, before, after) in table {
        let id = more[0].1;
        let find = |record: &&Stored| Event::decode(&record.value).unwrap().id == id;
        let record = stored.iter().find(find).unwrap();
        let before = format!(r#""specversion":"1.0","id":"{id}","source":"/s","type":"t"{before}"#);
        assert_eq!(str::from_utf8(&record.value).unwrap(), envelope(&ingest, record, &before, after));
        assert_eq!(record.headers, [("content-type".to_owned(), b"application/cloudevents+json".to_vec())]);
        assert_eq!(&*Event::decode(&record.value).unwrap().body(), body.trim_ascii());
    }
    assert!(stored.iter().any(|record| record.key == format!("{}/k", ingest.sender.tenant.id)));

    // Section 3.1.1, 3.1.3.2, and the data that its type declares to be JSON.
    let with = |more: &[(&'static str, &'static str)]| [&required[..], &[("ce-id", "1")], more].concat();
    for (headers, body, detail) in [
        (required.to_vec(), "", "attribute \"id\" is required"),
        (with(&[("ce-datacontenttype", "a/b")]), "", "the header ce-datacontenttype must not be sent"),
        (with(&[("ce-subject", "%C0%A0")]), "", "the header ce-subject is not UTF-8 after percent-decoding"),
        (
            with(&[("content-type", "application/json")]),
            "nope",
            "the body is not valid JSON: expected ident at line 1 column 2",
        ),
    ] {
        let reply = send(&ingest, &headers, body).await;
        assert_eq!((reply.status, reply.json()["detail"].as_str()), (400, Some(detail)));
    }
    ingest.finish().await;
}

/// HTTP binding 3.2 and 3.3, JSON format 3 and 4.
#[tokio::test]
async fn structured_and_batched_mode_hold_the_specification_against_each_event() {
    let ingest = TestIngest::start(settings()).await;
    let (structured, batched) =
        ("application/cloudevents+json; charset=UTF-8", "Application/CloudEvents-Batch+JSON");
    let event = format!("{},\"data\" : [ 1.50 ] }}", &EXAMPLE[..EXAMPLE.len() - 1]);
    assert_eq!(send_as(&ingest, structured, event).await.status, 202);
    let stored = &ingest.stored(1).await[0];
    let before = r#""specversion":"1.0","id":"A-1","source":"/mycontext","type":"com.example.someevent""#;
    assert_eq!(
        str::from_utf8(&stored.value).unwrap(),
        envelope(&ingest, stored, before, r#","data":[ 1.50 ]"#)
    );

    // 3.2.3: headers may repeat the attributes, the payload counts.
    let headers = [("content-type", structured), ("ce-specversion", "1.0"), ("ce-id", "header")];
    assert_eq!(send(&ingest, &headers, EXAMPLE).await.json()["ids"], json!(["A-1"]));

    let reply = send_as(&ingest, batched, format!("[{EXAMPLE},{{\"type\":\"a\"}}]")).await;
    assert_eq!((reply.status, statuses(&reply)), (207, vec![202, 400]));
    assert_eq!(reply.json()["results"][1]["problem"]["detail"], "attribute \"specversion\" is required");
    // 4.3: an empty batch is valid in a request.
    let reply = send_as(&ingest, batched, "[]").await;
    assert_eq!((reply.status, reply.json()), (202, json!({"accepted": 0, "ids": []})));

    for (content_type, body, status) in [
        (structured, format!("[{EXAMPLE}]"), 400),
        (batched, EXAMPLE.to_owned(), 400),
        (structured, r#"{"type":"a"}"#.to_owned(), 400),
        ("application/cloudevents+avro", EXAMPLE.to_owned(), 415),
        ("application/cloudevents+json; charset=utf-16", EXAMPLE.to_owned(), 415),
    ] {
        let reply = send_as(&ingest, content_type, body).await;
        assert_eq!((reply.status, reply.is_problem()), (status, true), "{content_type}");
    }
    ingest.stored(3).await;
    ingest.finish().await;
}

#[tokio::test]
async fn arbitrary_bodies_in_every_format_never_get_a_5xx() {
    let ingest = TestIngest::start(settings()).await;
    let formats: [&[(&str, &str)]; 6] = [
        &[("content-type", "application/x-ndjson")],
        &[("content-type", "application/cloudevents+json")],
        &[("content-type", "application/cloudevents-batch+json")],
        &[
            ("content-type", "application/json"),
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-type", "t"),
            ("ce-source", "s"),
        ],
        &[("content-type", "application/json"), ("content-encoding", "gzip")],
        &[("content-type", "application/json"), ("content-encoding", "zstd")],
    ];
    let magic: [&[u8]; 3] = [b"", &[0x1F, 0x8B, 8, 0], &[0x28, 0xB5, 0x2F, 0xFD]];
    for n in 0..120_usize {
        let tail = (0..rand::random_range(0..60)).map(|_| rand::random::<u8>());
        let body: Vec<u8> = magic[n % 3].iter().copied().chain(tail).collect();
        let reply = send(&ingest, formats[n % 6], body.clone()).await;
        assert!(reply.status < 500, "{}: {:?}: {body:?}", reply.status, formats[n % 6]);
        assert!(reply.status < 300 || reply.json()["status"] != Value::Null);
    }
    ingest.finish().await;
}
