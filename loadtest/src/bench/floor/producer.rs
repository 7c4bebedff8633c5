//! The floor of Kafka: a producer with ingest's settings that writes records of ingest's, sampled from its topic. It
//! is driven as ingest is: so many requests at a time, each of so many records, the next one sent when the last record of
//! the one before is acknowledged.

use crate::bench::{
    BenchError,
    process::{Recording, Sampler, Subject, Usage, Watched},
    topics::{Sample, Topics},
};
use rdkafka::{
    ClientConfig, ClientContext,
    error::KafkaError,
    message::{DeliveryResult, Header, OwnedHeaders},
    producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer},
    types::RDKafkaErrorCode,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// Records that are sampled, and written again and again.
const SAMPLES: usize = 4096;
/// Longest wait for what is in flight at the end.
const FLUSH: Duration = Duration::from_secs(10);
/// Pause before a record is offered again to a full queue.
const FULL_PAUSE: Duration = Duration::from_millis(1);
/// Longest wait for an acknowledgement before the run counts as failed: beyond the time after which the client gives
/// up on a record.
const ANSWER_PATIENCE: Duration = Duration::from_secs(30);

/// What the floor does.
#[derive(Debug, Clone)]
pub struct ProducerFloor {
    /// `host:port`, separated by commas.
    pub brokers: String,
    /// Topic of ingest whose records are written again.
    pub sample: String,
    /// Topic they are written to.
    pub topic: String,
    /// Records of one request.
    pub events_per_request: usize,
    /// Requests at a time.
    pub requests: usize,
    /// Time at the start that no figure contains.
    pub warmup: Duration,
    /// Time measured.
    pub time: Duration,
    /// Processes of Kafka, to read what they use.
    pub brokers_pids: Vec<u32>,
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ProducerFigures {
    /// Seconds measured.
    pub seconds: f64,
    /// Records acknowledged in them.
    pub acknowledged: u64,
    /// Records that failed, in the whole run.
    pub failed: u64,
    /// Bytes of key and value of one record, on average.
    pub record_bytes: f64,
    /// What this process used.
    pub usage: Usage,
    /// What Kafka used, if its processes are known.
    pub broker: Option<Usage>,
    /// Share of the machine's CPU time that was used.
    pub machine_busy: f64,
}

impl ProducerFloor {
    /// Runs; blocks.
    ///
    /// # Errors
    /// When Kafka does not answer.
    pub fn run(&self, stop: &CancellationToken) -> Result<ProducerFigures, BenchError> {
        let samples = mixed(Topics::new(&self.brokers)?.sample(&self.sample, SAMPLES)?);
        let (acknowledged, answers) = mpsc::sync_channel(self.requests.max(1));
        let reports = Reports::default();
        let counts = Arc::clone(&reports.counts);
        let producer: ThreadedProducer<Reports> = settings(&self.brokers).create_with_context(reports)?;
        let brokers = self.brokers_pids.iter().map(|&pid| Watched { subject: Subject::Broker, pid });
        let this = Watched { subject: Subject::Server, pid: std::process::id() };
        let sampler = Sampler::start(brokers.chain([this]).collect(), None)?;

        let begun = Instant::now();
        let mut loops = Loop { floor: self, producer: &producer, samples: &samples, next: 0, acknowledged };
        for _ in 0..self.requests {
            loops.send_request()?;
        }
        let mut from = (begun, 0);
        let until = loop {
            let now = Instant::now();
            if from.0 == begun && now >= begun + self.warmup {
                from = (now, counts.acknowledged.load(Relaxed));
            }
            if now >= begun + self.warmup + self.time || stop.is_cancelled() {
                break (now, counts.acknowledged.load(Relaxed));
            }
            let lost =
                |_| BenchError::Topic { topic: self.topic.clone(), reason: "no acknowledgement".to_owned() };
            answers.recv_timeout(ANSWER_PATIENCE).map_err(lost)?;
            loops.send_request()?;
        };
        let recording = sampler.stop();
        // Reports must find their channel, whose room is that of all requests.
        producer.flush(FLUSH)?;
        Ok(figures(&recording, &samples, from, until, &counts))
    }
}

/// Records of all partitions in turn, as the events of a request are; they were read partition by partition.
fn mixed(samples: Vec<Sample>) -> Vec<Sample> {
    let mut seen: HashMap<i32, usize> = HashMap::new();
    let mut places: Vec<(usize, Sample)> = samples
        .into_iter()
        .map(|sample| {
            let place = seen.entry(sample.partition).or_default();
            *place += 1;
            (*place, sample)
        })
        .collect();
    places.sort_by_key(|(place, sample)| (*place, sample.partition));
    places.into_iter().map(|(_, sample)| sample).collect()
}

fn figures(
    recording: &Recording,
    samples: &[Sample],
    from: (Instant, u64),
    until: (Instant, u64),
    counts: &Counts,
) -> ProducerFigures {
    let bytes: usize = samples.iter().map(|sample| sample.key.len() + sample.value.len()).sum();
    ProducerFigures {
        seconds: (until.0 - from.0).as_secs_f64(),
        acknowledged: until.1 - from.1,
        failed: counts.failed.load(Relaxed),
        record_bytes: bytes as f64 / samples.len().max(1) as f64,
        usage: recording.usage(Subject::Server, from.0, until.0).unwrap_or_default(),
        broker: recording.usage(Subject::Broker, from.0, until.0),
        machine_busy: recording.machine_busy(from.0, until.0),
    }
}

/// As ingest's producer with its defaults: see `runtime/src/kafka.rs` and `ingest/src/publish.rs`. They are repeated because
/// what measures Floodway depends on none of its crates; a test holds them against those sources. What differs is in
/// `docs/benchmarks/README.md`.
fn settings(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("client.id", "floodway-floor")
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "2000")
        .set("socket.keepalive.enable", "true")
        .set("allow.auto.create.topics", "false")
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "1")
        .set("compression.type", "lz4")
        .set("partitioner", "murmur2_random")
        .set("message.timeout.ms", "10000")
        .set("queue.buffering.max.messages", "500000")
        .set("queue.buffering.max.kbytes", "524288");
    config
}

