//! Tells a reader that stopped from a log that has nothing more.
//!
//! librdkafka 2.12 was seen to stop fetching a partition for good, without an error, after the partition had been without a leader
//! for a moment. Nothing but the log's end shows that; a reader made anew goes on.

use std::time::{Duration, Instant};

/// Between two looks at the log's end while no record comes.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// What is known of a reader that yields nothing.
#[derive(Debug)]
pub(crate) struct StallWatch {
    /// When a record came, or the log's end was looked at.
    at: Instant,
    /// There was more at the last look, and nothing came since.
    behind: bool,
}

impl StallWatch {
    /// Nothing is known of a reader that begins now.
    pub(crate) fn new(now: Instant) -> Self {
        Self { at: now, behind: false }
    }

    /// A record came.
    pub(crate) fn progressed(&mut self, now: Instant) {
        *self = Self::new(now);
    }

    /// Whether it is time to look where the log ends.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) >= LOOK_INTERVAL
    }

    /// Notes whether the log goes on. True when it did at the look before, too, and nothing was read in between.
    pub(crate) fn is_stalled(&mut self, log_goes_on: bool, now: Instant) -> bool {
        let stalled = self.behind && log_goes_on;
        *self = Self { at: now, behind: log_goes_on };
        stalled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_is_stalled_when_the_log_goes_on_at_two_looks_without_a_record_in_between() {
        let start = Instant::now();
        let at = |looks: u32| start + LOOK_INTERVAL * looks;
        let mut watch = StallWatch::new(start);
        assert!(!watch.is_due(start) && watch.is_due(at(1)));
        assert!(!watch.is_stalled(false, at(1)));
        assert!(!watch.is_due(at(1)));
        assert!(!watch.is_stalled(true, at(2)));
        watch.progressed(at(3));
        assert!(!watch.is_due(at(3)));
        assert!(!watch.is_stalled(true, at(4)));
        assert!(watch.is_stalled(true, at(5)));
    }
}
