//! What a request pays for its metrics: with the process's recorder, and with the tallies of hot paths.
#![allow(
    missing_docs,
    clippy::disallowed_macros,
    clippy::unwrap_used,
    reason = "a benchmark: it compares the recorders, and a panic is its report"
)]

use criterion::{Criterion, criterion_group, criterion_main};
use floodway_runtime::tally::{self, Measure};
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use std::{
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

/// As many threads as ingest has workers on a small machine.
const THREADS: u64 = 2;
/// Values between two folds of the recorder's histograms: five seconds' worth of a busy process, as far as one round goes.
const FOLD_EVERY: u64 = 100_000;

/// What one accepted request touches.
#[derive(Clone)]
struct Handles {
    in_flight: Gauge,
    reading: Gauge,
    requests: Counter,
    events: Counter,
    durations: [Histogram; 3],
    sizes: [Histogram; 2],
}

impl Handles {
    fn request(&self) {
        self.in_flight.increment(1.0);
        self.reading.increment(500.0);
        self.sizes[0].record(500.0);
        self.sizes[1].record(1.0);
        for duration in &self.durations {
            duration.record(black_box(0.0031));
        }
        self.events.increment(1);
        self.requests.increment(1);
        self.reading.decrement(500.0);
        self.in_flight.decrement(1.0);
    }
}

/// Wall time per request of threads that do nothing else, folding included.
fn time(handles: &Handles, threads: u64, requests: u64, fold: impl Fn() + Sync) -> Duration {
    let started = Instant::now();
    thread::scope(|scope| {
        for index in 0..threads {
            let fold = &fold;
            scope.spawn(move || {
                for request in 0..requests {
                    handles.request();
                    if index == 0 && request % FOLD_EVERY == FOLD_EVERY - 1 {
                        fold();
                    }
                }
            });
        }
    });
    started.elapsed()
}

fn recorded() -> (Handles, PrometheusHandle) {
    let recorder = PrometheusBuilder::new()
        .set_buckets(&[0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0])
        .unwrap()
        .build_recorder();
    let handle = recorder.handle();
    let handles = metrics::with_local_recorder(&recorder, || Handles {
        in_flight: gauge!("in_flight"),
        reading: gauge!("reading"),
        requests: counter!("requests"),
        events: counter!("events"),
        durations: [histogram!("a"), histogram!("b"), histogram!("c")],
        sizes: [histogram!("d"), histogram!("e")],
    });
    (handles, handle)
}

fn tallied() -> Handles {
    let seconds = |name| tally::histogram(name, None, "", Measure::Seconds);
    Handles {
        in_flight: tally::gauge("in_flight", None, ""),
        reading: tally::gauge("reading", None, ""),
        requests: tally::counter("requests", None, ""),
        events: tally::counter("events", None, ""),
        durations: [seconds("a"), seconds("b"), seconds("c")],
        sizes: [
            tally::histogram("d", None, "", Measure::Bytes),
            tally::histogram("e", None, "", Measure::Count),
        ],
    }
}

fn metrics(criterion: &mut Criterion) {
    for threads in [1, THREADS] {
        let (handles, recorder) = recorded();
        criterion.bench_function(&format!("metrics/recorder/{threads}"), |bencher| {
            bencher.iter_custom(|requests| time(&handles, threads, requests, || recorder.run_upkeep()));
        });
        let handles = tallied();
        criterion.bench_function(&format!("metrics/tally/{threads}"), |bencher| {
            bencher.iter_custom(|requests| time(&handles, threads, requests, || ()));
        });
    }
    criterion.bench_function("metrics/clock", |bencher| bencher.iter(Instant::now));
}

criterion_group!(benches, metrics);
criterion_main!(benches);
