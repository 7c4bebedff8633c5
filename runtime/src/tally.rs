//! Metrics of hot paths: threads count apart, and a scrape adds them up.
//!
//! The process's recorder keeps each counter in two words that all threads write, and each histogram as a list of every value
//! with its time, allocated in blocks, until upkeep sorts it into buckets. That is fine for what happens now and then. What
//! every request touches is counted here, in cache lines that threads rarely share and in buckets from the start. The
//! handles are those of the `metrics` crate, so callers cannot tell; docs/decisions/013 has the measurements.

use metrics::{Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn};
use std::{
    fmt::Write,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

/// Places that threads count in: more than the threads that count on most machines. Those beyond share one, which costs time
/// and no counts.
const STRIPES: usize = 32;
/// Most bounds of a histogram.
const MAX_BOUNDS: usize = 22;
/// Bounds of durations, in seconds: from enqueueing one event to the longest wait.
const SECONDS: [f64; 19] = [
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0,
    2.5, 5.0, 15.0, 60.0,
];
/// Bounds of counts, such as the size of a batch.
pub(crate) const COUNTS: [f64; 9] = [1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0, 16384.0, 65536.0];
/// Bounds of sizes, in bytes: from one small event to the largest request.
pub(crate) const BYTES: [f64; 10] = [
    256.0,
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
];
const _: () = assert!(SECONDS.len() <= MAX_BOUNDS && BYTES.len() <= MAX_BOUNDS);

/// A label's name and value, both known in advance.
pub type Label = (&'static str, &'static str);

/// What a histogram measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Seconds, summed in microseconds.
    Seconds,
    /// Whole numbers.
    Count,
    /// Bytes.
    Bytes,
}

impl Measure {
    fn bounds(self) -> &'static [f64] {
        match self {
            Self::Seconds => &SECONDS,
            Self::Count => &COUNTS,
            Self::Bytes => &BYTES,
        }
    }

    /// Parts of the unit that sums are kept in.
    fn parts(self) -> f64 {
        if self == Self::Seconds { 1e6 } else { 1.0 }
    }
}

/// A counter of the process.
pub fn counter(name: &'static str, label: Option<Label>, help: &'static str) -> Counter {
    let made = || Metric::Counter(Arc::default());
    match register(name, label, help, made) {
        Metric::Counter(counts) => Counter::from_arc(counts),
        _ => Counter::noop(),
    }
}

/// A gauge of the process that goes up and down by whole numbers.
pub fn gauge(name: &'static str, label: Option<Label>, help: &'static str) -> Gauge {
    let made = || Metric::Gauge(Arc::default());
    match register(name, label, help, made) {
        Metric::Gauge(counts) => Gauge::from_arc(counts),
        _ => Gauge::noop(),
    }
}

/// A histogram of the process.
pub fn histogram(
    name: &'static str,
    label: Option<Label>,
    help: &'static str,
    measure: Measure,
) -> Histogram {
    let made = || Metric::Histogram(Arc::new(Buckets::new(measure)));
    match register(name, label, help, made) {
        Metric::Histogram(buckets) => Histogram::from_arc(buckets),
        _ => Histogram::noop(),
    }
}

/// Every metric made here, as Prometheus reads it.
pub fn render() -> String {
    let mut entries: Vec<_> = registry().iter().map(Entry::clone).collect();
    // The samples of one name belong together.
    entries.sort_by_key(|entry| (entry.name, entry.label));
    let mut text = String::new();
    let mut last = "";
    for entry in &entries {
        if entry.name != last {
            let kind = entry.metric.kind();
            // Writing to memory cannot fail.
            let _ = write!(text, "# HELP {0} {1}\n# TYPE {0} {kind}\n", entry.name, entry.help);
            last = entry.name;
        }
        entry.write_samples(&mut text);
    }
    text
}

/// All metrics made so far: as many as there are names and labels in the code.
static REGISTRY: Mutex<Vec<Entry>> = Mutex::new(Vec::new());
/// Stripes that are some thread's own, as bits.
static TAKEN: AtomicU32 = AtomicU32::new(1 << SHARED);
/// The stripe of threads that got none of their own.
const SHARED: usize = 0;

thread_local! {
    static STRIPE: Stripe = Stripe::take();
}

/// A stripe that only one thread writes, so without the cost of an atomic addition; given back when the thread ends.
struct Stripe(usize);

