//! How far a worker's thread is behind: the time that a task which could go on waits for its turn.
//!
//! It tells an endpoint that is slow from one that only looks slow because this process, or the machine, is the limit. Putting off what
//! waits for a fast endpoint would only add work.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// A thread that is further behind is the limit itself. One that is kept busy by a single endpoint is behind by a millisecond or two.
const BEHIND: Duration = Duration::from_millis(5);
/// Deliveries between two measurements: so many tasks, a fraction of a millisecond's work.
const BETWEEN: u32 = 32;
/// So long a worker counts as behind after it was found to be.
const MEMORY: Duration = Duration::from_millis(250);

/// The lag of one worker. Only its thread measures.
#[derive(Debug)]
pub(crate) struct Lag {
    begun: Instant,
    deliveries: AtomicU32,
    /// When the worker was last found to be behind, in microseconds since `begun`; 0 for never.
    behind_at: AtomicU64,
}

impl Default for Lag {
    fn default() -> Self {
        Self { begun: Instant::now(), deliveries: AtomicU32::default(), behind_at: AtomicU64::default() }
    }
}

impl Lag {
    /// To be called after each delivery, on the worker. Measures now and then, by going to the end of the queue.
    pub(crate) async fn look(&self) {
        // Relaxed, here and below: each number stands for itself.
        if self.deliveries.fetch_add(1, Ordering::Relaxed).is_multiple_of(BETWEEN) {
            let began = Instant::now();
            tokio::task::yield_now().await;
            if began.elapsed() > BEHIND {
                self.behind_at.store(self.micros(Instant::now()), Ordering::Relaxed);
            }
        }
    }

    /// Whether the worker was found to be behind just now.
    pub(crate) fn is_behind(&self, now: Instant) -> bool {
        let behind_at = self.behind_at.load(Ordering::Relaxed);
        behind_at > 0 && Duration::from_micros(self.micros(now).saturating_sub(behind_at)) <= MEMORY
    }

    fn micros(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.begun).as_micros()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a busy endpoint's attempt takes of the thread, far longer than in truth.
    const WORK: Duration = Duration::from_millis(1);

    /// Whether a worker is behind whose queue has so many other tasks in it.
    async fn is_behind_with(tasks: u32) -> bool {
        let lag = Lag::default();
        let local = tokio::task::LocalSet::new();
        for _ in 0..tasks {
            local.spawn_local(async {
                let until = Instant::now() + WORK;
                while Instant::now() < until {
                    std::hint::spin_loop();
                }
            });
        }
        local.run_until(lag.look()).await;
        lag.is_behind(Instant::now())
    }

    #[test]
    fn a_worker_that_was_behind_counts_as_such_for_a_moment() {
        let lag = Lag::default();
        let at = |millis| lag.begun + Duration::from_millis(millis);
        assert!(!lag.is_behind(at(0)));
        lag.behind_at.store(1_000_000, Ordering::Relaxed);
        assert!(lag.is_behind(at(1_000)) && lag.is_behind(at(1_250)) && !lag.is_behind(at(1_251)));
    }

    #[tokio::test]
    async fn a_worker_is_behind_when_the_tasks_in_its_queue_take_long_and_only_then() {
        assert!(is_behind_with(20).await);
        // A machine that is busy otherwise may be behind for a moment by itself.
        let mut is_up_to_date = false;
        for _ in 0..100 {
            is_up_to_date |= !is_behind_with(0).await;
        }
        assert!(is_up_to_date);
    }
}
