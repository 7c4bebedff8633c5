//! The benchmark's topics, from the operator's side: how much of them is kept, what lies in them, and their end.

use super::BenchError;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    admin::{
        AdminClient, AdminOptions, AlterConfig, ConfigSource, NewTopic, ResourceSpecifier, TopicReplication,
    },
    client::DefaultClientContext,
    consumer::{BaseConsumer, Consumer},
    message::{Headers, Message},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

/// Longest wait for Kafka to do what it is asked.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of one segment. Only whole segments are deleted, so they are small against what is kept.
const SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes that are kept of one partition when nobody is to read them.
const KEPT_PARTITION_BYTES: u64 = 2 * SEGMENT_BYTES;
/// Bytes read at a time when records are sampled.
const FETCH_BYTES: &str = "1048576";

/// Consumer groups of an installation, without its prefix.
const GROUPS: [&str; 5] =
    ["control-plane", "dispatcher", "dispatcher-due", "dispatcher-replays", "retry-scheduler"];

/// What happens to old records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// Deleted as soon as Kafka gets to it: only their being written is measured.
    Short,
    /// Kept, because they are read at the end.
    Whole,
}

/// One record, as a floor writes it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// The partition it was in.
    pub partition: i32,
    /// Its key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
    /// Its headers.
    pub headers: Vec<(String, Vec<u8>)>,
}

/// What administers the topics.
pub struct Topics {
    brokers: String,
    admin: AdminClient<DefaultClientContext>,
}

impl Topics {
    /// A client; Kafka is asked when something is to be done.
    ///
    /// # Errors
    /// When the client cannot be created.
    pub fn new(brokers: &str) -> Result<Self, BenchError> {
        Ok(Self { brokers: brokers.to_owned(), admin: client(brokers).create()? })
    }

    /// Creates a topic for a floor, with the settings of the events topic as far as they concern speed.
    ///
    /// # Errors
    /// When Kafka refuses.
    pub async fn create(&self, name: &str, partitions: i32) -> Result<(), BenchError> {
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        let results = self.admin.create_topics(&[topic], &options()).await?;
        for result in results {
            result.map_err(|(topic, code)| BenchError::Topic { topic, reason: code.to_string() })?;
        }
        self.keep(name, Retention::Short).await
    }

    /// Sets how much of a topic is kept.
    ///
    /// # Errors
    /// When Kafka refuses.
    pub async fn keep(&self, name: &str, retention: Retention) -> Result<(), BenchError> {
        let (bytes, time) = match retention {
            Retention::Short => (KEPT_PARTITION_BYTES.to_string(), None),
            Retention::Whole => ("-1".to_owned(), Some("-1")),
        };
        // This request replaces all of a topic's settings, so those it has are sent along.
        let topic = ResourceSpecifier::Topic(name);
        let refused = |code: &dyn std::fmt::Display| BenchError::Topic {
            topic: name.to_owned(),
            reason: code.to_string(),
        };
        let found = self.admin.describe_configs(&[topic], &options()).await?;
        let mut settings: Vec<(String, String)> = Vec::new();
        for resource in found {
            let resource = resource.map_err(|code| refused(&code))?;
            let own = resource.entries.into_iter().filter(|entry| entry.source == ConfigSource::DynamicTopic);
            settings.extend(own.filter_map(|entry| Some((entry.name, entry.value?))));
        }
        let wanted = [
            ("retention.bytes", Some(bytes.as_str())),
            ("retention.ms", time),
            ("segment.bytes", Some(&SEGMENT_BYTES.to_string())),
            // A deleted segment takes room until its file is gone.
            ("file.delete.delay.ms", Some("1000")),
        ];
        let mut request = AlterConfig::new(topic);
        for (name, value) in &settings {
            if wanted.iter().all(|(other, value)| other != name || value.is_none()) {
                request = request.set(name, value);
            }
        }
        for (name, value) in wanted {
            if let Some(value) = value {
                request = request.set(name, value);
            }
        }
        for result in self.admin.alter_configs(&[request], &options()).await? {
            result.map_err(|(_, code)| refused(&code))?;
        }
        Ok(())
    }

    /// Deletes a topic; one that is not there is fine.
    ///
    /// # Errors
    /// When Kafka refuses.
    pub async fn delete(&self, names: &[&str]) -> Result<(), BenchError> {
        if names.is_empty() {
            return Ok(());
        }
        for result in self.admin.delete_topics(names, &options()).await? {
            match result {
                Ok(_) | Err((_, rdkafka::types::RDKafkaErrorCode::UnknownTopicOrPartition)) => {}
                Err((topic, code)) => return Err(BenchError::Topic { topic, reason: code.to_string() }),
            }
        }
        Ok(())
    }

    /// Deletes every topic, and the consumer groups, of an installation.
    ///
    /// # Errors
    /// When Kafka refuses.
    pub async fn delete_installation(&self, prefix: &str) -> Result<(), BenchError> {
        // Blocks, but only at the very end of an installation.
        let metadata = self.admin.inner().fetch_metadata(None, PATIENCE)?;
        let names: Vec<&str> = metadata
            .topics()
            .iter()
            .map(|topic| topic.name())
            .filter(|name| name.starts_with(prefix))
            .collect();
        self.delete(&names).await?;
        // A group without members disturbs nobody; Kafka forgets it in time.
        for group in GROUPS {
            let _ = self.admin.delete_groups(&[&format!("{prefix}{group}")], &options()).await;
        }
        Ok(())
    }