impl Stripe {
    fn take() -> Self {
        // Acquire: what the stripe's last thread wrote is built upon.
        let taken = TAKEN.fetch_update(Ordering::Acquire, Ordering::Relaxed, |taken| {
            let free = taken.trailing_ones();
            (free < STRIPES as u32).then(|| taken | (1 << free))
        });
        Self(taken.map_or(SHARED, |taken| taken.trailing_ones() as usize))
    }
}

impl Drop for Stripe {
    fn drop(&mut self) {
        if self.0 != SHARED {
            TAKEN.fetch_and(!(1 << self.0), Ordering::Release);
        }
    }
}

/// This thread's stripe. A thread that is ending has lost its own.
fn stripe() -> usize {
    STRIPE.try_with(|stripe| stripe.0).unwrap_or(SHARED)
}

/// Adds to a word of this thread's stripe.
fn add(word: &AtomicU64, stripe: usize, count: u64) {
    if stripe == SHARED {
        word.fetch_add(count, Ordering::Relaxed);
    } else {
        word.store(word.load(Ordering::Relaxed).wrapping_add(count), Ordering::Relaxed);
    }
}

fn registry() -> std::sync::MutexGuard<'static, Vec<Entry>> {
    // The list is whole after each push.
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The metric of this name and label, made if there is none: in tests several servers share a process.
fn register(
    name: &'static str,
    label: Option<Label>,
    help: &'static str,
    made: impl FnOnce() -> Metric,
) -> Metric {
    let mut registry = registry();
    if let Some(known) = registry.iter().find(|entry| entry.name == name && entry.label == label) {
        return known.metric.clone();
    }
    let metric = made();
    registry.push(Entry { name, label, help, metric: metric.clone() });
    metric
}

#[derive(Debug, Clone)]
struct Entry {
    name: &'static str,
    label: Option<Label>,
    help: &'static str,
    metric: Metric,
}

#[derive(Debug, Clone)]
enum Metric {
    Counter(Arc<Counts>),
    Gauge(Arc<Counts>),
    Histogram(Arc<Buckets>),
}

