//! Cutting a batch into its events, and reading them: what a request costs before its events are published.
#![allow(missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use floodway_benches::sample_event;
use floodway_schemas::{array, event::EventInput};
use serde_json::value::RawValue;
use std::hint::black_box;

/// Size of the events of the published figures, in bytes.
const EVENT_BYTES: usize = 500;
/// Events of a batch of the published figures.
const EVENTS: usize = 100;

fn split(c: &mut Criterion) {
    let events: Vec<String> = (0..EVENTS).map(|index| sample_event(index, EVENT_BYTES)).collect();
    let batch = format!("[{}]", events.join(",")).into_bytes();
    let mut group = c.benchmark_group("split");
    group.throughput(Throughput::Elements(EVENTS as u64));
    group
        .bench_function("array::elements", |b| b.iter(|| array::elements(black_box(&batch), EVENTS).is_ok()));
    group.bench_function("serde_json raw values", |b| {
        b.iter(|| serde_json::from_slice::<Vec<&RawValue>>(black_box(&batch)).is_ok());
    });
    group.bench_function("EventInput::parse of each", |b| {
        b.iter(|| {
            black_box(&events).iter().filter(|event| EventInput::parse(event.as_bytes()).is_ok()).count()
        });
    });
    group.bench_function("array::elements and EventInput::parse", |b| {
        b.iter(|| {
            let events = array::elements(black_box(&batch), EVENTS).unwrap_or_default();
            events.into_iter().filter(|event| EventInput::parse(event).is_ok()).count()
        });
    });
    group.bench_function("serde_json raw values and EventInput::parse", |b| {
        b.iter(|| {
            let events: Vec<&RawValue> = serde_json::from_slice(black_box(&batch)).unwrap_or_default();
            events.into_iter().filter(|event| EventInput::parse(event.get().as_bytes()).is_ok()).count()
        });
    });
    group.finish();
}

criterion_group!(benches, split);
criterion_main!(benches);
