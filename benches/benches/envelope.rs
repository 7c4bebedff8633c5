//! The envelope on the hot path: a producer's JSON in, the record for Kafka out, and the dispatcher's reading of it.
#![allow(missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use floodway_benches::{defaults, sample_event};
use floodway_schemas::event::{Event, EventInput};
use std::hint::black_box;

/// Size of the events of the published figures, in bytes.
const EVENT_BYTES: usize = 500;

fn envelope(c: &mut Criterion) {
    let input = sample_event(1, EVENT_BYTES);
    let mut record = Vec::new();
    let mut group = c.benchmark_group("envelope");
    group.throughput(Throughput::Elements(1));
    group.bench_function("parse", |b| b.iter(|| EventInput::parse(black_box(input.as_bytes()))));
    group.bench_function("parse, complete and encode", |b| {
        b.iter(|| {
            record.clear();
            if let Ok(event) = EventInput::parse(black_box(input.as_bytes())) {
                event.complete(defaults()).encode(&mut record);
            }
        });
    });
    group.bench_function("decode", |b| b.iter(|| Event::decode(black_box(&record)).is_ok()));
    group.bench_function("webhook-id", |b| {
        b.iter(|| {
            floodway_schemas::event::message_id(
                floodway_benches::TENANT,
                black_box("source"),
                black_box("id"),
            )
        })
    });
    group.finish();
}

criterion_group!(benches, envelope);
criterion_main!(benches);