    /// The last `count` records or so of a topic, evenly from its partitions. Blocks: call it on a thread of its own.
    ///
    /// # Errors
    /// When Kafka does not answer in time, or the topic is empty.
    pub fn sample(&self, topic: &str, count: usize) -> Result<Vec<Sample>, BenchError> {
        let consumer: BaseConsumer = client(&self.brokers)
            .set("group.id", "floodway-bench-sample")
            .set("enable.auto.commit", "false")
            .set("fetch.message.max.bytes", FETCH_BYTES)
            .create()?;
        let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
        let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
        let mut assignment = TopicPartitionList::new();
        let mut available = 0usize;
        for partition in 0..i32::try_from(partitions).unwrap_or(i32::MAX) {
            let (low, high) = consumer.fetch_watermarks(topic, partition, PATIENCE)?;
            let wanted = i64::try_from(count.div_ceil(partitions)).unwrap_or(i64::MAX);
            let first = low.max(high - wanted);
            if first < high {
                assignment.add_partition_offset(topic, partition, Offset::Offset(first))?;
                available += usize::try_from(high - first).unwrap_or(0);
            }
        }
        consumer.assign(&assignment)?;
        let deadline = Instant::now() + PATIENCE;
        let mut samples = Vec::with_capacity(available);
        while samples.len() < available.min(count) && Instant::now() < deadline {
            let Some(message) = consumer.poll(Duration::from_millis(200)) else { continue };
            samples.push(Sample::of(&message?));
        }
        if samples.is_empty() {
            return Err(BenchError::Topic {
                topic: topic.to_owned(),
                reason: "it has no records".to_owned(),
            });
        }
        Ok(samples)
    }
}

/// Pause between two looks at a topic that grows.
const GROWTH_PAUSE: Duration = Duration::from_millis(200);

/// How a topic grows, seen from a thread of its own.
pub struct Growth {
    added: Arc<AtomicU64>,
    stop: mpsc::Sender<()>,
    thread: thread::JoinHandle<Grown>,
}

/// How many records a topic had got at which moments.
#[derive(Debug, Default)]
pub struct Grown(Vec<(Instant, u64)>);

impl Growth {
    /// Begins to look. Blocks for as long as one look takes.
    ///
    /// # Errors
    /// When Kafka does not answer.
    pub fn watch(brokers: &str, topic: &str) -> Result<Self, BenchError> {
        let consumer: BaseConsumer = client(brokers).set("group.id", "floodway-bench-growth").create()?;
        let topic = topic.to_owned();
        let before = end(&consumer, &topic)?;
        let (added, (stop, stopped)) = (Arc::new(AtomicU64::new(0)), mpsc::channel());
        let seen = Arc::clone(&added);
        let thread = thread::Builder::new().name("growth".into()).spawn(move || {
            let mut grown = Grown(vec![(Instant::now(), 0)]);
            while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(GROWTH_PAUSE) {
                // A look that fails is made again after the pause.
                if let Ok(now) = end(&consumer, &topic) {
                    seen.store(now - before, Relaxed);
                    grown.0.push((Instant::now(), now - before));
                }
            }
            grown
        })?;
        Ok(Self { added, stop, thread })
    }

    /// Records since the beginning.
    pub fn added(&self) -> u64 {
        self.added.load(Relaxed)
    }

    /// Ends, and tells what was seen.
    pub fn stop(self) -> Grown {
        // A thread that is gone needs no word.
        let _ = self.stop.send(());
        self.thread.join().unwrap_or_default()
    }
}

/// Records of all partitions together.
fn end(consumer: &BaseConsumer, topic: &str) -> Result<u64, BenchError> {
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
    let partitions = metadata.topics().first().map_or(0, |topic| topic.partitions().len());
    let mut sum = 0;
    for partition in 0..i32::try_from(partitions).unwrap_or(i32::MAX) {
        let (_, end) = consumer.fetch_watermarks(topic, partition, PATIENCE)?;
        sum += u64::try_from(end).unwrap_or(0);
    }
    Ok(sum)
}

impl Grown {
    /// Records per second between two shares of `whole`; `None` if it did not get there, or in one step.
    pub fn rate(&self, (from, until): (f64, f64), whole: f64) -> Option<f64> {
        let reached = |share: f64| self.0.iter().find(|(_, added)| *added as f64 >= share * whole);
        // The last look before the first share was reached: growth has begun by then.
        let first = self.0.iter().rfind(|(_, added)| (*added as f64) < from * whole)?;
        let last = reached(until)?;
        let seconds = (last.0 - first.0).as_secs_f64();
        (seconds > 0.0).then(|| (last.1 - first.1) as f64 / seconds)
    }
}

impl Sample {
    fn of(message: &rdkafka::message::BorrowedMessage<'_>) -> Self {
        let headers = message.headers().map(|headers| {
            headers.iter().map(|h| (h.key.to_owned(), h.value.unwrap_or_default().to_vec())).collect()
        });
        Self {
            partition: message.partition(),
            key: message.key().unwrap_or_default().to_vec(),
            value: message.payload().unwrap_or_default().to_vec(),
            headers: headers.unwrap_or_default(),
        }
    }
}

fn client(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("client.id", "floodway-bench");
    config
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(PATIENCE)).operation_timeout(Some(PATIENCE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_over_the_part_between_two_shares() {
        let begin = Instant::now();
        let at = |second, added| (begin + Duration::from_secs(second), added);
        let grown = Grown(vec![at(0, 0), at(5, 0), at(6, 40), at(7, 96), at(9, 100)]);
        // From 0 at the fifth second to 96 at the seventh.
        assert!((grown.rate((0.05, 0.95), 100.0).unwrap() - 48.0).abs() < 1e-9);
        assert_eq!(grown.rate((0.05, 0.95), 1000.0), None);
        assert_eq!(Grown::default().rate((0.05, 0.95), 10.0), None);
    }
}
