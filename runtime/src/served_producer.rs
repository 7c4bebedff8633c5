//! A producer whose delivery reports are served by a thread of its own, which sleeps while there are none.
//!
//! The client library's `ThreadedProducer` (rdkafka 0.39) computes with a deadline what is left of a poll's 100 ms, hands whole
//! milliseconds of it to librdkafka, and asks again without a wait until the last one is over: a millisecond of CPU ten times a second, 1 %
//! of a core in every process that only waits. A little more than whole milliseconds ends the poll when librdkafka's wait does.

use rdkafka::{
    ClientConfig,
    config::FromClientConfigAndContext,
    error::{KafkaError, KafkaResult},
    producer::{BaseProducer, Producer, ProducerContext, PurgeConfig},
};
use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// Longest wait for reports before the thread looks whether it is to end.
const POLL_WAIT: Duration = Duration::from_millis(100);
/// What a poll begins later than its deadline was set, and what a timer of the kernel is late: the rest is then below zero.
const POLL_SLACK: Duration = Duration::from_micros(80);

/// Time for a producer that is no longer used to report what it held.
const RETIRE_FLUSH: Duration = Duration::from_secs(1);
/// Polls in a row that find nothing to report, after which one is dropped with what it then still holds: about five seconds. What is not
/// reported when the client is dropped never is, and it takes half a second of its own only. A poll with many reports takes as long as these.
const RETIRE_SILENCE: u64 = 50;
/// How often one is looked at, until the last user has let go of it, and until all is reported.
const RETIRE_WAIT: Duration = Duration::from_millis(10);

/// A [`BaseProducer`] that is polled by its own thread until it is dropped.
pub struct ServedProducer<C: ProducerContext + 'static> {
    producer: Arc<BaseProducer<C>>,
    ends: Arc<AtomicBool>,
    /// Polls that the thread has been through.
    polls: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl<C: ProducerContext + 'static> FromClientConfigAndContext<C> for ServedProducer<C> {
    /// # Errors
    ///
    /// As [`BaseProducer`], and [`KafkaError::ClientCreation`] when there is no thread to be had.
    fn from_config_and_context(config: &ClientConfig, context: C) -> KafkaResult<Self> {
        let producer: Arc<BaseProducer<C>> = Arc::new(config.create_with_context(context)?);
        let (ends, polls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (served, served_ends, served_polls) =
            (Arc::clone(&producer), Arc::clone(&ends), Arc::clone(&polls));
        let thread = thread::Builder::new()
            .name("delivery-report".to_owned())
            .spawn(move || {
                while !served_ends.load(Ordering::Relaxed) {
                    served.poll(POLL_WAIT + POLL_SLACK);
                    served_polls.fetch_add(1, Ordering::Release);
                }
            })
            .map_err(|error| KafkaError::ClientCreation(format!("no thread for reports: {error}")))?;
        Ok(Self { producer, ends, polls, thread: Some(thread) })
    }
}

impl<C: ProducerContext + 'static> ServedProducer<C> {
    /// Ends a producer that another one has replaced: what it holds is acknowledged now, or reported as failed. Blocks, until all who were
    /// just giving it records have let go of it; so it is dropped here, for dropping waits for its thread.
    pub fn retire(producer: Arc<Self>) {
        if let Err(error) = producer.flush(RETIRE_FLUSH) {
            tracing::warn!(%error, "what the replaced producer held is given up");
        }
        while Arc::strong_count(&producer) > 1 {
            thread::sleep(RETIRE_WAIT);
        }
        // Nobody gives it any more. Its thread takes the reports.
        producer.purge(PurgeConfig::default().queue().inflight());
        let unreported = producer.await_reports();
        if unreported > 0 {
            tracing::error!(unreported, "the replaced producer does not say what became of what it held");
        }
    }

    /// Waits as long as there are reports, and returns how many are missing then.
    fn await_reports(&self) -> i32 {
        let mut silence = Silence::new(self.in_flight_count(), self.polls.load(Ordering::Acquire));
        loop {
            // The polls first: what they reported is no longer counted then.
            let polls = self.polls.load(Ordering::Acquire);
            let unreported = self.in_flight_count();
            let is_served = self.thread.as_ref().is_some_and(|thread| !thread.is_finished());
            if unreported == 0 || !is_served || silence.lasts(unreported, polls) {
                return unreported;
            }
            thread::sleep(RETIRE_WAIT);
        }
    }
}

/// Since which poll a producer reports nothing. Pure: counts are arguments.
struct Silence {
    /// Fewest records that were not reported yet.
    unreported: i32,
    since_poll: u64,
}

impl Silence {
    fn new(unreported: i32, polls: u64) -> Self {
        Self { unreported, since_poll: polls }
    }

    /// Takes in what is not reported yet after so many polls; whether nothing was reported for so long that nothing more will be.
    fn lasts(&mut self, unreported: i32, polls: u64) -> bool {
        if unreported < self.unreported {
            *self = Self::new(unreported, polls);
        }
        polls.saturating_sub(self.since_poll) >= RETIRE_SILENCE
    }
}

impl<C: ProducerContext + 'static> Deref for ServedProducer<C> {
    type Target = BaseProducer<C>;

    fn deref(&self) -> &BaseProducer<C> {
        &self.producer
    }
}

impl<C: ProducerContext + 'static> Drop for ServedProducer<C> {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // The last reference to the client is dropped after this: it reports what it still held as failed.
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that serves delivery reports panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdkafka::{ClientContext, message::DeliveryResult, producer::BaseRecord};
    use std::time::Instant;

    /// Takes its time for each report, and counts them.
    struct Slow(Arc<AtomicU64>, Duration);

    impl ClientContext for Slow {}

    impl ProducerContext for Slow {
        type DeliveryOpaque = ();

        fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {
            thread::sleep(self.1);
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_retired_producer_is_given_up_only_when_poll_after_poll_reports_nothing() {
        let mut silence = Silence::new(1_000, 7);
        assert!(!silence.lasts(1_000, 7 + RETIRE_SILENCE - 1));
        assert!(!silence.lasts(999, 7 + RETIRE_SILENCE));
        assert!(!silence.lasts(999, 7 + 2 * RETIRE_SILENCE - 1));
        // What else the client counts for a moment is no progress when it goes.
        assert!(!silence.lasts(1_000, 7 + 2 * RETIRE_SILENCE - 1));
        assert!(silence.lasts(999, 7 + 2 * RETIRE_SILENCE));
    }

    #[test]
    fn a_retired_producer_reports_all_that_it_held_although_that_takes_long() {
        const HELD: u32 = 8;
        let (reported, begun) = (Arc::new(AtomicU64::new(0)), Instant::now());
        let mut config = ClientConfig::new();
        // Reserved and closed on every sane machine.
        config.set("bootstrap.servers", "127.0.0.1:1");
        let slow = Slow(Arc::clone(&reported), Duration::from_secs(1));
        let producer: Arc<ServedProducer<Slow>> = Arc::new(config.create_with_context(slow).unwrap());
        for topic in 0..HELD {
            // Records of one topic would be reported at once.
            let topic = format!("topic-{topic}");
            let record = BaseRecord::<str, str>::to(&topic).payload("x");
            producer.send(record).map_err(|(error, _)| error).unwrap();
        }
        ServedProducer::retire(producer);
        assert_eq!(reported.load(Ordering::Relaxed), u64::from(HELD));
        assert!(begun.elapsed() >= HELD * Duration::from_secs(1));
    }
}
