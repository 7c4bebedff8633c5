//! What arrives on `due`, seen from a thread of its own.

use super::rows::due_in;
use crate::bench::{
    BenchError,
    figures::{Figure, Unit},
};
use rdkafka::{
    ClientConfig, Message, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

/// Longest wait of a look.
const PAUSE: Duration = Duration::from_millis(50);
/// What retries of a burst say instead of when they are due, so that they are told apart.
pub(super) const BURST_MS: u64 = 1_000_000_000_000;
/// Arrivals that are kept: more than a scenario has.
const MOST: usize = 4_000_000;

/// The watching thread.
pub(super) struct Arrivals {
    burst: Arc<AtomicU64>,
    stop: mpsc::Sender<()>,
    thread: JoinHandle<Seen>,
}

/// A retry that says when it was due, in milliseconds since 1970.
#[derive(Debug, Clone, Copy)]
struct Arrival {
    due: u64,
    /// The record's timestamp: when the scheduler produced it.
    written: u64,
    /// When it was read.
    read: u64,
}

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    arrivals: Vec<Arrival>,
    /// Those that say [`BURST_MS`]: how many, when the first and the last were written.
    pub(super) burst: u64,
    /// See above, in milliseconds.
    pub(super) burst_span: Option<(u64, u64)>,
    /// Of these, how many came behind one with a higher id of their shard.
    pub(super) out_of_order: u64,
    highest: HashMap<i32, i64>,
}

/// How late some retries were, in milliseconds, sorted.
pub(super) struct Lateness {
    written: Vec<u64>,
    read: Vec<u64>,
    /// Produced before their time.
    pub(super) early: u64,
}

impl Arrivals {
    /// Begins to look.
    pub(super) fn watch(brokers: &str, prefix: &str, partitions: i32) -> Result<Self, BenchError> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("client.id", "floodway-bench")
            .set("group.id", "floodway-bench-due")
            .set("enable.auto.commit", "false")
            .set("fetch.wait.max.ms", "10")
            .create()?;
        let mut assignment = TopicPartitionList::new();
        for partition in 0..partitions {
            assignment.add_partition_offset(&format!("{prefix}due"), partition, Offset::Beginning)?;
        }
        consumer.assign(&assignment)?;
        let burst = Arc::new(AtomicU64::new(0));
        let (counted, (stop, stopped)) = (Arc::clone(&burst), mpsc::channel());
        let thread = std::thread::Builder::new().name("arrivals".into()).spawn(move || {
            let mut seen = Seen::default();
            while let Err(mpsc::TryRecvError::Empty) = stopped.try_recv() {
                let Some(Ok(record)) = consumer.poll(PAUSE) else { continue };
                let value = record.payload().unwrap_or_default();
                let written = record.timestamp().to_millis().and_then(|ms| u64::try_from(ms).ok());
                seen.note(record.partition(), value, written.unwrap_or(0));
                counted.store(seen.burst, Relaxed);
            }
            seen
        })?;
        Ok(Self { burst, stop, thread })
    }

    /// Retries of the burst so far.
    pub(super) fn burst(&self) -> u64 {
        self.burst.load(Relaxed)
    }

    /// Ends, and tells what was seen.
    pub(super) fn stop(self) -> Result<Seen, BenchError> {
        // A thread that is gone needs no word.
        let _ = self.stop.send(());
        let gone =
            |_| BenchError::Command { command: "reading `due`".to_owned(), reason: "it panicked".to_owned() };
        self.thread.join().map_err(gone)
    }
}

impl Seen {
    fn note(&mut self, partition: i32, value: &[u8], written: u64) {
        match due_in(value) {
            None => {}
            Some(BURST_MS) => {
                self.burst += 1;
                self.burst_span = Some((self.burst_span.map_or(written, |(first, _)| first), written));
                let id = id_in(value).unwrap_or(i64::MIN);
                let highest = self.highest.entry(partition).or_insert(i64::MIN);
                self.out_of_order += u64::from(id < *highest);
                *highest = id.max(*highest);
            }
            Some(due) if self.arrivals.len() < MOST => {
                self.arrivals.push(Arrival { due, written, read: now_ms() });
            }
            Some(_) => {}
        }
    }

    /// Lateness of those that were due in a span of time.
    pub(super) fn lateness(&self, due: Range<u64>) -> Lateness {
        let of = || self.arrivals.iter().filter(|arrival| due.contains(&arrival.due));
        let sorted = |late: fn(&Arrival) -> u64| {
            let mut late: Vec<u64> = of().map(late).collect();
            late.sort_unstable();
            late
        };
        Lateness {
            written: sorted(|arrival| arrival.written.saturating_sub(arrival.due)),
            read: sorted(|arrival| arrival.read.saturating_sub(arrival.due)),
            early: of().filter(|arrival| arrival.written < arrival.due).count() as u64,
        }
    }
}

impl Lateness {
    /// How many there were.
    pub(super) fn number(&self) -> u64 {
        self.written.len() as u64
    }

    /// By records' timestamps: what this share of the retries was late by at most.
    pub(super) fn at_due(&self, name: &str, share: f64) -> Figure {
        Figure::new(name, Unit::Micros, quantile(&self.written, share))
    }

    /// The same when they were read.
    pub(super) fn at_consumer(&self, name: &str, share: f64) -> Figure {
        Figure::new(name, Unit::Micros, quantile(&self.read, share))
    }
}

/// In microseconds.
fn quantile(sorted_ms: &[u64], share: f64) -> f64 {
    let last = sorted_ms.len().saturating_sub(1);
    sorted_ms.get((last as f64 * share).ceil() as usize).map_or(0.0, |&ms| ms as f64 * 1_000.0)
}

/// The id in a record's retry key, `<shard>-<id>`.
fn id_in(value: &[u8]) -> Option<i64> {
    const KEY: &[u8] = b"\"retry_key\":\"";
    let rest = &value[memchr::memmem::find(value, KEY)? + KEY.len()..];
    let text = std::str::from_utf8(&rest[..memchr::memchr(b'"', rest)?]).ok()?;
    text.split_once('-')?.1.parse().ok()
}

/// This machine's clock, which the server's is, too.
#[expect(
    clippy::disallowed_methods,
    reason = "lateness is by the clock of records, and nothing is decided by it"
)]
pub(super) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lateness_is_of_those_that_were_due_in_the_span_and_a_burst_has_an_order() {
        let mut seen = Seen::default();
        for (due, written) in [(1_000, 1_005), (2_000, 2_100), (9_000, 9_900), (2_500, 2_499)] {
            seen.note(0, format!("{{\"duems\":{due:013}}}").as_bytes(), written);
        }
        for (id, written) in [(4, 50), (6, 51), (5, 53)] {
            let value = format!("{{\"origin\":{{\"retry_key\":\"3-{id}\"}},\"duems\":{BURST_MS}}}");
            seen.note(1, value.as_bytes(), written);
        }
        let late = seen.lateness(1_000..3_000);
        assert_eq!((late.number(), late.early), (3, 1));
        assert_eq!(late.at_due("x", 1.0).values, [100_000.0]);
        assert_eq!((seen.burst, seen.burst_span, seen.out_of_order), (3, Some((50, 53)), 1));
    }
}
