//! What a thread of the generator costs: its own CPU time, and the time it waited for a CPU.

use rustix::{
    thread::gettid,
    time::{ClockId, clock_gettime},
};
use std::time::Duration;

/// One reading of the calling thread.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ThreadTime {
    /// Time on a CPU.
    pub(super) busy: Duration,
    /// Time ready to run without a CPU; 0 if the kernel does not say.
    pub(super) waiting: Duration,
}

impl ThreadTime {
    /// Of the calling thread, so far.
    pub(super) fn now() -> Self {
        let busy = clock_gettime(ClockId::ThreadCPUTime);
        let busy =
            Duration::new(u64::try_from(busy.tv_sec).unwrap_or(0), u32::try_from(busy.tv_nsec).unwrap_or(0));
        let path = format!("/proc/self/task/{}/schedstat", gettid().as_raw_nonzero());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        Self { busy, waiting: Duration::from_nanos(waiting_nanos(&text)) }
    }

    /// What was added since an earlier reading.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            busy: self.busy.saturating_sub(earlier.busy),
            waiting: self.waiting.saturating_sub(earlier.waiting),
        }
    }
}

/// The second field of `schedstat`: nanoseconds on the run queue.
fn waiting_nanos(schedstat: &str) -> u64 {
    schedstat.split_whitespace().nth(1).and_then(|field| field.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_on_the_run_queue_is_the_second_field() {
        assert_eq!(waiting_nanos("301937 56014 2\n"), 56014);
        assert_eq!(waiting_nanos(""), 0);
    }

    #[test]
    fn a_thread_that_works_gets_busier() {
        let before = ThreadTime::now();
        let mut after = before;
        while after.since(before).busy == Duration::ZERO {
            after = ThreadTime::now();
        }
        assert_eq!(before.since(after).busy, Duration::ZERO);
    }
}
