//! What one thread counts.

use super::{
    answer::Settled,
    cost::ThreadTime,
    progress::Progress,
    report::{Errors, Totals},
    series::{SecondTally, Series},
};
use crate::send::{answer::Fate, latency_histogram, record_latency};
use hdrhistogram::Histogram;
use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

/// One request that has ended. Times are counted from the start of the run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Exchange {
    /// When it was due; in a closed loop when it was sent.
    pub(super) due: Duration,
    /// When its connection became free for it.
    pub(super) free: Duration,
    /// When it was sent.
    pub(super) sent: Duration,
    /// When its answer was complete, or when it failed.
    pub(super) ended: Duration,
    /// Its events.
    pub(super) events: u64,
}

/// How a request ended.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ending<'a> {
    /// With an answer.
    Answer(&'a Settled),
    /// Without one.
    Nothing,
}

/// The counts of one thread.
pub(super) struct Tally {
    /// When the warm-up ends.
    measured_from: Duration,
    /// When the measured time ends; unknown in a run of so many events until it is over.
    measured_until: Duration,
    pub(super) totals: Totals,
    /// Answers, and events acknowledged in them, within the measured time.
    pub(super) answers: u64,
    pub(super) accepted_in_time: u64,
    pub(super) latency: Histogram<u64>,
    pub(super) service: Histogram<u64>,
    pub(super) lag: Histogram<u64>,
    /// When the last request ended.
    pub(super) last_end: Duration,
    /// The thread at the beginning and the end of the measured time, and when they were read.
    pub(super) begin: Option<(Duration, ThreadTime)>,
    pub(super) end: Option<(Duration, ThreadTime)>,
    second: SecondTally,
    series: Arc<Series>,
    progress: Arc<Progress>,
}

impl Tally {
    pub(super) fn new(
        measured_from: Duration,
        measured_until: Option<Duration>,
        series: Arc<Series>,
        progress: Arc<Progress>,
    ) -> Self {
        Self {
            measured_from,
            measured_until: measured_until.unwrap_or(Duration::MAX),
            totals: Totals::default(),
            answers: 0,
            accepted_in_time: 0,
            latency: latency_histogram(),
            service: latency_histogram(),
            lag: latency_histogram(),
            last_end: Duration::ZERO,
            begin: None,
            end: None,
            second: SecondTally::new(),
            series,
            progress,
        }
    }

    /// Notes that a request with so many events is sent.
    pub(super) fn send(&mut self, events: u64) {
        self.progress.sent.fetch_add(events, Relaxed);
    }

    /// Takes in a request that has ended.
    pub(super) fn settle(&mut self, exchange: &Exchange, ending: Ending<'_>) {
        let (accepted, errors) = count(ending, exchange.events);
        let latency = exchange.ended.saturating_sub(exchange.due);
        let is_answer = matches!(ending, Ending::Answer(_));
        let is_charged = is_charged(ending);
        if exchange.due >= self.measured_from {
            self.totals.requests += 1;
            self.totals.events += exchange.events;
            self.totals.accepted += accepted;
            self.totals.errors.add(&errors);
            record_latency(&mut self.lag, exchange.sent.saturating_sub(exchange.due.max(exchange.free)));
            if is_charged {
                record_latency(&mut self.latency, latency);
                record_latency(&mut self.service, exchange.ended.saturating_sub(exchange.sent));
            }
        }
        if (self.measured_from..self.measured_until).contains(&exchange.ended) && is_answer {
            self.answers += 1;
            self.accepted_in_time += accepted;
        }
        self.last_end = self.last_end.max(exchange.ended);
        self.progress.accepted.fetch_add(accepted, Relaxed);
        if accepted < exchange.events {
            self.progress.failed.fetch_add(exchange.events - accepted, Relaxed);
        }
        self.roll(exchange.ended);
        self.second.add(accepted, exchange.events - accepted, is_charged.then_some(latency));
    }

    /// Hands over the seconds that are complete.
    pub(super) fn roll(&mut self, now: Duration) {
        while self.second.second < now.as_secs() {
            self.series.merge(&mut self.second, &self.progress);
        }
    }

    /// Hands over the second that the run ended in.
    pub(super) fn finish(&mut self) {
        self.series.merge(&mut self.second, &self.progress);
    }
}

impl Errors {
    /// Adds the counts of another.
    pub(super) fn add(&mut self, other: &Self) {
        self.refused += other.refused;
        self.throttled += other.throttled;
        self.not_persisted += other.not_persisted;
        self.unknown += other.unknown;
        self.transport += other.transport;
    }

    fn count(&mut self, fate: Fate, events: u64) {
        let class = match fate {
            Fate::Accepted => return,
            Fate::Refused(_) => &mut self.refused,
            Fate::NotPersisted(429) => &mut self.throttled,
            Fate::NotPersisted(_) => &mut self.not_persisted,
            Fate::Unknown(_) => &mut self.unknown,
        };
        *class += events;
    }
}

/// Accepted events, and the others by class.
fn count(ending: Ending<'_>, events: u64) -> (u64, Errors) {
    let mut errors = Errors::default();
    match ending {
        Ending::Answer(Settled::All(Fate::Accepted)) => return (events, errors),
        Ending::Answer(Settled::All(fate)) => errors.count(*fate, events),
        Ending::Answer(Settled::Each(fates)) => fates.iter().for_each(|fate| errors.count(*fate, 1)),
        Ending::Nothing => errors.transport = events,
    }
    (events - errors.sum().min(events), errors)
}