struct Loop<'a> {
    floor: &'a ProducerFloor,
    producer: &'a ThreadedProducer<Reports>,
    samples: &'a [Sample],
    next: usize,
    acknowledged: mpsc::SyncSender<()>,
}

impl Loop<'_> {
    fn send_request(&mut self) -> Result<(), BenchError> {
        let events = u32::try_from(self.floor.events_per_request).unwrap_or(u32::MAX);
        let request =
            Arc::new(Pending { left: AtomicU32::new(events), acknowledged: self.acknowledged.clone() });
        for _ in 0..events {
            let sample = &self.samples[self.next % self.samples.len()];
            self.next = self.next.wrapping_add(1);
            self.send(sample, Arc::clone(&request))?;
        }
        Ok(())
    }

    fn send(&self, sample: &Sample, request: Arc<Pending>) -> Result<(), BenchError> {
        let headers = sample
            .headers
            .iter()
            .fold(OwnedHeaders::new_with_capacity(sample.headers.len()), |headers, (key, value)| {
                headers.insert(Header { key, value: Some(value) })
            });
        let mut record = BaseRecord::with_opaque_to(&self.floor.topic, request)
            .partition(sample.partition)
            .key(&sample.key)
            .payload(&sample.value)
            .headers(headers);
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), refused)) => {
                    record = refused;
                    std::thread::sleep(FULL_PAUSE);
                }
                Err((error, _)) => return Err(error.into()),
            }
        }
    }
}

/// A request whose records are not all acknowledged.
struct Pending {
    left: AtomicU32,
    acknowledged: mpsc::SyncSender<()>,
}

#[derive(Debug, Default)]
struct Counts {
    acknowledged: AtomicU64,
    failed: AtomicU64,
}

#[derive(Default)]
struct Reports {
    counts: Arc<Counts>,
}

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = Arc<Pending>;

    fn delivery(&self, result: &DeliveryResult<'_>, request: Arc<Pending>) {
        let count = if result.is_ok() { &self.counts.acknowledged } else { &self.counts.failed };
        count.fetch_add(1, Relaxed);
        if request.left.fetch_sub(1, Relaxed) == 1 {
            // There is room for every request; without a reader the run is over.
            let _ = request.acknowledged.try_send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runtime's and ingest's settings whose values are written out there.
    fn written_out(source: &str, from: &str, until: &str) -> Vec<(String, String)> {
        let start = source.find(from).unwrap();
        let end = start + source[start..].find(until).unwrap();
        let calls = source[start..end].split(".set(\"").skip(1);
        calls
            .filter_map(|call| {
                let (name, rest) = call.split_once("\", \"")?;
                Some((name.to_owned(), rest.split_once("\")")?.0.to_owned()))
            })
            .filter(|(name, _)| !name.contains('"'))
            .collect()
    }

    #[test]
    fn the_floor_has_every_setting_that_the_services_producer_has_written_out() {
        let runtime = include_str!("../../../../runtime/src/kafka.rs");
        let expected = written_out(runtime, "pub fn client(", "pub fn consumer(");
        assert!(expected.len() >= 10, "{expected:?}");
        let floor = settings("127.0.0.1:1");
        // What they are told apart by in Kafka's logs.
        for (name, value) in expected.iter().filter(|(name, _)| name != "client.id") {
            assert_eq!(floor.get(name), Some(value.as_str()), "{name}");
        }
    }

    #[test]
    fn samples_take_turns_between_partitions() {
        let sample = |partition, value: u8| Sample {
            partition,
            key: Vec::new(),
            value: vec![value],
            headers: Vec::new(),
        };
        let samples = vec![sample(1, 1), sample(1, 2), sample(1, 3), sample(0, 4), sample(0, 5)];
        let order: Vec<(i32, u8)> = mixed(samples).iter().map(|s| (s.partition, s.value[0])).collect();
        assert_eq!(order, [(0, 4), (1, 1), (0, 5), (1, 2), (1, 3)]);
    }
}
