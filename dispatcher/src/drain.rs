//! Draining a partition's queue: the body of its thread.
//!
//! Backpressure is not draining: librdkafka stops fetching for a queue that nobody polls. `pause()` would throw away what was fetched.
//!
//! A queue that yields nothing may be one that the client has stopped filling. The thread then looks where the log ends, has its
//! position fetched again, and if that does not help, has the consumer built anew.

use crate::{
    backlog::{Backlog, Reading},
    intake::{Intake, is_fatal},
    ownership::Owner,
    partition::Partition,
    repeats::Repeats,
    route::Record,
};
use bytes::Bytes;
use floodway_runtime::stall::{Finding, StallWatch};
use floodway_schemas::UnixMillis;
use metrics::Counter;
use rdkafka::{
    Message, Offset,
    consumer::{BaseConsumer, Consumer, base_consumer::PartitionQueue},
    error::KafkaError,
    message::BorrowedMessage,
};
use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Longest wait for a record before the thread looks whether it is to end. There may be many such threads, each of which costs
/// something when it looks, and giving partitions up takes so long.
const POLL_WAIT: Duration = Duration::from_millis(500);
/// Records after which workers are told of them although more are at hand: their deliveries begin meanwhile.
const BURST: usize = 64;
/// Longest wait for room in a tracker's window before the thread looks whether it is to end.
const WINDOW_WAIT: Duration = Duration::from_millis(100);
/// Longest wait for an answer about the partition. Giving partitions up may take so long.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);

/// What a partition's thread works with.
pub(crate) struct Drain {
    /// The partition's records.
    pub(crate) queue: PartitionQueue<Owner>,
    /// The consumer that fills the queue.
    pub(crate) consumer: Arc<BaseConsumer<Owner>>,
    /// Where they are counted.
    pub(crate) partition: Arc<Partition>,
    /// Where they go.
    pub(crate) intake: Arc<Intake>,
    /// Set when the partition cannot be consumed with this consumer.
    pub(crate) broken: Arc<AtomicBool>,
    /// Counts times that the client had stopped fetching.
    pub(crate) stalls: Counter,
    /// Whether the client fetches.
    pub(crate) watch: StallWatch,
}

impl Drain {
    /// Hands the records of the partition to the router until the partition is given up.
    pub(crate) fn run(mut self) {
        let mut unsignalled = 0;
        let mut repeats = self.intake.repeats();
        let mut backlog = Backlog::default();
        while !self.partition.is_stopped() && self.intake.life.is_running() {
            if !self.has_room(&mut backlog) {
                self.watch.not_asked(Instant::now());
                continue;
            }
            let router = &self.intake.router;
            // Workers are told of what was at hand once, and before this thread waits for more.
            let at_hand = (unsignalled < BURST).then(|| self.queue.poll(Duration::ZERO)).flatten();
            let polled = at_hand.or_else(|| {
                if mem::take(&mut unsignalled) > 0 {
                    router.signal();
                }
                self.queue.poll(backlog.patience(POLL_WAIT))
            });
            unsignalled += 1;
            match polled {
                None => self.look(),
                Some(Ok(message)) => {
                    self.consumer.context().hear();
                    self.watch.read(message.offset());
                    self.take(&message, &mut repeats, &mut backlog);
                }
                Some(Err(KafkaError::PartitionEOF(_))) => {
                    self.consumer.context().hear();
                    self.watch.reached_end();
                }
                Some(Err(error)) if is_fatal(&error) => {
                    tracing::error!(topic = self.topic(), partition = self.partition.id(), %error, "a partition cannot be consumed");
                    self.broken.store(true, Ordering::Release);
                    return;
                }
                Some(Err(error)) => self.intake.health.suspect(self.intake.group, &error.to_string()),
            }
        }
        self.intake.router.leave(&self.partition, backlog);
    }

    /// Whether another record may be taken; waits a moment for it.
    fn has_room(&self, backlog: &mut Backlog) -> bool {
        let router = &self.intake.router;
        if let Reading::Pauses(pause) = router.work_off(backlog) {
            std::thread::sleep(pause);
            return false;
        }
        if !router.wait_for_room(self.intake.topic) {
            return false;
        }
        if !self.partition.wait_for_room(Duration::ZERO) {
            router.make_way();
            self.partition.wait_for_room(backlog.patience(WINDOW_WAIT));
            return false;
        }
        true
    }

    fn take(&self, message: &BorrowedMessage<'_>, repeats: &mut Repeats, backlog: &mut Backlog) {
        let record = Record {
            topic: self.intake.topic,
            offset: message.offset(),
            timestamp: UnixMillis(message.timestamp().to_millis().unwrap_or(0)),
            payload: Bytes::copy_from_slice(message.payload().unwrap_or_default()),
        };
        self.intake.router.accept(&self.partition, &record, repeats, backlog);
    }

    /// Nothing came: looks now and then whether there is nothing.
    fn look(&mut self) {
        if !self.watch.is_due(Instant::now()) {
            return;
        }
        let (topic, partition) = (self.consumer.context().topic_name(), self.partition.id());
        let bounds = self.consumer.fetch_watermarks(topic, partition, LOOK_TIMEOUT).ok();
        let finding = self.watch.look(bounds.map(|(_, end)| end), Instant::now());
        let from = self.watch.next();
        match finding {
            // A look without an answer says nothing: the partition may be without a leader, and the others of this consumer are not to
            // suffer for it. Whether the consumer finds a broker is asked on its own thread.
            Finding::ReadsOn | Finding::Blind => {}
            Finding::Stopped => {
                self.stalls.increment(1);
                let sought = self.consumer.seek(topic, partition, Offset::Offset(from), LOOK_TIMEOUT);
                tracing::warn!(
                    topic,
                    partition,
                    from,
                    ?sought,
                    "the client had stopped fetching a partition: fetched again"
                );
            }
            Finding::StoppedForGood => {
                tracing::error!(topic, partition, from, "the client does not fetch a partition: built anew");
                self.broken.store(true, Ordering::Release);
            }
        }
    }

    fn topic(&self) -> &'static str {
        self.intake.topic.base_name()
    }
}
