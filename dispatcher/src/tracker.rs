//! Which offsets of a partition are settled. Pure: no clock, no I/O.
//!
//! Deliveries finish in any order, but Kafka keeps one number per partition. The tracker therefore holds every record from the
//! oldest unsettled one to the newest received one, and sums them up as [`Progress`]: below `high` everything is settled but
//! the offsets listed as open. A new owner starts at the watermark and skips what is settled.
//!
//! Offsets have gaps (compaction, transaction markers): only received offsets are kept, and an offset that was never
//! received below one that was does not exist.

use std::collections::VecDeque;

/// What is settled: the value that is committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Offsets from here on are not known to be settled, unless they are below `high` and not open.
    pub(crate) high: i64,
    /// Unsettled offsets below `high`, ascending.
    pub(crate) open: Vec<i64>,
}

impl Progress {
    /// Nothing is known from `offset` on; everything below is settled.
    pub(crate) fn starting_at(offset: i64) -> Self {
        Self { high: offset, open: Vec::new() }
    }

    /// The offset to commit: the first one that may need delivery.
    pub(crate) fn watermark(&self) -> i64 {
        self.open.first().copied().unwrap_or(self.high)
    }

    /// The same for a log that begins at `first` and ends before `end`; what lies below is gone. `None` when the log does not reach
    /// as far as it was consumed: it is another one.
    pub(crate) fn within(mut self, (first, end): (i64, i64)) -> Option<Self> {
        if self.high > end {
            return None;
        }
        self.open.retain(|&offset| offset >= first);
        self.high = self.high.max(first);
        Some(self)
    }

    /// Whether the record at `offset` needs no delivery.
    pub(crate) fn is_settled(&self, offset: i64) -> bool {
        offset < self.high && self.open.binary_search(&offset).is_err()
    }
}

/// The records of one partition between the oldest unsettled and the newest received one.
#[derive(Debug)]
pub(crate) struct Tracker {
    /// What earlier owners settled.
    inherited: Progress,
    /// Received and not below the watermark, ascending; the first one is unsettled.
    window: VecDeque<Entry>,
    /// One more than the newest received offset; before any, the start.
    next: i64,
    /// Records of the window that are unsettled.
    open: usize,
    /// Grows with every change that a snapshot would show.
    revision: u64,
}

#[derive(Debug)]
struct Entry {
    offset: i64,
    /// Deliveries without an acknowledged outcome.
    remaining: u32,
}

impl Tracker {
    /// A tracker that goes on where `inherited` ends.
    pub(crate) fn new(inherited: Progress) -> Self {
        Self { next: inherited.watermark(), inherited, window: VecDeque::new(), open: 0, revision: 0 }
    }

    /// Whether an earlier owner settled the record at `offset`, or this one received it before.
    pub(crate) fn is_settled_or_seen(&self, offset: i64) -> bool {
        offset < self.next || self.inherited.is_settled(offset)
    }

    /// Takes a record with its number of deliveries; none means that it is settled. Offsets only grow.
    pub(crate) fn receive(&mut self, offset: i64, deliveries: u32) {
        if offset < self.next {
            return;
        }
        self.next = offset + 1;
        self.revision += 1;
        self.open += usize::from(deliveries > 0);
        if deliveries > 0 || !self.window.is_empty() {
            self.window.push_back(Entry { offset, remaining: deliveries });
        }
    }

    /// Counts one delivery of the record at `offset` as done. Returns whether the window became shorter.
    pub(crate) fn complete(&mut self, offset: i64) -> bool {
        let index = self.index_of(offset);
        let Some(entry) = self.window.get_mut(index).filter(|entry| entry.offset == offset) else {
            return false;
        };
        if entry.remaining == 0 {
            return false;
        }
        entry.remaining -= 1;
        if entry.remaining > 0 {
            return false;
        }
        self.open -= 1;
        self.revision += 1;
        let before = self.window.len();
        while self.window.front().is_some_and(|entry| entry.remaining == 0) {
            self.window.pop_front();
        }
        self.window.len() < before
    }

    /// Records from the oldest unsettled to the newest received one.
    pub(crate) fn window_len(&self) -> usize {
        self.window.len()
    }

