//! Two independent accounts of the same deliveries, the receiver's ledger and the control plane's counts, held against
//! what ingest acknowledged. Decisions here are pure.

use super::provision::DemoSubscription;
use crate::{
    admin_client::Counts,
    receive::ledger::Ledger,
    report::count,
    send::{
        latency_histogram,
        record::{SendRecord, Tally},
        record_latency,
    },
};
use hdrhistogram::Histogram;
use std::collections::HashSet;

/// What the receiver saw of one subscription.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Received {
    /// Acknowledged events that were answered with a 2xx.
    pub delivered: u64,
    /// Acknowledged events without a 2xx and without a dead letter.
    pub missing: u64,
    /// Events that were answered with a 2xx or dead-lettered although ingest never acknowledged them: the answer was
    /// lost, or said `unknown`.
    pub unacknowledged: u64,
    /// Of these, the ones that were answered with a 2xx.
    pub unacknowledged_delivered: u64,
    /// Arrivals beyond those that the endpoint's behaviour explains.
    pub repeats: u64,
    /// Arrivals whose signature was refused.
    pub invalid_signatures: u64,
    /// Arrivals whose body differed from the first one's.
    pub changed_bodies: u64,
}

/// Latencies of one subscription's deliveries, in microseconds from the first request with the event.
#[derive(Debug, Clone)]
pub struct DeliveryLatency {
    /// Until the first verified arrival.
    pub first: Histogram<u64>,
    /// Until the arrival that was answered with a 2xx.
    pub last: Histogram<u64>,
}

/// Everything about one subscription.
#[derive(Debug, Clone)]
pub struct Line {
    /// Its name.
    pub name: &'static str,
    /// Events that ingest acknowledged, all of which it matches.
    pub accepted: u64,
    /// The receiver's account.
    pub received: Received,
    /// The control plane's account.
    pub reported: Counts,
    /// Dead letters that the control plane lists.
    pub dead_letters: u64,
    /// Latencies, from the receiver's account.
    pub latency: DeliveryLatency,
}

impl Default for DeliveryLatency {
    fn default() -> Self {
        Self { first: latency_histogram(), last: latency_histogram() }
    }
}

impl Line {
    /// Deliveries that ended, by the control plane's account.
    pub fn ended(&self) -> u64 {
        ended(&self.reported)
    }

    /// Deliveries that have not ended yet, by the control plane's account.
    pub fn pending(&self) -> u64 {
        (self.accepted + self.received.unacknowledged).saturating_sub(self.ended())
    }

    /// Acknowledged events that neither account can show: without a 2xx, without a dead letter, and not pending.
    pub fn lost(&self) -> u64 {
        self.received.missing.saturating_sub(self.pending())
    }

    /// What does not add up, in words; empty if everything does.
    pub fn faults(&self) -> Vec<String> {
        let Received { invalid_signatures, changed_bodies, .. } = self.received;
        let due = self.accepted + self.received.unacknowledged;
        let delivered = self.received.delivered + self.received.unacknowledged_delivered;
        let dead = self.reported.dead + self.reported.disable;
        let facts = [
            (self.pending() > 0, format!("{} deliveries are still pending", count(self.pending()))),
            (self.lost() > 0, format!("{} events are lost", count(self.lost()))),
            (
                self.ended() > due,
                format!("{} deliveries ended, of {} events", count(self.ended()), count(due)),
            ),
            (
                self.pending() == 0 && delivered != self.reported.delivered,
                format!(
                    "the receiver has {} deliveries, the control plane reports {}",
                    count(delivered),
                    count(self.reported.delivered),
                ),
            ),
            (
                self.dead_letters != dead,
                format!("{} dead letters are listed, {} are counted", count(self.dead_letters), count(dead)),
            ),
            (invalid_signatures > 0, format!("{} signatures were refused", count(invalid_signatures))),
            (changed_bodies > 0, format!("{} bodies changed between attempts", count(changed_bodies))),
        ];
        facts
            .into_iter()
            .filter(|(wrong, _)| *wrong)
            .map(|(_, what)| format!("{}: {what}", self.name))
            .collect()
    }
}

