//! Tells a reader that stopped from a log that has nothing more, and a client that finds no broker any more from a Kafka that is away.
//!
//! librdkafka 2.12 was seen to stop fetching a partition for good, without an error, after the partition had been without a leader
//! for a moment: it validates its position when the leader's epoch changes, leaves that for the next change when there is no leader
//! just then, and the next change may never come. Nothing but the log's end shows it. To fetch again from the position, without an
//! epoch to validate, mends it (`rd_kafka_toppar_seek`); a reader made anew does in any case.
//!
//! Offsets at the end may hold no records: compaction or a transaction's marker took them. A client that reports the end of a
//! partition tells this from a stop.
//!
//! A client may also lose all of its brokers for good: a broker that has just started, or is about to end, names none in its answers, as it
//! takes no part in the cluster then. librdkafka 2.12 forgets every broker that such an answer does not name
//! (`rd_kafka_metadata_decommission_unavailable_brokers`, since 2.10). With the last connection closed it is to return to the bootstrap
//! servers, but if it has not come to the end of that answer by then, it takes it for a good one and calls this off
//! (`rd_kafka_rebootstrap_tmr_stop`), while it goes on to believe that it is under way (`rk_rebootstrap_in_progress`). From then on it connects to nobody, and
//! reports no error (confluentinc/librdkafka issue 5301, not mended in 2.13). No setting avoids it: `metadata.recovery.strategy=none` would
//! never return. One in about thirty clients was lost in this way each time that a broker answered so for some seconds.
//! Only another client tells such a one from a Kafka that is away ([`crate::witness`]), and only a client made anew helps.
//!
//! Questions about a partition, and records for it, are answered by its leader only, and records by a leader with enough replicas. Where
//! these are missing a client is as silent, and is none the worse: it is judged by whether it is answered about the cluster, which any broker does.

use std::time::{Duration, Instant};

/// Between two looks at the log's end while nothing is read.
const LOOK_PAUSE: Duration = Duration::from_secs(5);
/// The same when look after look found nothing more. A look is a request to the broker.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Looks in a row that find records and nothing read before the position is fetched again, and before that has not helped.
const LOOKS_BEFORE_FETCHING_AGAIN: u32 = 2;
const LOOKS_BEFORE_READING_ANEW: u32 = 4;
/// So long no broker may answer a client before another one is asked: outages that are shorter, and broken connections, the client gets over.
const BLIND_PATIENCE: Duration = Duration::from_secs(30);
/// The same when one new client after the other is not answered either.
const LONGEST_BLIND_PATIENCE: Duration = Duration::from_secs(600);
/// So long Kafka has to answer others before a client counts as lost: at an outage's end, each connects when its turn comes.
const OTHERS_AHEAD: Duration = Duration::from_secs(10);

/// Since when no broker answers a client. Pure: time is an argument.
#[derive(Debug)]
pub struct Blindness {
    since: Option<Instant>,
    /// Since when others are answered.
    others_since: Option<Instant>,
    patience: Duration,
}

impl Default for Blindness {
    fn default() -> Self {
        Self { since: None, others_since: None, patience: BLIND_PATIENCE }
    }
}

impl Blindness {
    /// A broker answered, or a record came.
    pub fn answered(&mut self) {
        *self = Self::default();
    }

    /// No broker answered. Whether none has for so long that the fault may be the client's: [`crate::witness::Witness`] tells.
    #[must_use]
    pub fn unanswered(&mut self, now: Instant) -> bool {
        now.saturating_duration_since(*self.since.get_or_insert(now)) >= self.patience
    }

    /// Takes in whether Kafka answers others; whether it has for a while, in which this client was not answered: then it never will be.
    #[must_use]
    pub fn others(&mut self, answered: bool, now: Instant) -> bool {
        if !answered {
            self.others_since = None;
            return false;
        }
        now.saturating_duration_since(*self.others_since.get_or_insert(now)) >= OTHERS_AHEAD
    }

    /// Nothing is asked of Kafka, which says nothing about the client.
    pub fn not_asked(&mut self) {
        (self.since, self.others_since) = (None, None);
    }

