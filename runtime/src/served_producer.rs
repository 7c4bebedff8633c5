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
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Longest wait for reports before the thread looks whether it is to end.
const POLL_WAIT: Duration = Duration::from_millis(100);
/// What a poll begins later than its deadline was set, and what a timer of the kernel is late: the rest is then below zero.
const POLL_SLACK: Duration = Duration::from_micros(80);

/// Time for a producer that is no longer used to report what it held.
const RETIRE_FLUSH: Duration = Duration::from_secs(1);
/// Time for what it then still holds to be reported as given up. What is not reported when the client is dropped never is, and it takes
/// half a second of its own only.
const RETIRE_REPORTS: Duration = Duration::from_secs(5);
/// How often one is looked at, until the last user has let go of it, and until all is reported.
const RETIRE_WAIT: Duration = Duration::from_millis(10);

/// A [`BaseProducer`] that is polled by its own thread until it is dropped.
pub struct ServedProducer<C: ProducerContext + 'static> {
    producer: Arc<BaseProducer<C>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl<C: ProducerContext + 'static> FromClientConfigAndContext<C> for ServedProducer<C> {
    /// # Errors
    ///
    /// As [`BaseProducer`], and [`KafkaError::ClientCreation`] when there is no thread to be had.
    fn from_config_and_context(config: &ClientConfig, context: C) -> KafkaResult<Self> {
        let producer: Arc<BaseProducer<C>> = Arc::new(config.create_with_context(context)?);
        let ends = Arc::new(AtomicBool::new(false));
        let (served, served_ends) = (Arc::clone(&producer), Arc::clone(&ends));
        let thread = thread::Builder::new()
            .name("delivery-report".to_owned())
            .spawn(move || {
                while !served_ends.load(Ordering::Relaxed) {
                    served.poll(POLL_WAIT + POLL_SLACK);
                }
            })
            .map_err(|error| KafkaError::ClientCreation(format!("no thread for reports: {error}")))?;
        Ok(Self { producer, ends, thread: Some(thread) })
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
        let deadline = Instant::now() + RETIRE_REPORTS;
        while producer.in_flight_count() > 0 && Instant::now() < deadline {
            thread::sleep(RETIRE_WAIT);
        }
        let unreported = producer.in_flight_count();
        if unreported > 0 {
            tracing::error!(unreported, "the replaced producer does not say what became of what it held");
        }
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
