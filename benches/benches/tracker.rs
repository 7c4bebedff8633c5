//! A partition's progress: what the dispatcher does for every record, and for every commit.
#![allow(missing_docs)]
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "the sources of the dispatcher as they are, of which the benchmark uses a part"
)]

#[path = "../../dispatcher/src/commit.rs"]
mod commit;
#[path = "../../dispatcher/src/tracker.rs"]
mod tracker;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use floodway_schemas::ids::RunId;
use std::hint::black_box;
use tracker::{Progress, Tracker};

const RUN: RunId = RunId(uuid::Uuid::nil());

/// A window of `length` records, of which every `nth` is unsettled.
fn window(length: i64, nth: i64) -> Tracker {
    let mut tracker = Tracker::new(Progress::starting_at(0));
    for offset in 0..length {
        tracker.receive(offset, u32::from(offset % nth == 0));
    }
    tracker
}

fn records(c: &mut Criterion) {
    let mut group = c.benchmark_group("tracker");
    group.throughput(Throughput::Elements(1));
    for length in [16, 4_096, 262_144] {
        // The oldest record is settled each time: the window keeps its length.
        let mut tracker = window(length, 1);
        let mut next = length;
        group.bench_function(format!("receive and complete in a window of {length}"), |b| {
            b.iter(|| {
                tracker.receive(next, 1);
                next += 1;
                tracker.complete(black_box(next - 1 - length))
            });
        });
    }
    group.bench_function("receive and complete in order", |b| {
        let mut tracker = Tracker::new(Progress::starting_at(0));
        let mut next = 0;
        b.iter(|| {
            tracker.receive(next, 1);
            next += 1;
            tracker.complete(black_box(next - 1))
        });
    });
    group.finish();
}

fn commits(c: &mut Criterion) {
    let mut group = c.benchmark_group("commit");
    for (length, open) in [(1_000, 10), (262_144, 1_000)] {
        let tracker = window(length, length / open);
        group.bench_function(format!("progress and metadata of {open} in {length}"), |b| {
            b.iter(|| commit::encode(RUN, &black_box(&tracker).progress_of(commit::MAX_OPEN)));
        });
        let (offset, metadata) = commit::encode(RUN, &tracker.progress_of(commit::MAX_OPEN));
        group.bench_function(format!("read metadata of {open}"), |b| {
            b.iter(|| commit::decode(offset, black_box(&metadata)));
        });
    }
    group.finish();
}

criterion_group!(benches, records, commits);
criterion_main!(benches);
