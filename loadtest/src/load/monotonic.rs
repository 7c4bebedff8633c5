//! A clock that all processes of a machine share: what one of them stamps, another can subtract from.

use rustix::time::{ClockId, clock_gettime};
use std::time::Instant;

/// Digits of a stamp: microseconds since the machine's start, for three centuries.
pub const STAMP_DIGITS: usize = 16;

/// Microseconds since a moment that is the same for all processes of this machine until it starts again.
pub fn now_micros() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}

/// The same for an instant of this process, before now or after it.
pub fn micros_of(instant: Instant) -> u64 {
    let (now, micros) = (Instant::now(), now_micros());
    let distance = |duration: std::time::Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    match instant.checked_duration_since(now) {
        Some(ahead) => micros.saturating_add(distance(ahead)),
        None => micros.saturating_sub(distance(now.duration_since(instant))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn instants_before_and_after_now_keep_their_distance() {
        let now = Instant::now();
        let (before, after) = (micros_of(now), micros_of(now + Duration::from_secs(5)));
        // Both look at two clocks, one after the other.
        assert!((4_900_000..5_100_000).contains(&(after - before)), "{before} {after}");
        assert!(before <= now_micros());
    }
}
