//! What is refused, with which answer.

use crate::harness::{Reply, TestIngest, configure, eventually, settings};
use bytes::Bytes;
use floodway_ingest::Settings;
use floodway_schemas::{
    api_key,
    config::{ApiKeyState, ConfigChange, TenantState},
};
use http::{Method, Request};
use http_body_util::Full;
use rand::RngExt;
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const GOOD: &str = r#"{"type":"a"}"#;

fn problem(name: &str, title: &str, status: u16, detail: &str) -> Value {
    json!({"type": format!("urn:floodway:problem:{name}"), "title": title, "status": status, "detail": detail})
}

fn check(reply: &Reply, expected: &Value) {
    assert_eq!(reply.json(), *expected);
    assert_eq!(u64::from(reply.status), expected["status"].as_u64().unwrap());
    assert!(reply.is_problem());
}

#[tokio::test]
async fn every_bad_key_is_answered_alike() {
    let ingest = TestIngest::start(settings()).await;
    let (wrong_secret, _) = api_key::compose("test", ingest.sender.record.id, &[1; 32]).unwrap();
    let unknown = ingest.sender.key.replace(
        &ingest.sender.record.id.0.as_simple().to_string(),
        &uuid::Uuid::now_v7().as_simple().to_string(),
    );
    let expected = problem(
        "unauthorized",
        "Unauthorized",
        401,
        "send a valid API key as \"Authorization: Bearer <key>\"",
    );
    for credentials in [
        None,
        Some(String::new()),
        Some("Bearer".to_owned()),
        Some("Bearer nonsense".to_owned()),
        Some(format!("Basic {}", ingest.sender.key)),
        Some(format!("Bearer {unknown}")),
        Some(format!("Bearer {}", wrong_secret.expose_secret())),
    ] {
        let mut request = ingest.request().body(Full::new(Bytes::from(GOOD))).unwrap();
        request.headers_mut().remove("authorization");
        if let Some(credentials) = credentials {
            request.headers_mut().insert("authorization", credentials.parse().unwrap());
        }
        let reply = ingest.send(request).await;
        check(&reply, &expected);
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
    }
    ingest.finish().await;
}

#[tokio::test]
async fn paths_methods_and_content_types_are_checked() {
    let ingest = TestIngest::start(settings()).await;
    let send = async |method: Method, path: &str, content_type: &str, encoding: &str| {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "ingest")
            .header("authorization", format!("Bearer {}", ingest.sender.key))
            .header("content-type", content_type)
            .header("content-encoding", encoding);
        ingest.send(request.body(Full::new(Bytes::from(GOOD))).unwrap()).await
    };
    let json = "application/json";
    let not_found = problem("not-found", "Not found", 404, "events are sent to POST /v1/events");
    for path in ["/", "/v1/events/", "/v1/tenants"] {
        check(&send(Method::POST, path, json, "identity").await, &not_found);
    }
    let not_allowed = problem("method-not-allowed", "Method not allowed", 405, "events are sent with POST");
    for method in [Method::GET, Method::PUT, Method::OPTIONS] {
        let reply = send(method, "/v1/events", json, "identity").await;
        check(&reply, &not_allowed);
        assert_eq!(reply.header("allow"), Some("POST"));
    }
    let head = send(Method::HEAD, "/v1/events", json, "identity").await;
    assert_eq!((head.status, head.header("allow"), head.body.len()), (405, Some("POST"), 0));

    let unsupported = problem(
        "unsupported-media-type",
        "Unsupported media type",
        415,
        "the content type must be application/json, application/x-ndjson, application/cloudevents+json or \
         application/cloudevents-batch+json; with the header ce-specversion it may be any",
    );
    let mut other_charset = unsupported.clone();
    other_charset["detail"] = "JSON must be in UTF-8".into();
    let accepted = "application/json, application/x-ndjson, application/cloudevents+json, application/cloudevents-batch+json";
    for (content_type, expected) in
        [("text/plain", &unsupported), ("application/json; charset=utf-16", &other_charset)]
    {
        let reply = send(Method::POST, "/v1/events", content_type, "identity").await;
        check(&reply, expected);
        assert_eq!(reply.header("accept-post"), Some(accepted));
    }
    let encoded = problem(
        "unsupported-content-coding",
        "Unsupported content coding",
        415,
        "the body may be compressed once, with gzip or zstd",
    );
    for encoding in ["br", "gzip, gzip"] {
        let reply = send(Method::POST, "/v1/events", json, encoding).await;
        check(&reply, &encoded);
        assert_eq!(reply.header("accept-encoding"), Some("gzip, zstd"));
    }
    ingest.finish().await;
}