/// Whether a request's time is among the latencies. A refusal may take no time at all, and would make a server that refuses
/// look fast; one that left the fate of an event open has kept its client waiting, as has one without an answer.
fn is_charged(ending: Ending<'_>) -> bool {
    let counts = |fate: &Fate| matches!(fate, Fate::Accepted | Fate::Unknown(_));
    match ending {
        Ending::Answer(Settled::All(fate)) => counts(fate),
        Ending::Answer(Settled::Each(fates)) => fates.iter().any(counts),
        Ending::Nothing => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn tally() -> (Tally, Arc<Series>) {
        let series = Arc::new(Series::new(1));
        (Tally::new(seconds(2), Some(seconds(10)), Arc::clone(&series), Arc::default()), series)
    }

    fn exchange(due: u64, sent: u64, ended: u64) -> Exchange {
        Exchange {
            due: seconds(due),
            free: Duration::ZERO,
            sent: seconds(sent),
            ended: seconds(ended),
            events: 4,
        }
    }

    const ACCEPTED: Settled = Settled::All(Fate::Accepted);

    #[test]
    fn latency_counts_from_when_a_request_was_due_and_service_from_when_it_was_sent() {
        let (mut tally, _) = tally();
        tally.settle(&exchange(3, 7, 8), Ending::Answer(&ACCEPTED));
        let about = |histogram: &Histogram<u64>| (histogram.max() + 500_000) / 1_000_000;
        assert_eq!((about(&tally.latency), about(&tally.service), about(&tally.lag)), (5, 1, 4));
    }

    #[test]
    fn a_request_that_waited_for_its_connection_is_not_the_generators_fault() {
        let (mut tally, _) = tally();
        tally.settle(&Exchange { free: seconds(7), ..exchange(3, 7, 8) }, Ending::Answer(&ACCEPTED));
        assert_eq!(tally.lag.max(), 0);
    }

    #[test]
    fn figures_are_over_what_was_due_after_the_warm_up_and_rates_over_what_ended_in_time() {
        let (mut tally, series) = tally();
        tally.settle(&exchange(1, 1, 3), Ending::Answer(&ACCEPTED));
        tally.settle(&exchange(4, 4, 5), Ending::Answer(&ACCEPTED));
        tally.settle(&exchange(9, 9, 12), Ending::Answer(&ACCEPTED));
        tally.finish();
        assert_eq!((tally.totals.requests, tally.totals.accepted), (2, 8));
        assert_eq!((tally.answers, tally.accepted_in_time), (2, 8));
        let seconds: Vec<_> = series.take().into_iter().map(|second| second.accepted).collect();
        assert_eq!(seconds, [0, 0, 0, 4, 0, 4, 0, 0, 0, 0, 0, 0, 4]);
    }

    #[test]
    fn every_event_is_accepted_or_in_one_class_of_errors() {
        let (mut tally, _) = tally();
        let each = vec![Fate::Accepted, Fate::Refused(400), Fate::NotPersisted(503), Fate::Unknown(503)];
        for ending in [
            Ending::Answer(&Settled::Each(each)),
            Ending::Answer(&Settled::All(Fate::NotPersisted(429))),
            Ending::Nothing,
        ] {
            tally.settle(&exchange(3, 3, 4), ending);
        }
        let Totals { events, accepted, errors, .. } = tally.totals;
        assert_eq!((events, accepted, errors.sum()), (12, 1, 11));
        let expected = Errors { refused: 1, throttled: 4, not_persisted: 1, unknown: 1, transport: 4 };
        assert_eq!(errors, expected);
    }

    #[test]
    fn a_request_without_an_answer_is_charged_from_when_it_was_due_until_it_was_given_up() {
        let (mut tally, series) = tally();
        tally.settle(&exchange(3, 4, 4), Ending::Answer(&ACCEPTED));
        tally.settle(&exchange(3, 5, 35), Ending::Nothing);
        tally.finish();
        let about = |histogram: &Histogram<u64>| (histogram.max() + 500_000) / 1_000_000;
        assert_eq!((tally.latency.len(), about(&tally.latency), about(&tally.service)), (2, 32, 30));
        assert_eq!(tally.answers, 1, "it is no answer all the same");
        assert!(series.take()[35].p99.is_some_and(|p99| p99 >= 31_000_000));
    }

    #[test]
    fn refusals_have_no_latency_and_what_was_stored_or_may_be_has_one() {
        let refused = vec![Fate::Refused(400), Fate::NotPersisted(503)];
        let mixed = vec![Fate::Refused(400), Fate::Accepted];
        for (settled, is_charged) in [
            (ACCEPTED, 1),
            (Settled::All(Fate::Unknown(503)), 1),
            (Settled::Each(mixed), 1),
            (Settled::Each(refused), 0),
            (Settled::All(Fate::NotPersisted(429)), 0),
            (Settled::All(Fate::NotPersisted(503)), 0),
            (Settled::All(Fate::Refused(413)), 0),
        ] {
            let (mut tally, series) = tally();
            tally.settle(&exchange(3, 3, 4), Ending::Answer(&settled));
            tally.finish();
            assert_eq!((tally.latency.len(), tally.service.len()), (is_charged, is_charged), "{settled:?}");
            assert_eq!(series.take()[4].p99.is_some(), is_charged == 1, "{settled:?}");
            assert_eq!(tally.answers, 1, "{settled:?}");
        }
    }
}
