//! How long a delivery of a paused subscription is deferred.
//!
//! For as long again as it has been paused: so a backlog of a million comes by a handful of times in its first hour and once an hour
//! after that, instead of every few seconds. Resuming does not wait for it: the control plane asks for all that is pending, and for a
//! moment after that the scheduler cuts deferrals of dispatchers that have not heard of it.

use floodway_schemas::UnixMillis;
use std::time::Duration;

/// Longest deferral, should a resumption be missed.
const LONGEST: Duration = Duration::from_secs(3_600);

/// The deferral at `now`, at least `shortest`, of a subscription that is paused since `since`, if that is known.
pub(crate) fn deferral(shortest: Duration, since: Option<UnixMillis>, now: UnixMillis) -> Duration {
    let paused_for = since.map_or(Duration::ZERO, |since| now.since(since));
    paused_for.clamp(shortest, LONGEST.max(shortest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RECHECK: Duration = Duration::from_secs(15);

    #[test]
    fn it_is_as_long_again_as_the_pause_within_its_bounds() {
        let since = UnixMillis(1_000_000);
        for (paused_for, expected) in [(0, 15), (14, 15), (60, 60), (3_599, 3_599), (90_000, 3_600)] {
            let now = since.plus(Duration::from_secs(paused_for));
            assert_eq!(deferral(RECHECK, Some(since), now), Duration::from_secs(expected));
        }
        assert_eq!(deferral(RECHECK, None, since), RECHECK);
        assert_eq!(deferral(RECHECK, Some(since), UnixMillis(0)), RECHECK, "a clock that is behind");
    }

    proptest! {
        #[test]
        fn a_delivery_comes_by_a_few_times_in_the_first_hour_and_hourly_after_that(
            arrival in 0u64..7_200, hours in 2u64..100,
        ) {
            let end = UnixMillis(i64::try_from(hours * 3_600_000).unwrap());
            let mut now = UnixMillis(i64::try_from(arrival * 1_000).unwrap());
            let mut rounds = 0;
            while now < end {
                now = now.plus(deferral(RECHECK, Some(UnixMillis(0)), now));
                rounds += 1;
            }
            prop_assert!(rounds <= 10 + hours, "{rounds} rounds in {hours} hours");
        }
    }
}
