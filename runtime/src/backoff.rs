//! How long to wait before trying again at something that is down.

use std::time::Duration;

/// Doubles from `first` to `longest`; every wait is spread over half of itself, so that many do not try at once.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    tries: u32,
}

impl Default for Backoff {
    /// From 100 ms, soon enough for a hiccup, to 5 s, which is how long work may still wait after an outage.
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(5))
    }
}

impl Backoff {
    /// A backoff that has not failed yet.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, tries: 0 }
    }

    /// The wait after another failure; `random` is from 0 up to 1.
    pub fn next(&mut self, random: f64) -> Duration {
        let doubled = self.first.saturating_mul(1u32 << self.tries.min(16)).min(self.longest);
        self.tries = self.tries.saturating_add(1);
        doubled.mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }

    /// Waits after another failure.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next(rand::random())).await;
    }

    /// It worked: the next failure waits the shortest time again.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_start_over_after_success() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(1.0), Duration::from_millis(100));
        assert_eq!(backoff.next(0.0), Duration::from_millis(100));
        for _ in 0..100 {
            assert!(backoff.next(1.0) <= Duration::from_secs(5));
        }
        backoff.reset();
        assert_eq!(backoff.next(0.0), Duration::from_millis(50));
    }
}