    /// A new client takes the place of the one that was not answered.
    pub fn replaced(&mut self) {
        *self = Self { patience: (self.patience * 2).min(LONGEST_BLIND_PATIENCE), ..Self::default() };
    }

    /// Whether the last question was not answered.
    pub fn is_blind(&self) -> bool {
        self.since.is_some()
    }

    /// As if no broker had answered for a minute, in which others were answered.
    #[cfg(test)]
    pub(crate) fn of_a_minute() -> Self {
        let begun = Instant::now().checked_sub(Duration::from_secs(60));
        Self { since: begun, others_since: begun, ..Self::default() }
    }
}

/// Whether what a producer is given comes to anything. Pure: counts and time are arguments.
#[derive(Debug, Default)]
pub struct AckWatch {
    acknowledged: u64,
    failed: u64,
    /// The last that was heard of a record was that it failed.
    is_failing: bool,
    blindness: Blindness,
}

impl AckWatch {
    /// Takes in how many records have been acknowledged and how many failed so far, and whether an answer is being waited for. Whether there
    /// has been no acknowledgement for so long that the fault may be the producer's: [`AckWatch::blindness`] is for a witness to judge
    /// ([`crate::witness::Witness::finds_lost`]).
    #[must_use]
    pub fn look(&mut self, acknowledged: u64, failed: u64, waits: bool, now: Instant) -> bool {
        let (succeeds, fails) = (acknowledged > self.acknowledged, failed > self.failed);
        (self.acknowledged, self.failed) = (acknowledged, failed);
        self.is_failing = !succeeds && (fails || self.is_failing);
        if succeeds {
            self.blindness.answered();
        } else if waits || self.is_failing {
            return self.blindness.unanswered(now);
        } else {
            self.blindness.not_asked();
        }
        false
    }

    /// Since when nothing was acknowledged.
    pub fn blindness(&mut self) -> &mut Blindness {
        &mut self.blindness
    }

    /// Another producer took its place; `failed` counts what the old one held, too.
    pub fn replaced(&mut self, failed: u64) {
        (self.failed, self.is_failing) = (failed, false);
        self.blindness.replaced();
    }
}

/// What is known of a reader that yields nothing. Pure: time is an argument.
#[derive(Debug)]
pub struct StallWatch {
    /// One more than the last offset read.
    next: i64,
    /// Offsets up to here were reported to hold no more records. A broker that is behind may say so wrongly: nothing is read from
    /// here on because of it.
    quiet_to: i64,
    /// Something was read since the last look.
    moved: bool,
    looked_at: Instant,
    pause: Duration,
    /// Looks in a row that found records behind `next`, without anything read in between.
    behind: u32,
    /// The log's end when it was last fetched again.
    fetched_to: Option<i64>,
    /// Since when looks are not answered.
    blindness: Blindness,
}

/// What a look shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// Nothing that speaks against the reader.
    ReadsOn,
    /// It stopped: its position, [`StallWatch::next`], is to be fetched again.
    Stopped,
    /// It was fetched again and still yields nothing: another reader is needed.
    StoppedForGood,
    /// Its looks have not been answered for long: the partition may have no leader, or the client no broker. [`StallWatch::blindness`] is for
    /// a witness to judge ([`crate::witness::Witness::finds_lost`]).
    Blind,
}

impl StallWatch {
    /// Nothing is known of a reader that begins at `next` now.
    pub fn new(next: i64, now: Instant) -> Self {
        Self {
            next,
            quiet_to: next,
            moved: false,
            looked_at: now,
            pause: LOOK_PAUSE,
            behind: 0,
            fetched_to: None,
            blindness: Blindness::default(),
        }
    }

    /// Since when its looks are not answered.
    pub fn blindness(&mut self) -> &mut Blindness {
        &mut self.blindness
    }

    /// The offset to go on from.
    pub fn next(&self) -> i64 {
        self.next
    }

    /// The record at `offset` was read. Cheap: it looks at no clock.
    pub fn read(&mut self, offset: i64) {
        self.next = offset.saturating_add(1);
        self.moved = true;
    }