    /// Whether progress ought not to wait any longer for the record at `offset`: the window is longer than `long` or has more than
    /// `many` unsettled records, and this one is not in its newest quarter.
    pub(crate) fn is_pressing(&self, offset: i64, long: usize, many: usize) -> bool {
        let newest = self.window.len() / 4;
        (self.window.len() > long || self.open > many) && self.index_of(offset) + newest < self.window.len()
    }

    /// Where in the window the record at `offset` is, or would be. One step in a log without gaps, and a search where there are some:
    /// it can only be further to the front then.
    fn index_of(&self, offset: i64) -> usize {
        let distance = self.window.front().map_or(0, |first| offset.saturating_sub(first.offset));
        let guess = usize::try_from(distance).unwrap_or(0).min(self.window.len());
        match self.window.get(guess) {
            Some(entry) if entry.offset == offset => guess,
            _ => self.window.partition_point(|entry| entry.offset < offset),
        }
    }

    /// Changes whenever [`Tracker::progress_of`] may have changed.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// What is settled now, as far as the first `most` unsettled records tell: nothing is claimed beyond.
    pub(crate) fn progress_of(&self, most: usize) -> Progress {
        let mut open = Vec::new();
        for entry in self.window.iter().filter(|entry| entry.remaining > 0) {
            if open.len() == most {
                return Progress { high: entry.offset, open };
            }
            open.push(entry.offset);
        }
        let still_inherited = self.inherited.open.iter().copied().filter(|&offset| offset >= self.next);
        open.extend(still_inherited);
        Progress { high: self.next.max(self.inherited.high), open }
    }

    /// What is settled now.
    #[cfg(test)]
    pub(crate) fn progress(&self) -> Progress {
        self.progress_of(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watermark_is_the_first_unsettled_offset_and_skips_gaps() {
        let mut tracker = Tracker::new(Progress::starting_at(10));
        assert_eq!(tracker.progress().watermark(), 10);
        tracker.receive(12, 1);
        tracker.receive(15, 2);
        tracker.receive(16, 0);
        assert_eq!(tracker.progress(), Progress { high: 17, open: vec![12, 15] });
        assert!(tracker.complete(12));
        assert!(!tracker.complete(15));
        assert_eq!(tracker.progress(), Progress { high: 17, open: vec![15] });
        assert!(tracker.complete(15));
        assert_eq!(tracker.progress(), Progress::starting_at(17));
        assert_eq!(tracker.window_len(), 0);
    }

    #[test]
    fn a_log_that_was_made_anew_is_told_from_one_whose_start_was_deleted() {
        let progress = Progress { high: 20, open: vec![10, 15] };
        assert_eq!(progress.clone().within((10, 20)), Some(progress.clone()));
        assert_eq!(progress.clone().within((12, 90)), Some(Progress { high: 20, open: vec![15] }));
        assert_eq!(progress.clone().within((30, 30)), Some(Progress::starting_at(30)));
        // The committed offset is in the log, what was settled above it is not.
        assert_eq!(progress.within((0, 19)), None);
        assert_eq!(Progress::starting_at(1).within((0, 0)), None);
    }

    #[test]
    fn what_an_earlier_owner_settled_stays_settled_before_it_is_received_again() {
        let mut tracker = Tracker::new(Progress { high: 20, open: vec![10, 15] });
        assert!(
            tracker.is_settled_or_seen(9) && tracker.is_settled_or_seen(11) && tracker.is_settled_or_seen(19)
        );
        assert!(
            !tracker.is_settled_or_seen(10)
                && !tracker.is_settled_or_seen(15)
                && !tracker.is_settled_or_seen(20)
        );
        tracker.receive(10, 1);
        assert_eq!(tracker.progress(), Progress { high: 20, open: vec![10, 15] });
        tracker.complete(10);
        assert_eq!(tracker.progress(), Progress { high: 20, open: vec![15] });
    }

    #[test]
    fn a_record_received_twice_is_not_delivered_twice() {
        let mut tracker = Tracker::new(Progress::starting_at(0));
        tracker.receive(0, 1);
        assert!(tracker.is_settled_or_seen(0));
        tracker.receive(0, 5);
        tracker.complete(0);
        assert_eq!(tracker.progress(), Progress::starting_at(1));
    }
}
