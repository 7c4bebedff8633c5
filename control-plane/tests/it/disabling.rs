use crate::world::{World, eventually};
use floodway_runtime::clock;
use floodway_schemas::{
    UnixMillis,
    ids::RunId,
    outcome::{Cause, DeadReason, KIND_HEADER, OUTCOME_VERSION, Outcome, OutcomeKind, Via},
    topic::Topic,
};
use rdkafka::{
    message::{Header, OwnedHeaders},
    producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer},
};
use serde_json::value::RawValue;
use std::time::Duration;

/// Writes an outcome as the dispatcher does, all to one partition, so that they are read in this order.
pub(crate) async fn emit(world: &World, tenant: &str, subscription: &str, kind: OutcomeKind, at: UnixMillis) {
    let event = RawValue::from_string("{}".to_owned()).unwrap();
    let outcome = Outcome {
        v: OUTCOME_VERSION,
        cause: Cause::Event { run: RunId(Default::default()), partition: 0, offset: 0 },
        kind,
        tenant: tenant.parse().unwrap(),
        subscription: subscription.parse().unwrap(),
        event_id: "e".into(),
        event_type: "order.created".into(),
        key: "e".into(),
        attempt: 1,
        since: at,
        at,
        not_before: None,
        reason: Some(DeadReason::EndpointGone),
        status: Some(410),
        error: None,
        via: Via::Main,
        detail: None,
        duration_ms: Some(1),
        response: None,
        exchange: None,
        record: false,
        batch: None,
        event: Some(&event),
    };
    let (value, key) = (outcome.encode().unwrap(), outcome.record_key());
    let (kafka, topic) = (world.topics.kafka.clone(), world.topics.kafka.topic(Topic::Outcomes));
    tokio::task::spawn_blocking(move || {
        let producer: ThreadedProducer<DefaultProducerContext> = kafka.producer().create().unwrap();
        let header = Header { key: KIND_HEADER, value: Some(kind.as_str()) };
        let record = BaseRecord::to(&topic)
            .partition(0)
            .key(&key)
            .payload(&value)
            .headers(OwnedHeaders::new().insert(header));
        producer.send(record).map_err(|(error, _)| error).unwrap();
        producer.flush(Duration::from_secs(30)).unwrap();
    })
    .await
    .unwrap();
}

async fn state(world: &World, path: &str) -> String {
    world.plane.get(path).await.text("state")
}

#[tokio::test]
async fn a_410_disables_its_subscription_and_publishes_that() {
    let world = World::start().await;
    let tenant = world.tenant().await;
    let (gone, healthy) = (world.subscription(&tenant).await, world.subscription(&tenant).await);
    emit(&world, &tenant, &healthy, OutcomeKind::Dead, clock::now()).await;
    emit(&world, &tenant, &gone, OutcomeKind::Disable, clock::now().plus(Duration::from_secs(1))).await;
    let path = format!("/v1/tenants/{tenant}/subscriptions");
    eventually("disabled", || async { state(&world, &format!("{path}/{gone}")).await == "disabled" }).await;
    assert_eq!(state(&world, &format!("{path}/{healthy}")).await, "active");
    eventually("published", || async {
        let records = world.config_records().await;
        let last = records.last().unwrap();
        last.key.ends_with(&gone)
            && String::from_utf8_lossy(last.value.as_deref().unwrap()).contains("\"disabled\"")
    })
    .await;
    world.end().await;
}

#[tokio::test]
async fn outcomes_older_than_the_last_change_and_of_unknown_subscriptions_are_passed_over() {
    let world = World::start().await;
    let tenant = world.tenant().await;
    let (renewed, gone) = (world.subscription(&tenant).await, world.subscription(&tenant).await);
    let unknown = "01938f2e-0000-7000-8000-000000000001";
    emit(&world, &tenant, &renewed, OutcomeKind::Disable, UnixMillis(1_000)).await;
    emit(&world, &tenant, unknown, OutcomeKind::Disable, clock::now()).await;
    // Once this one took effect, those before it were read.
    let path = format!("/v1/tenants/{tenant}/subscriptions");
    emit(&world, &tenant, &gone, OutcomeKind::Disable, clock::now().plus(Duration::from_secs(1))).await;
    eventually("disabled", || async { state(&world, &format!("{path}/{gone}")).await == "disabled" }).await;
    assert_eq!(state(&world, &format!("{path}/{renewed}")).await, "active");
    world.end().await;
}
