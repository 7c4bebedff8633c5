//! The outcome of a delivery: written by the dispatcher for every one, read by the scheduler.
#![allow(missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use floodway_benches::{TENANT, defaults, sample_event};
use floodway_schemas::{
    UnixMillis,
    event::EventInput,
    ids::{RunId, SubscriptionId},
    outcome::{Cause, ErrorClass, OUTCOME_VERSION, Outcome, OutcomeKind, Via},
};
use serde_json::value::RawValue;
use std::hint::black_box;

fn outcome<'a>(kind: OutcomeKind, event: Option<&'a RawValue>) -> Outcome<'a> {
    Outcome {
        v: OUTCOME_VERSION,
        cause: Cause::Event { run: RunId(uuid::Uuid::nil()), partition: 3, offset: 1_234_567 },
        kind,
        tenant: TENANT,
        subscription: SubscriptionId(uuid::Uuid::nil()),
        event_id: "order-1".into(),
        event_type: "order.created".into(),
        key: "customer-1".into(),
        attempt: 1,
        since: UnixMillis(1_795_275_240_123),
        at: UnixMillis(1_795_275_240_456),
        not_before: event.map(|_| UnixMillis(1_795_275_245_456)),
        reason: None,
        status: Some(200),
        error: event.map(|_| ErrorClass::Status),
        via: Via::Main,
        detail: None,
        duration_ms: Some(3),
        response: None,
        exchange: None,
        record: false,
        batch: None,
        event,
    }
}

fn outcomes(c: &mut Criterion) {
    let mut record = Vec::new();
    let input = sample_event(1, 500);
    if let Ok(event) = EventInput::parse(input.as_bytes()) {
        event.complete(defaults()).encode(&mut record);
    }
    let envelope: Option<&RawValue> = serde_json::from_slice(&record).ok();
    let retry = outcome(OutcomeKind::Retry, envelope);
    let delivered = outcome(OutcomeKind::Delivered, None);
    let retry_json = retry.encode().unwrap_or_default();
    let mut group = c.benchmark_group("outcome");
    group.throughput(Throughput::Elements(1));
    group.bench_function("encode delivered", |b| b.iter(|| black_box(&delivered).encode()));
    group.bench_function("encode retry", |b| b.iter(|| black_box(&retry).encode()));
    group.bench_function("decode retry", |b| b.iter(|| Outcome::decode(black_box(&retry_json)).is_ok()));
    group.finish();
}

criterion_group!(benches, outcomes);
criterion_main!(benches);
