//! Tells a reader that stopped from a log that has nothing more.
//!
//! librdkafka 2.12 was seen to stop fetching a partition for good, without an error, after the partition had been without a leader
//! for a moment: it validates its position when the leader's epoch changes, leaves that for the next change when there is no leader
//! just then, and the next change may never come. Nothing but the log's end shows it. To fetch again from the position, without an
//! epoch to validate, mends it (`rd_kafka_toppar_seek`); a reader made anew does in any case.
//!
//! Offsets at the end may hold no records: compaction or a transaction's marker took them. A client that reports the end of a
//! partition tells this from a stop.

use std::time::{Duration, Instant};

/// Between two looks at the log's end while nothing is read.
const LOOK_PAUSE: Duration = Duration::from_secs(5);
/// The same when look after look found nothing more. A look is a request to the broker.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Looks in a row that find records and nothing read before the position is fetched again, and before that has not helped.
const LOOKS_BEFORE_FETCHING_AGAIN: u32 = 2;
const LOOKS_BEFORE_READING_ANEW: u32 = 4;

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
        }
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

    /// Notes where the log ends; `None` when the broker did not say, which says nothing about the reader.
    pub fn look(&mut self, end: Option<i64>, now: Instant) -> Finding {
        self.looked_at = now;
        let Some(end) = end else { return Finding::ReadsOn };
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

    use Finding::{ReadsOn, Stopped, StoppedForGood};

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
    fn a_broker_that_does_not_answer_and_a_reader_that_was_not_asked_show_nothing() {
        let mut now = Instant::now();
        let mut watch = StallWatch::new(7, now);
        assert_eq!(looks(&mut watch, &mut now, 5, Some(8)), [ReadsOn]);
        assert_eq!(looks(&mut watch, &mut now, 60, None), [ReadsOn; 12]);
        watch.not_asked(now);
        assert_eq!(looks(&mut watch, &mut now, 5, Some(8)), [ReadsOn]);
        assert_eq!(looks(&mut watch, &mut now, 5, Some(8)), [Stopped]);
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
