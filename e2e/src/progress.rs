//! What dispatchers have committed, looked at again and again from outside, as any member of their groups would read it.

use crate::pipeline::Pipeline;
use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use floodway_runtime::clock;
use rdkafka::{
    ClientConfig, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer},
};
use std::{collections::HashMap, thread::JoinHandle, time::Duration};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Pause between two looks: about as long as between two commits.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Longest wait for an answer of Kafka.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Topics that dispatchers consume under load, with the names of their groups.
const CONSUMED: [(&str, &str); 2] = [("events", "dispatcher"), ("due", "dispatcher-due")];

/// A partition of a topic, which is named without its prefix.
pub type Place = (&'static str, i32);

/// What was committed of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Everything from here on is open.
    high: i64,
    /// What is open below.
    open: Vec<i64>,
}

/// One look.
#[derive(Debug, Clone)]
pub struct Look {
    /// When it began.
    pub began: String,
    /// When it ended.
    pub ended: String,
    /// What was committed.
    pub committed: HashMap<Place, Committed>,
    /// One more than the last offset.
    pub ends: HashMap<Place, i64>,
}

/// Looks until it is asked for what it saw.
#[derive(Debug)]
pub struct Watch {
    thread: JoinHandle<Vec<Look>>,
    stop: DropGuard,
}

/// The present instant as text, which sorts as time does and has the form of the times in logs.
pub fn now() -> String {
    clock::now().to_rfc3339()
}

impl Committed {
    /// Reads a commit: the offset and, in its metadata, what is settled above it.
    fn decode(offset: i64, metadata: &str) -> Result<Self> {
        let encoded = metadata.rsplit(':').next().context("no metadata")?;
        let bytes = STANDARD_NO_PAD.decode(encoded)?;
        let mut numbers = varints(&bytes).into_iter();
        let Some(length) = numbers.next() else { return Ok(Self { high: offset, open: Vec::new() }) };
        let mut open = vec![offset];
        for distance in numbers {
            open.push(open[open.len() - 1] + distance);
        }
        Ok(Self { high: offset + length, open })
    }

    /// Whether the record at `offset` is known to be settled.
    pub fn covers(&self, offset: i64) -> bool {
        offset < self.high && !self.open.contains(&offset)
    }
}

/// Little-endian numbers of base 128.
fn varints(bytes: &[u8]) -> Vec<i64> {
    let (mut numbers, mut number, mut shift) = (Vec::new(), 0, 0);
    for byte in bytes {
        number |= i64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            numbers.push(number);
            (number, shift) = (0, 0);
        }
    }
    numbers
}

impl Watch {
    /// Begins to look at the progress of a pipeline's dispatchers.
    ///
    /// # Errors
    /// When there is no client or no thread to be had.
    pub fn start(pipeline: &Pipeline) -> Result<Self> {
        let mut readers = Vec::new();
        for (topic, group) in CONSUMED {
            let consumer: BaseConsumer = ClientConfig::new()
                .set("bootstrap.servers", &pipeline.stack.brokers)
                .set("group.id", pipeline.topic(group))
                .create()?;
            readers.push(Reader { topic, name: pipeline.topic(topic), consumer });
        }
        let token = CancellationToken::new();
        let stop = token.clone().drop_guard();
        let thread = std::thread::Builder::new().name("progress".to_owned()).spawn(move || {
            let mut looks = Vec::new();
            while !token.is_cancelled() {
                // What fails is left out: that Kafka is away for a while is part of some tests.
                looks.extend(Look::take(&readers));
                std::thread::sleep(LOOK_EVERY);
            }
            looks
        })?;
        Ok(Self { thread, stop })
    }

    /// Ends looking, and returns what was seen.
    ///
    /// # Errors
    /// When the thread panicked.
    pub async fn stop(self) -> Result<Vec<Look>> {
        drop(self.stop);
        let thread = self.thread;
        tokio::task::spawn_blocking(move || thread.join()).await?.ok().context("the thread panicked")
    }
}

/// Reads the progress of one topic.
struct Reader {
    topic: &'static str,
    name: String,
    consumer: BaseConsumer,
}

impl Look {
    fn take(readers: &[Reader]) -> Result<Self> {
        let mut look =
            Self { began: now(), ended: String::new(), committed: HashMap::new(), ends: HashMap::new() };
        for Reader { topic, name, consumer } in readers {
            let metadata = consumer.fetch_metadata(Some(name), REQUEST_TIMEOUT)?;
            let mut asked = TopicPartitionList::new();
            for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
                asked.add_partition(name, partition.id());
                let (_, end) = consumer.fetch_watermarks(name, partition.id(), REQUEST_TIMEOUT)?;
                look.ends.insert((topic, partition.id()), end);
            }
            for element in consumer.committed_offsets(asked, REQUEST_TIMEOUT)?.elements() {
                if let Offset::Offset(offset) = element.offset() {
                    let committed = Committed::decode(offset, element.metadata())?;
                    look.committed.insert((topic, element.partition()), committed);
                }
            }
        }
        look.ended = now();
        Ok(look)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_says_what_is_settled_above_its_offset() {
        let nothing_open = Committed::decode(7, "v1:00000000-0000-0000-0000-000000000000:").unwrap();
        assert_eq!((nothing_open.covers(6), nothing_open.covers(7)), (true, false));
        // 300 records from the offset on, of which the first and the one 200 later are open.
        let encoded = STANDARD_NO_PAD.encode([0xac, 0x02, 0xc8, 0x01]);
        let committed = Committed::decode(1_000, &format!("v1:run:{encoded}")).unwrap();
        assert_eq!(committed, Committed { high: 1_300, open: vec![1_000, 1_200] });
        assert!(committed.covers(999) && committed.covers(1_199) && committed.covers(1_299));
        assert!(!committed.covers(1_000) && !committed.covers(1_200) && !committed.covers(1_300));
    }
}