/// Deliveries that ended, by the control plane's account.
pub fn ended(reported: &Counts) -> u64 {
    reported.delivered + reported.dead + reported.disable
}

/// What went wrong while sending, in words.
pub fn send_faults(tally: &Tally, events: u64) -> Vec<String> {
    let refused: u64 = tally.refused.values().sum();
    let facts = [
        (refused, "events were refused by ingest"),
        (tally.unacknowledged(), "events were never acknowledged by ingest"),
        (tally.not_sent, "events were not sent"),
    ];
    let mut faults: Vec<String> = facts
        .into_iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, what)| format!("{} {what}", count(number)))
        .collect();
    let known = tally.accepted + refused + tally.unacknowledged() + tally.not_sent;
    if known != events {
        faults.push(format!("{} of {} events ended in a known way", count(known), count(events)));
    }
    faults
}

/// Reads the receiver's account of one subscription, given the ids of its dead-lettered events.
pub fn receive_account(
    ledger: &Ledger,
    record: &SendRecord,
    subscription: &DemoSubscription,
    dead: &HashSet<String>,
) -> (Received, DeliveryLatency) {
    let totals = ledger.totals(&subscription.path);
    let mut latency = DeliveryLatency::default();
    let mut settled: HashSet<u64> = HashSet::new();
    let mut received = Received {
        invalid_signatures: totals.invalid_signatures,
        changed_bodies: totals.changed_bodies,
        ..Received::default()
    };
    ledger.for_each(&subscription.path, |_, entry| {
        let failures = entry.arrivals - entry.successes;
        let repeats = entry.successes.saturating_sub(1) + failures.saturating_sub(subscription.failures);
        received.repeats += u64::from(repeats);
        let Some(number) = entry.event_id.as_deref().and_then(|id| record.number_of(id)) else { return };
        let Some(sent_at) = record.sent_at(number) else { return };
        if entry.arrivals > 0 {
            record_latency(&mut latency.first, entry.first_arrival.saturating_duration_since(sent_at));
        }
        if let Some(success) = entry.first_success {
            record_latency(&mut latency.last, success.saturating_duration_since(sent_at));
            match (settled.insert(number), record.is_accepted(number)) {
                (true, true) => received.delivered += 1,
                (true, false) => received.unacknowledged_delivered += 1,
                // Two webhook-ids for one event would be a fault of Floodway's; the counts then differ.
                (false, _) => {}
            }
        }
    });
    settled.extend(dead.iter().filter_map(|id| record.number_of(id)));
    let acknowledged = settled.iter().filter(|&&number| record.is_accepted(number)).count() as u64;
    received.unacknowledged = settled.len() as u64 - acknowledged;
    received.missing = record.accepted() - acknowledged;
    (received, latency)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        receive::{
            ledger::{Arrival, Bounds},
            verify::Verdict,
        },
        send::answer::Fate,
    };
    use std::time::Instant;

    fn line(accepted: u64, received: Received, reported: (u64, u64), dead_letters: u64) -> Line {
        let reported = Counts { delivered: reported.0, dead: reported.1, ..Counts::default() };
        Line { name: "s", accepted, received, reported, dead_letters, latency: DeliveryLatency::default() }
    }

    fn delivered(delivered: u64) -> Received {
        Received { delivered, ..Received::default() }
    }

    #[test]
    fn accounts_that_agree_have_no_faults() {
        assert!(line(10, delivered(10), (10, 0), 0).faults().is_empty());
        assert!(line(10, delivered(7), (7, 3), 3).faults().is_empty());
        let doubtful =
            Received { delivered: 10, unacknowledged: 1, unacknowledged_delivered: 1, ..Received::default() };
        assert!(line(10, doubtful, (11, 0), 0).faults().is_empty());
        let repeated = Received { delivered: 10, repeats: 4, ..Received::default() };
        assert!(line(10, repeated, (10, 0), 0).faults().is_empty(), "at least once allows repeats");
    }

    #[test]
    fn what_is_missing_is_pending_until_the_control_plane_calls_it_ended_and_lost_then() {
        let missing = Received { delivered: 8, missing: 2, ..Received::default() };
        let waiting = line(10, missing.clone(), (8, 0), 0);
        assert_eq!((waiting.pending(), waiting.lost()), (2, 0));
        let ended = line(10, missing, (10, 0), 0);
        assert_eq!((ended.pending(), ended.lost()), (0, 2));
        assert!(ended.faults().iter().any(|fault| fault.contains("2 events are lost")));
    }

    #[test]
    fn every_disagreement_is_named() {
        for (line, words) in [
            (line(10, delivered(9), (9, 0), 0), "still pending"),
            (line(10, delivered(10), (11, 0), 0), "11 deliveries ended, of 10"),
            (line(10, delivered(10), (9, 1), 1), "the receiver has 10 deliveries"),
            (line(10, delivered(7), (7, 3), 2), "2 dead letters are listed, 3 are counted"),
            (line(1, Received { invalid_signatures: 1, ..delivered(1) }, (1, 0), 0), "signatures"),
            (line(1, Received { changed_bodies: 1, ..delivered(1) }, (1, 0), 0), "bodies changed"),
        ] {
            let faults = line.faults();
            assert!(faults.iter().any(|fault| fault.contains(words)), "{words}: {faults:?}");
        }
    }

    #[test]
    fn events_without_an_acknowledgement_are_named() {
        let tally = Tally { accepted: 6, unknown: 1, not_persisted: 1, not_sent: 1, ..Tally::default() };
        let faults = send_faults(&tally, 10);
        assert_eq!(
            faults,
            [
                "2 events were never acknowledged by ingest",
                "1 events were not sent",
                "9 of 10 events ended in a known way"
            ]
        );
        assert!(send_faults(&Tally { accepted: 10, ..Tally::default() }, 10).is_empty());
    }

    #[test]
    fn the_receivers_account_tells_delivered_dead_missing_and_repeated_apart() {
        let record = SendRecord::new("run", 5);
        record.sending(&[0, 1, 2, 3, 4], Instant::now());
        for number in 0..4 {
            record.settle(number, Fate::Accepted);
        }
        record.settle(4, Fate::Unknown(0));
        let ledger = Ledger::new(Bounds::default());
        let arrive = |event: &str, success: bool| {
            let arrival = Arrival {
                path: "/p",
                webhook_id: event,
                event_id: Some(event),
                body: b"",
                at: Instant::now(),
                verdict: Verdict::Valid,
            };
            ledger.arrive(&arrival, |_| success);
        };
        // 0: as expected; 1: delivered twice and failed once too often; 2: dead; 3: missing; 4: never acknowledged.
        for (event, success) in [
            ("run-0", false),
            ("run-0", true),
            ("run-1", false),
            ("run-1", false),
            ("run-1", true),
            ("run-1", true),
            ("run-2", false),
            ("run-4", true),
            ("other-1", true),
        ] {
            arrive(event, success);
        }
        let subscription = DemoSubscription { name: "s", id: "id".into(), path: "/p".into(), failures: 1 };
        let (received, latency) =
            receive_account(&ledger, &record, &subscription, &HashSet::from(["run-2".to_owned()]));
        let expected = Received {
            delivered: 2,
            missing: 1,
            unacknowledged: 1,
            unacknowledged_delivered: 1,
            repeats: 2,
            ..Received::default()
        };
        assert_eq!(received, expected);
        assert_eq!((latency.first.len(), latency.last.len()), (4, 3));
    }
}
