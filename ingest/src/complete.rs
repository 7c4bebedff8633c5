//! What became of a request's events: one slot per HTTP request, shared with the producer's delivery reports.
//!
//! The request holds the slot and waits. Every event handed to the producer travels with a [`Ticket`]; the report
//! writes the event's code and drops the ticket, which counts the slot down. The last one wakes the request, once.
//! A client that went away leaves the slot to its tickets, so nothing leaks and nothing is freed too early.

use crate::{partition::Partitions, wake::WakeList};
use atomic_waker::AtomicWaker;
use smallvec::SmallVec;
use std::{
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};
use tokio::time::{Instant, timeout_at};

/// Events of a request whose fates are kept in the slot itself.
const INLINE_EVENTS: usize = 16;

/// What became of one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Fate {
    /// Handed to the producer, no report yet. After the deadline: unknown.
    Pending = 0,
    /// Acknowledged by all in-sync replicas.
    Delivered = 1,
    /// Larger than the broker or the client takes.
    TooLarge = 2,
    /// Certainly not written.
    NotPersisted = 3,
    /// Perhaps written.
    Unknown = 4,
}

impl Fate {
    fn from_code(code: u8) -> Self {
        match code {
            1 => Self::Delivered,
            2 => Self::TooLarge,
            3 => Self::NotPersisted,
            4 => Self::Unknown,
            _ => Self::Pending,
        }
    }
}

/// The slot of one request.
#[derive(Debug)]
pub(crate) struct Completion {
    fates: SmallVec<[AtomicU8; INLINE_EVENTS]>,
    /// Tickets that are out, plus one for the request while it hands out more.
    open: AtomicUsize,
    /// Wakes the request, by way of its worker's list where there is one.
    request: AtomicWaker,
    worker: Option<Arc<WakeList>>,
    partitions: Arc<Partitions>,
}

impl Completion {
    /// A slot for `events` events, open until [`Completion::seal`].
    pub(crate) fn new(events: usize, partitions: Arc<Partitions>) -> Arc<Self> {
        Arc::new(Self {
            fates: (0..events).map(|_| AtomicU8::new(Fate::Pending as u8)).collect(),
            open: AtomicUsize::new(1),
            request: AtomicWaker::new(),
            worker: WakeList::current(),
            partitions,
        })
    }

    /// A ticket for an event whose room in its partition has been reserved.
    pub(crate) fn ticket(self: &Arc<Self>, index: usize, partition: usize, bytes: usize) -> Box<Ticket> {
        self.open.fetch_add(1, Ordering::Relaxed);
        Box::new(Ticket { completion: Arc::clone(self), index, partition, bytes })
    }

    /// Notes what became of an event.
    pub(crate) fn settle(&self, index: usize, fate: Fate) {
        self.fates[index].store(fate as u8, Ordering::Relaxed);
    }

    /// No more tickets will be handed out.
    pub(crate) fn seal(&self) {
        self.close_one();
    }

    /// Waits until every ticket has come back, or for the deadline.
    pub(crate) async fn wait(&self, deadline: Instant) {
        // Nothing is left to do differently at the deadline: whatever is pending then is unknown.
        let _ = timeout_at(deadline, poll_fn(|context| self.poll_closed(context))).await;
    }

    /// What is known of every event at this moment.
    pub(crate) fn fates(&self) -> Vec<Fate> {
        self.fates.iter().map(|code| Fate::from_code(code.load(Ordering::Relaxed))).collect()
    }

    /// Whether everything was accepted, which is the rule.
    pub(crate) fn is_all_delivered(&self) -> bool {
        self.fates.iter().all(|code| code.load(Ordering::Relaxed) == Fate::Delivered as u8)
    }

    fn poll_closed(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.is_closed() {
            return Poll::Ready(());
        }
        self.request.register(context.waker());
        // The last ticket may have come back before the waker was there.
        if self.is_closed() { Poll::Ready(()) } else { Poll::Pending }
    }

    fn is_closed(&self) -> bool {
        // Acquires what the reports wrote to `fates`.
        self.open.load(Ordering::Acquire) == 0
    }

    fn close_one(&self) {
        // Release what this thread wrote to `fates`, and acquire what the others did.
        if self.open.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        match (self.request.take(), &self.worker) {
            (Some(request), Some(worker)) => worker.push(request),
            (Some(request), None) => request.wake(),
            // The request is not waiting yet, or not any more.
            (None, _) => {}
        }
    }
}

/// Travels with one event through the producer. Dropping it gives its room back and counts the slot down.
#[derive(Debug)]
pub(crate) struct Ticket {
    completion: Arc<Completion>,
    index: usize,
    partition: usize,
    bytes: usize,
}

impl Ticket {
    /// The producer's report.
    pub(crate) fn report(self, fate: Fate) {
        self.completion.settle(self.index, fate);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.completion.partitions.release(self.partition, self.bytes);
        self.completion.close_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[tokio::test]
    async fn the_last_report_wakes_the_request_from_any_thread() {
        let partitions = Arc::new(Partitions::new(1, 1000));
        let completion = Completion::new(100, Arc::clone(&partitions));
        let tickets: Vec<_> = (0..100)
            .map(|index| {
                assert!(partitions.reserve(0, 10));
                completion.ticket(index, 0, 10)
            })
            .collect();
        completion.seal();
        let reporter =
            std::thread::spawn(move || tickets.into_iter().for_each(|t| t.report(Fate::Delivered)));
        completion.wait(soon()).await;
        assert_eq!(completion.fates(), [Fate::Delivered; 100]);
        reporter.join().unwrap();
        assert_eq!(partitions.waiting_bytes(), 0);
    }

    #[tokio::test]
    async fn without_tickets_nothing_is_waited_for() {
        let completion = Completion::new(1, Arc::new(Partitions::new(1, 1)));
        completion.settle(0, Fate::NotPersisted);
        completion.seal();
        completion.wait(soon()).await;
        assert_eq!(completion.fates(), [Fate::NotPersisted]);
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_deadline_an_unreported_event_is_pending() {
        let completion = Completion::new(1, Arc::new(Partitions::new(1, 1)));
        let ticket = completion.ticket(0, 0, 0);
        completion.seal();
        completion.wait(Instant::now() + Duration::from_secs(10)).await;
        assert_eq!(completion.fates(), [Fate::Pending]);
        drop(ticket);
    }
}