    /// The client reports that there is nothing more.
    pub fn reached_end(&mut self) {
        self.moved = true;
        if let Some(end) = self.fetched_to.take() {
            self.quiet_to = self.quiet_to.max(end);
        }
    }

    /// The reader was not asked for records up to now: that there were none says nothing.
    pub fn not_asked(&mut self, now: Instant) {
        self.moved = true;
        self.is_due(now);
    }

    /// Whether it is time to look where the log ends.
    pub fn is_due(&mut self, now: Instant) -> bool {
        if std::mem::take(&mut self.moved) {
            *self =
                Self { fetched_to: self.fetched_to, quiet_to: self.quiet_to, ..Self::new(self.next, now) };
        }
        now.saturating_duration_since(self.looked_at) >= self.pause
    }

    /// Notes where the log ends; `None` when no broker said, which for a while says nothing about the reader.
    pub fn look(&mut self, end: Option<i64>, now: Instant) -> Finding {
        self.looked_at = now;
        let Some(end) = end else {
            self.pause = LOOK_PAUSE;
            return if self.blindness.unanswered(now) { Finding::Blind } else { Finding::ReadsOn };
        };
        self.blindness.answered();
        if end <= self.next.max(self.quiet_to) {
            self.behind = 0;
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            return Finding::ReadsOn;
        }
        self.pause = LOOK_PAUSE;
        self.behind += 1;
        match self.behind {
            LOOKS_BEFORE_FETCHING_AGAIN => {
                self.fetched_to = Some(end);
                Finding::Stopped
            }
            LOOKS_BEFORE_READING_ANEW.. => {
                self.behind = 0;
                Finding::StoppedForGood
            }
            _ => Finding::ReadsOn,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks as often as the watch wants to, for `seconds`, and returns what it found.
    fn looks(watch: &mut StallWatch, now: &mut Instant, seconds: u64, end: Option<i64>) -> Vec<Finding> {
        let mut found = Vec::new();
        for _ in 0..seconds {
            *now += Duration::from_secs(1);
            if watch.is_due(*now) {
                found.push(watch.look(end, *now));
            }
        }
        found
    }

    use Finding::{Blind, ReadsOn, Stopped, StoppedForGood};

    #[test]
    fn a_reader_is_stopped_when_the_log_goes_on_at_two_looks_without_a_record_in_between() {
        let mut now = Instant::now();
        let mut watch = StallWatch::new(7, now);
        assert_eq!(looks(&mut watch, &mut now, 5, Some(8)), [ReadsOn]);
        watch.read(7);
        assert_eq!(looks(&mut watch, &mut now, 11, Some(9)), [ReadsOn, Stopped]);
        assert_eq!(watch.next(), 8);
        assert_eq!(looks(&mut watch, &mut now, 10, Some(9)), [ReadsOn, StoppedForGood]);
    }

    #[test]
    fn an_idle_log_is_looked_at_less_and_less_and_at_once_again_when_it_goes_on() {
        let mut now = Instant::now();
        let mut watch = StallWatch::new(7, now);
        assert_eq!(looks(&mut watch, &mut now, 3_600, Some(7)).len(), 2 + 3_600 / 30 - 1);
        assert!(looks(&mut watch, &mut now, 35, Some(8)).starts_with(&[ReadsOn, Stopped]));
    }

    #[test]
    fn a_broker_that_does_not_answer_for_a_while_and_a_reader_that_was_not_asked_show_nothing() {
        let mut now = Instant::now();
        let mut watch = StallWatch::new(7, now);
        assert_eq!(looks(&mut watch, &mut now, 5, Some(8)), [ReadsOn]);
        assert_eq!(looks(&mut watch, &mut now, 30, None), [ReadsOn; 6]);
        watch.not_asked(now);
        assert_eq!(looks(&mut watch, &mut now, 5, Some(8)), [ReadsOn]);
        assert_eq!(looks(&mut watch, &mut now, 5, Some(8)), [Stopped]);
    }

    #[test]
    fn a_reader_is_blind_when_no_broker_answers_it_for_long_and_nothing_comes() {
        let mut now = Instant::now();
        let mut watch = StallWatch::new(7, now);
        // On an idle log looks are rare; one without an answer is soon followed by others.
        looks(&mut watch, &mut now, 600, Some(7));
        let found = looks(&mut watch, &mut now, 70, None);
        let seen = found.iter().position(|finding| *finding == Blind).unwrap();
        assert!(found[..seen].iter().all(|finding| *finding == ReadsOn) && seen >= 6, "{found:?}");
        assert!(found[seen..].iter().all(|finding| *finding == Blind), "{found:?}");
        // An answer, and a record, say that it is not.
        assert_eq!(looks(&mut watch, &mut now, 5, Some(7)), [ReadsOn]);
        assert!(!looks(&mut watch, &mut now, 35, None).contains(&Blind));
        watch.read(7);
        assert!(!looks(&mut watch, &mut now, 35, None).contains(&Blind));
    }

    #[test]
    fn a_client_is_lost_only_when_others_are_answered_for_a_while() {
        let (mut blindness, start) = (Blindness::default(), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        // Kafka is away for a minute, comes back, and goes again; then it is there.
        assert!(!blindness.others(false, at(60)) && !blindness.others(true, at(61)));
        assert!(!blindness.others(false, at(66)) && !blindness.others(true, at(71)));
        assert!(!blindness.others(true, at(80)) && blindness.others(true, at(81)));
        blindness.answered();
        assert!(!blindness.others(true, at(82)));
    }

    #[test]
    fn a_client_that_is_never_answered_is_replaced_less_and_less_often() {
        let (mut blindness, mut now) = (Blindness::default(), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..7 {
            let since = now;
            while !blindness.unanswered(now) {
                now += Duration::from_secs(1);
            }
            waits.push((now - since).as_secs());
            blindness.replaced();
            assert!(!blindness.is_blind());
        }
        assert_eq!(waits, [30, 60, 120, 240, 480, 600, 600]);
        blindness.answered();
        assert!(!blindness.unanswered(now) && blindness.is_blind());
        assert!(blindness.unanswered(now + Duration::from_secs(30)));
    }

    #[test]
    fn a_producer_is_in_doubt_when_it_waits_or_fails_for_long_without_an_acknowledgement() {
        let (mut watch, start) = (AckWatch::default(), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        // Nothing to do.
        assert!(!watch.look(0, 0, false, at(0)) && !watch.look(0, 0, false, at(100)));
        // One record waits for long; then it is acknowledged.
        assert!(!watch.look(0, 0, true, at(101)) && !watch.look(0, 0, true, at(130)));
        assert!(!watch.look(1, 0, true, at(131)) && !watch.look(1, 0, true, at(132)));
        assert!(watch.look(1, 0, true, at(162)));
        // One failed, and no other is tried: the producer may be no better.
        assert!(!watch.look(2, 0, true, at(163)) && !watch.look(2, 1, false, at(164)));
        assert!(!watch.look(2, 1, false, at(193)) && watch.look(2, 1, false, at(194)));
        // The next one knows nothing of it, and has more time.
        watch.replaced(5);
        assert!(!watch.look(2, 5, false, at(195)) && !watch.look(2, 5, true, at(196)));
        assert!(!watch.look(2, 6, true, at(255)) && watch.look(2, 6, false, at(256)));
        assert!(!watch.look(3, 7, true, at(257)) && !watch.look(3, 7, false, at(400)));
    }

    #[test]
    fn offsets_without_records_at_the_end_are_no_stop() {
        let mut now = Instant::now();
        let mut watch = StallWatch::new(7, now);
        assert_eq!(looks(&mut watch, &mut now, 10, Some(9)), [ReadsOn, Stopped]);
        watch.reached_end();
        // The broker may be behind: what comes next is read from where the reader was.
        assert_eq!(watch.next(), 7);
        assert!(looks(&mut watch, &mut now, 600, Some(9)).iter().all(|found| *found == ReadsOn));
        // One more marker.
        assert!(looks(&mut watch, &mut now, 35, Some(10)).starts_with(&[ReadsOn, Stopped]));
    }
}