impl Metric {
    fn kind(&self) -> &'static str {
        match self {
            Self::Counter(_) => "counter",
            Self::Gauge(_) => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

impl Entry {
    fn write_samples(&self, text: &mut String) {
        let name = self.name;
        let label = self.label.map_or(String::new(), |(key, value)| format!("{key}=\"{value}\""));
        let braces = if label.is_empty() { String::new() } else { format!("{{{label}}}") };
        let _ = match &self.metric {
            Metric::Counter(counts) => writeln!(text, "{name}{braces} {}", counts.sum()),
            // Decrements are kept as wrapped additions.
            Metric::Gauge(counts) => writeln!(text, "{name}{braces} {}", counts.sum().cast_signed()),
            Metric::Histogram(buckets) => {
                let separator = if label.is_empty() { "" } else { "," };
                let (counts, sum) = buckets.sums();
                let bounds = buckets.measure.bounds();
                let mut total = 0;
                for (index, count) in counts.iter().take(bounds.len() + 1).enumerate() {
                    total += count;
                    let _ = match bounds.get(index) {
                        Some(bound) => {
                            writeln!(text, "{name}_bucket{{{label}{separator}le=\"{bound}\"}} {total}")
                        }
                        None => writeln!(text, "{name}_bucket{{{label}{separator}le=\"+Inf\"}} {total}"),
                    };
                }
                writeln!(text, "{name}_sum{braces} {sum}\n{name}_count{braces} {total}")
            }
        };
    }
}

/// One word per stripe, in cache lines of their own (two, for processors that fetch them in pairs).
#[derive(Debug, Default)]
struct Counts([Word; STRIPES]);

#[derive(Debug, Default)]
#[repr(align(128))]
struct Word(AtomicU64);

impl Counts {
    fn add(&self, count: u64) {
        let stripe = stripe();
        add(&self.0[stripe].0, stripe, count);
    }

    fn sum(&self) -> u64 {
        self.0.iter().fold(0, |sum, word| sum.wrapping_add(word.0.load(Ordering::Relaxed)))
    }
}

impl CounterFn for Counts {
    fn increment(&self, value: u64) {
        self.add(value);
    }

    fn absolute(&self, value: u64) {
        self.add(value.saturating_sub(self.sum()));
    }
}

impl GaugeFn for Counts {
    fn increment(&self, value: f64) {
        self.add(value as u64);
    }

    fn decrement(&self, value: f64) {
        self.add((value as u64).wrapping_neg());
    }

    fn set(&self, value: f64) {
        self.add((value as u64).wrapping_sub(self.sum()));
    }
}

/// A histogram's buckets per stripe.
#[derive(Debug)]
struct Buckets {
    measure: Measure,
    stripes: [BucketStripe; STRIPES],
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct BucketStripe {
    sum: AtomicU64,
    counts: [AtomicU64; MAX_BOUNDS + 1],
}

impl HistogramFn for Buckets {
    fn record(&self, value: f64) {
        let bounds = self.measure.bounds();
        let bucket = bounds.iter().position(|bound| value <= *bound).unwrap_or(bounds.len());
        let index = stripe();
        let stripe = &self.stripes[index];
        add(&stripe.counts[bucket], index, 1);
        // Nothing measured is negative.
        add(&stripe.sum, index, (value * self.measure.parts()).round() as u64);
    }
}

impl Buckets {
    fn new(measure: Measure) -> Self {
        Self { measure, stripes: Default::default() }
    }

    /// Counts per bucket, and the sum in the measure's unit.
    fn sums(&self) -> ([u64; MAX_BOUNDS + 1], f64) {
        let mut counts = [0; MAX_BOUNDS + 1];
        let mut sum = 0_u64;
        for stripe in &self.stripes {
            for (total, count) in counts.iter_mut().zip(&stripe.counts) {
                *total += count.load(Ordering::Relaxed);
            }
            sum = sum.wrapping_add(stripe.sum.load(Ordering::Relaxed));
        }
        (counts, sum as f64 / self.measure.parts())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(name: &str) -> Vec<String> {
        render().lines().filter(|line| line.contains(name)).map(str::to_owned).collect()
    }

    #[test]
    fn threads_count_apart_and_a_scrape_adds_them_up() {
        let counted = counter("tally_test_total", Some(("status", "202")), "Answers");
        let open = gauge("tally_test_open", None, "Open");
        std::thread::scope(|scope| {
            for _ in 0..40 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        counted.increment(2);
                        open.increment(3.0);
                        open.decrement(2.0);
                    }
                });
            }
        });
        // A second handle is the same metric.
        counter("tally_test_total", Some(("status", "202")), "Answers").increment(1);
        counter("tally_test_total", Some(("status", "400")), "Answers").increment(5);
        // Taken on one thread and given back on another.
        open.decrement(4001.0);
        assert_eq!(
            lines("tally_test_total"),
            [
                "# HELP tally_test_total Answers",
                "# TYPE tally_test_total counter",
                "tally_test_total{status=\"202\"} 8001",
                "tally_test_total{status=\"400\"} 5",
            ]
        );
        assert_eq!(lines("tally_test_open").last().unwrap(), "tally_test_open -1");
    }

    #[test]
    fn a_histogram_has_cumulative_buckets_a_sum_and_a_count() {
        let seconds = histogram("tally_test_seconds", None, "Time", Measure::Seconds);
        for value in [0.00001, 0.0005, 0.003, 70.0] {
            seconds.record(value);
        }
        let lines = lines("tally_test_seconds");
        let value = |le: &str| {
            let start = format!("tally_test_seconds_bucket{{le=\"{le}\"}} ");
            lines.iter().find_map(|line| line.strip_prefix(&start)).unwrap().to_owned()
        };
        assert_eq!(
            ["0.00005", "0.0005", "0.002", "0.004", "60", "+Inf"].map(value),
            ["1", "2", "2", "3", "3", "4"]
        );
        assert!(lines.contains(&"tally_test_seconds_sum 70.00351".to_owned()), "{lines:?}");
        assert!(lines.contains(&"tally_test_seconds_count 4".to_owned()));

        let bytes = histogram("tally_test_bytes", Some(("stage", "sent")), "Size", Measure::Bytes);
        bytes.record(256.0);
        let text = render();
        assert!(text.contains("tally_test_bytes_bucket{stage=\"sent\",le=\"256\"} 1\n"));
        assert!(text.contains("tally_test_bytes_sum{stage=\"sent\"} 256\n"));
    }
}
