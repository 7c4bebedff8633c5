//! What is accepted, and how it is stored.

use crate::harness::{PARTITIONS, PATIENCE, Stored, TestIngest, settings};
use bytes::Bytes;
use floodway_schemas::{
    event::{Defaults, Event, EventInput},
    topic::Topic,
};
use http_body_util::Full;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::json;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

const ORDER: &str = r#" {"id":"o-\"1\"","source":"/shop","type":"order.created","partitionkey":"c-9","region":"eu",
    "data": { "b" :1.0e2,
 "a":"\u00e9", "a":null } } "#;

/// What the record of `sent` must be, given the one thing that the test cannot know.
fn expected(ingest: &TestIngest, sent: &str, stored: &Stored) -> Vec<u8> {
    let received_at = Event::decode(&stored.value).unwrap().received_at;
    let source = ingest.sender.record.id.to_string();
    let defaults = Defaults { tenant: ingest.sender.tenant.id, id: "", source: &source, received_at };
    let mut value = Vec::new();
    EventInput::parse(sent.as_bytes()).unwrap().complete(defaults).encode(&mut value);
    value
}

#[tokio::test]
async fn an_event_is_stored_byte_for_byte_under_its_key_before_the_202() {
    let ingest = TestIngest::start(settings()).await;
    let reply = ingest.post(ORDER).await;
    assert_eq!((reply.status, reply.body.as_ref()), (202, br#"{"accepted":1,"ids":["o-\"1\""]}"#.as_slice()));
    assert_eq!(reply.header("content-type"), Some("application/json"));

    let stored = &ingest.stored(1).await[0];
    assert_eq!(stored.key, format!("{}/c-9", ingest.sender.tenant.id));
    assert_eq!(stored.headers, [("content-type".to_owned(), b"application/cloudevents+json".to_vec())]);
    assert_eq!(stored.value, expected(&ingest, ORDER, stored));
    let data = "{ \"b\" :1.0e2,\n \"a\":\"\\u00e9\", \"a\":null }";
    assert_eq!(&*Event::decode(&stored.value).unwrap().body(), data.as_bytes());
    ingest.finish().await;
}

#[tokio::test]
async fn what_a_producer_leaves_out_is_filled_in() {
    let ingest = TestIngest::start(settings()).await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let request =
        ingest.request().header("traceparent", trace).body(Full::new(Bytes::from(r#"{"type":"a"}"#)));
    let reply = ingest.send(request.unwrap()).await;
    assert_eq!(reply.status, 202);
    let id = reply.json()["ids"][0].as_str().unwrap().to_owned();
    assert_eq!(id.parse::<uuid::Uuid>().unwrap().get_version_num(), 7);

    let stored = &ingest.stored(1).await[0];
    let event = Event::decode(&stored.value).unwrap();
    assert_eq!(stored.key, format!("{}/{id}", ingest.sender.tenant.id));
    assert_eq!(event.id, id);
    assert_eq!(event.source, ingest.sender.record.id.to_string());
    assert_eq!(event.traceparent.as_deref(), Some(trace));
    ingest.finish().await;
}

#[tokio::test]
async fn an_events_own_trace_context_wins_and_a_malformed_header_is_left_alone() {
    let ingest = TestIngest::start(settings()).await;
    let own = r#"[{"type":"a","id":"1","traceparent":"own"},{"type":"a","id":"2"}]"#;
    let request = ingest.request().header("traceparent", "nonsense").body(Full::new(Bytes::from(own)));
    assert_eq!(ingest.send(request.unwrap()).await.status, 202);
    for stored in ingest.stored(2).await {
        let event = Event::decode(&stored.value).unwrap();
        assert_eq!(event.traceparent.as_deref(), (event.id == "1").then_some("own"));
    }
    ingest.finish().await;
}

#[tokio::test]
async fn a_batch_of_1000_is_answered_in_input_order_and_stored_once() {
    let ingest = TestIngest::start(settings()).await;
    let events: Vec<_> = (0..1000)
        .map(|n| {
            if n % 2 == 0 {
                json!({"type": "a", "id": format!("e-{n}"), "data": n})
            } else {
                json!({"type": "a", "data": n})
            }
        })
        .collect();
    let reply = ingest.post(serde_json::to_vec(&events).unwrap()).await;
    assert_eq!((reply.status, reply.json()["accepted"].as_u64()), (202, Some(1000)));
    let ids: Vec<String> = serde_json::from_value(reply.json()["ids"].clone()).unwrap();
    assert!(ids.iter().step_by(2).enumerate().all(|(n, id)| *id == format!("e-{}", n * 2)));
    assert!(ids.iter().skip(1).step_by(2).is_sorted());

    let stored = ingest.stored(1000).await;
    let by_id: HashMap<String, String> = stored
        .iter()
        .map(|record| {
            let event = Event::decode(&record.value).unwrap();
            (event.id.to_string(), String::from_utf8(event.body().to_vec()).unwrap())
        })
        .collect();
    for (n, id) in ids.iter().enumerate() {
        assert_eq!(by_id[id], n.to_string());
    }
    ingest.finish().await;
}

#[tokio::test]
async fn equal_keys_meet_in_the_partition_that_kafkas_own_partitioner_chooses() {
    let ingest = TestIngest::start(settings()).await;
    let events: Vec<_> = (0..30)
        .map(|n| json!({"type": "a", "id": n.to_string(), "partitionkey": format!("k{}", n % 10)}))
        .collect();
    assert_eq!(ingest.post(serde_json::to_vec(&events).unwrap()).await.status, 202);
    let ours: HashMap<String, i32> =
        ingest.stored(30).await.into_iter().map(|r| (r.key, r.partition)).collect();
    assert_eq!(ours.len(), 10);
    assert!(ours.values().all(|partition| (0..PARTITIONS).contains(partition)));

    let theirs = partitions_chosen_by_librdkafka(&ingest, ours.keys().cloned().collect());
    assert_eq!(ours, theirs);
    ingest.finish().await;
}

/// Notes where each record went.
#[derive(Clone, Default)]
struct Landings(Arc<Mutex<HashMap<String, i32>>>);

impl rdkafka::ClientContext for Landings {}

impl rdkafka::producer::ProducerContext for Landings {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &rdkafka::message::DeliveryResult<'_>, (): ()) {
        use rdkafka::Message;
        let record = result.as_ref().unwrap();
        let key = String::from_utf8(record.key().unwrap().to_vec()).unwrap();
        self.0.lock().unwrap().insert(key, record.partition());
    }
}

fn partitions_chosen_by_librdkafka(ingest: &TestIngest, keys: Vec<String>) -> HashMap<String, i32> {
    let landings = Landings::default();
    let producer: BaseProducer<Landings> =
        ingest.topics.kafka.producer().create_with_context(landings.clone()).unwrap();
    let topic = ingest.topics.kafka.topic(Topic::Events);
    for key in &keys {
        producer.send(BaseRecord::to(&topic).key(key).payload("{}")).map_err(|(error, _)| error).unwrap();
    }
    producer.flush(PATIENCE).unwrap();
    landings.0.lock().unwrap().clone()
}

#[tokio::test]
async fn a_mixed_batch_says_of_each_event_what_became_of_it() {
    let ingest = TestIngest::start(settings()).await;
    let body = r#"[{"type":"a","id":"1"},{"id":"2"},{"type":"a","id":"1","data":2},7,{"type":"a","id":"1","source":"other"}]"#;
    let reply = ingest.post(body).await;
    assert_eq!((reply.status, reply.header("content-type")), (207, Some("application/json")));
    let invalid = |detail: &str| json!({"type": "urn:floodway:problem:invalid-event", "title": "Invalid event", "status": 400, "detail": detail});
    assert_eq!(
        reply.json(),
        json!({"results": [
            {"index": 0, "id": "1", "status": 202},
            {"index": 1, "status": 400, "problem": invalid("attribute \"type\" is required")},
            {"index": 2, "id": "1", "status": 202, "duplicate_of": 0},
            {"index": 3, "status": 400, "problem": invalid("an event must be a JSON object")},
            {"index": 4, "id": "1", "status": 202},
        ]})
    );
    let stored = ingest.stored(2).await;
    assert!(stored.iter().all(|record| Event::decode(&record.value).unwrap().body().is_empty()));
    ingest.finish().await;
}

#[tokio::test]
async fn http2_with_prior_knowledge_is_served() {
    let ingest = TestIngest::start(settings()).await;
    let request = |n: usize| {
        ingest
            .request()
            .uri(format!("http://{}/v1/events", ingest.address))
            .body(Full::new(Bytes::from(format!(r#"{{"type":"a","id":"{n}"}}"#))))
            .unwrap()
    };
    let replies = ingest.send_http2((0..50).map(request).collect()).await;
    assert_eq!(replies.len(), 50);
    assert!(replies.iter().all(|reply| reply.status == 202));
    ingest.stored(50).await;
    ingest.finish().await;
}