#[tokio::test]
async fn malformed_and_empty_bodies_are_one_400() {
    let ingest = TestIngest::start(settings()).await;
    let malformed = |detail: &str| problem("malformed-body", "Malformed body", 400, detail);
    check(&ingest.post("").await, &malformed("the body is empty"));
    check(&ingest.post("7").await, &malformed("the body must be an event object or an array of them"));
    check(&ingest.post(r#"[{"type":"a"},"#).await, &malformed("not valid JSON: the array is not closed"));
    check(
        &ingest.post("[]").await,
        &problem("empty-batch", "Empty batch", 400, "a batch must have at least one event"),
    );
    ingest.finish().await;
}

#[tokio::test]
async fn when_every_event_fails_the_worst_status_is_the_answer() {
    let ingest = TestIngest::start(settings()).await;
    let invalid = problem("invalid-event", "Invalid event", 400, "attribute \"type\" is required");
    let mut one = invalid.clone();
    one["results"] = json!([{"index": 0, "status": 400, "problem": invalid}]);
    check(&ingest.post(r#"{"id":"1"}"#).await, &one);

    // An event with its envelope over the limit, around data that is within it.
    let large = format!(r#"{{"type":"a","id":"big","data":"{}"}}"#, "x".repeat(1024 * 1024 - 60));
    let reply = ingest.post(format!("[{{}},{large}]")).await;
    let body = reply.json();
    assert_eq!((reply.status, body["status"].as_u64()), (413, Some(413)));
    assert_eq!(body["type"], "urn:floodway:problem:event-too-large");
    assert_eq!(body["detail"], "none of the 2 events was accepted, see \"results\"");
    assert_eq!(body["results"][0], json!({"index": 0, "status": 400, "problem": invalid}));
    assert_eq!((&body["results"][1]["id"], &body["results"][1]["status"]), (&json!("big"), &json!(413)));
    let detail = body["results"][1]["problem"]["detail"].as_str().unwrap();
    assert!(detail.ends_with("bytes with its attributes, the limit is 1048576"), "{detail}");

    // It fails alone beside a good one.
    let reply = ingest.post(format!("[{large},{GOOD}]")).await;
    let statuses: Vec<_> =
        reply.json()["results"].as_array().unwrap().iter().map(|r| r["status"].clone()).collect();
    assert_eq!((reply.status, statuses), (207, vec![json!(413), json!(202)]));
    ingest.stored(1).await;
    ingest.finish().await;
}

#[tokio::test]
async fn limits_on_bodies_and_batches_are_named() {
    let ingest =
        TestIngest::start(Settings { max_body_bytes: 2 * 1024 * 1024, max_batch_events: 3, ..settings() })
            .await;
    let detail = "a request body may have at most 2097152 bytes";
    // Without `Expect` a client that sends all of a large body may see the connection close before it reads the answer.
    let stream = tokio::net::TcpStream::connect(ingest.address).await.unwrap();
    let head = format!(
        "POST /v1/events HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: 2097153\r\nexpect: 100-continue\r\n\r\n",
        ingest.sender.key
    );
    let answer = crate::limiting::exchange(stream, head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains(detail), "{answer}");

    let reply = ingest.post(format!("[{GOOD},{GOOD},{GOOD},{GOOD}]")).await;
    check(&reply, &problem("batch-too-large", "Batch too large", 413, "a batch may have at most 3 events"));
    ingest.finish().await;
}

#[tokio::test]
async fn a_revoked_key_and_a_suspended_tenant_are_refused_once_the_change_arrives() {
    let ingest = TestIngest::start(settings()).await;
    assert_eq!(ingest.post(GOOD).await.status, 202);

    let mut tenant = ingest.sender.tenant.clone();
    (tenant.version, tenant.state) = (2, TenantState::Suspended);
    configure(&ingest.topics.kafka, &[ConfigChange::Tenant(tenant)]);
    let reply = until_not_202(&ingest).await;
    check(
        &reply,
        &problem("tenant-suspended", "Tenant suspended", 403, "the tenant of this API key is suspended"),
    );

    let mut record = ingest.sender.record.clone();
    (record.version, record.state) = (2, ApiKeyState::Revoked);
    configure(&ingest.topics.kafka, &[ConfigChange::ApiKey(record)]);
    let mut status = 403;
    while status == 403 {
        status = ingest.post(GOOD).await.status;
    }
    assert_eq!(status, 401);
    ingest.finish().await;
}

#[tokio::test]
async fn a_refused_request_leaves_its_connection_usable() {
    let ingest = TestIngest::start(settings()).await;
    let stream = tokio::net::TcpStream::connect(ingest.address).await.unwrap();
    let request = |key: &str, body: &str, last: &str| {
        format!(
            "POST /v1/events HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n\
             {last}content-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    // More than the system's and the server's buffers would hide.
    let large = format!(r#"{{"type":"a","data":"{}"}}"#, "x".repeat(200_000));
    let both = request("nonsense", &large, "") + &request(&ingest.sender.key, GOOD, "connection: close\r\n");
    let answers = crate::limiting::exchange(stream, both.as_bytes()).await;
    assert!(answers.starts_with("HTTP/1.1 401 "), "{answers}");
    assert!(answers.contains("HTTP/1.1 202 "), "{answers}");
    ingest.finish().await;
}

async fn until_not_202(ingest: &TestIngest) -> Reply {
    loop {
        let reply = ingest.post(GOOD).await;
        if reply.status != 202 {
            return reply;
        }
    }
}

#[tokio::test]
async fn arbitrary_bodies_never_get_a_5xx() {
    let ingest = TestIngest::start(settings()).await;
    let alphabet: Vec<char> = "[]{}\",:a1 \\typeid\u{0}é".chars().collect();
    let bodies: Vec<Vec<u8>> = {
        let mut random = rand::rng();
        let any = |random: &mut rand::rngs::ThreadRng| {
            (0..random.random_range(0..60)).map(|_| random.random()).collect()
        };
        let near = |random: &mut rand::rngs::ThreadRng| {
            let text: String = (0..random.random_range(0..60))
                .map(|_| alphabet[random.random_range(0..alphabet.len())])
                .collect();
            text.into_bytes()
        };
        (0..100).flat_map(|_| [any(&mut random), near(&mut random)]).collect()
    };
    for body in bodies {
        let reply = ingest.post(body.clone()).await;
        assert!(reply.status < 500, "{}: {:?}", reply.status, body);
    }
    eventually("still ready", || ingest.context.health.is_ready()).await;
    ingest.finish().await;
}

#[tokio::test]
async fn an_early_refusal_of_a_large_body_is_read_to_its_end() {
    let ingest = TestIngest::start(settings()).await;
    let key = ingest.sender.key.clone();
    let cases = [
        ("nonsense", "application/json", "", "401"),
        (&key, "text/plain", "", "415"),
        (&key, "application/json", "content-encoding: br\r\n", "415"),
    ];
    for (key, content_type, more, status) in cases {
        let mut stream = tokio::net::TcpStream::connect(ingest.address).await.unwrap();
        let head = format!(
            "POST /v1/events HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\ncontent-type: {content_type}\r\n\
             {more}connection: close\r\ncontent-length: 2000000\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // Far more than buffers on the way would hide; a server that closes early fails the writing as well.
        stream.write_all(&vec![b'x'; 2_000_000]).await.unwrap();
        let mut answer = String::new();
        // A reset would be an error here.
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    ingest.finish().await;
}
