//! Pauses between attempts at something that is down.

use std::time::Duration;

/// First pause.
const FIRST: Duration = Duration::from_millis(100);
/// Longest pause: how long after an outage work may still wait.
const LONGEST: Duration = Duration::from_secs(5);

/// Pauses that double up to a limit, spread so that replicas do not come back in step.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// After a success the next pause is the first one again.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Waits for the next pause.
    pub(crate) async fn wait(&mut self) {
        let pause = self.next(rand::random());
        tokio::time::sleep(pause).await;
    }

    /// The next pause, half of it fixed and half of it by `random` in `[0, 1)`.
    fn next(&mut self, random: f64) -> Duration {
        let pause = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        pause.mul_f64(0.5 + random / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_limit_and_begin_again() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..8).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]);
        backoff.reset();
        assert_eq!(backoff.next(0.0), FIRST / 2);
    }
}
