//! The one decision about an attempt: delivered, retry at a time, dead with a reason, or disable the endpoint.
//!
//! Pure: the clock and the dice are arguments. Nothing else in the dispatcher looks at a status code to decide.

use floodway_schemas::{
    UnixMillis,
    outcome::{DeadReason, ErrorClass, OutcomeKind, Via},
    retry_policy::RetryPolicy,
};
use std::time::Duration;
use time::{OffsetDateTime, PrimitiveDateTime, format_description::FormatItem, macros::format_description};

/// What an attempt met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    /// A complete response.
    Answered {
        /// Its status.
        status: u16,
        /// Its `Retry-After`, as a wait from now.
        retry_after: Option<Duration>,
    },
    /// No complete response.
    Failed {
        /// Why.
        class: ErrorClass,
        /// The status, if the response had begun.
        status: Option<u16>,
    },
}

impl Reply {
    /// The HTTP status, if a response came or began.
    pub(crate) fn status(&self) -> Option<u16> {
        match *self {
            Self::Answered { status, .. } => Some(status),
            Self::Failed { status, .. } => status,
        }
    }
}

/// What the decision depends on besides the reply.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Situation<'p> {
    /// The subscription's schedule.
    pub(crate) policy: &'p RetryPolicy,
    /// Number of the attempt just made, from 1.
    pub(crate) attempt: u32,
    /// Where the delivery's age starts.
    pub(crate) since: UnixMillis,
    /// When the attempt ended.
    pub(crate) now: UnixMillis,
    /// In `[0, 1)`.
    pub(crate) random: f64,
    /// Longest wait that `Retry-After` is granted.
    pub(crate) max_retry_after: Duration,
    /// Which endpoint it was made at.
    pub(crate) via: Via,
}

/// The decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Decision {
    /// What becomes of the delivery.
    pub(crate) kind: OutcomeKind,
    /// For retries: when.
    pub(crate) not_before: Option<UnixMillis>,
    /// For dead and disabled: why.
    pub(crate) reason: Option<DeadReason>,
    /// Why the attempt failed.
    pub(crate) error: Option<ErrorClass>,
}

/// Decides.
pub(crate) fn classify(reply: &Reply, situation: &Situation<'_>) -> Decision {
    match *reply {
        Reply::Answered { status: 200..=299, .. } => {
            Decision { kind: OutcomeKind::Delivered, not_before: None, reason: None, error: None }
        }
        // A fallback that is gone is no reason to disable the subscription: its own endpoint may be back tomorrow.
        Reply::Answered { status: 410, .. } if situation.via == Via::Main => Decision {
            kind: OutcomeKind::Disable,
            not_before: None,
            reason: Some(DeadReason::EndpointGone),
            error: Some(ErrorClass::Status),
        },
        Reply::Answered { status: 300..=399, .. } => failed(ErrorClass::Redirect, None, situation),
        Reply::Answered { status: 429 | 502..=504, retry_after } => {
            failed(ErrorClass::Status, retry_after, situation)
        }
        Reply::Answered { .. } => failed(ErrorClass::Status, None, situation),
        Reply::Failed { class, .. } => failed(class, None, situation),
    }
}

/// A failed attempt: the next one by the policy, or later if the endpoint asks for it; dead when none is left or it would come too late.
fn failed(error: ErrorClass, asked: Option<Duration>, situation: &Situation<'_>) -> Decision {
    let Situation { policy, attempt, since, now, random, max_retry_after, via: _ } = *situation;
    let dead = |reason| Decision {
        kind: OutcomeKind::Dead,
        not_before: None,
        reason: Some(reason),
        error: Some(error),
    };
    let Some(delay) = policy.delay_after(attempt, random) else { return dead(DeadReason::AttemptsExhausted) };
    let delay = delay.max(asked.unwrap_or_default().min(max_retry_after));
    let next = now.plus(delay);
    if next > policy.expires_at(since) {
        return dead(DeadReason::Expired);
    }
    Decision { kind: OutcomeKind::Retry, not_before: Some(next), reason: None, error: Some(error) }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`, without the day of the week, which says nothing more.
const DATE: &[FormatItem<'_>] =
    format_description!("[day padding:zero] [month repr:short] [year] [hour]:[minute]:[second] GMT");
/// `Sun Nov  6 08:49:37 1994`, the form of C's `asctime`.
const ASCTIME_DATE: &[FormatItem<'_>] = format_description!(
    "[weekday repr:short] [month repr:short] [day padding:space] [hour]:[minute]:[second] [year]"
);
/// `06-Nov-94 08:49:37 GMT` of RFC 850, with the century put in.
const RFC_850_DATE: &[FormatItem<'_>] =
    format_description!("[day padding:zero]-[month repr:short]-[year] [hour]:[minute]:[second] GMT");

/// A date in one of the three forms that RFC 9110 asks recipients to read.
fn http_date(text: &str, now: UnixMillis) -> Option<UnixMillis> {
    let parse =
        |text: &str, format| PrimitiveDateTime::parse(text, format).ok().map(|date| date.assume_utc());
    // A leap second is none that calendars of computers have.
    let text = &*text.replace(":60 ", ":59 ");
    let at = match text.split_once(", ") {
        None => parse(text, ASCTIME_DATE)?,
        Some((_, date)) if date.as_bytes().get(2) == Some(&b'-') => {
            let (day_month, rest) = date.split_at_checked(7)?;
            let full = |century: i32| parse(&format!("{day_month}{century:02}{rest}"), RFC_850_DATE);
            // Two digits are of the latest year that is not more than fifty years ahead.
            let this_year = OffsetDateTime::from_unix_timestamp(now.0.div_euclid(1000)).ok()?.year();
            let latest = (this_year + 50) / 100;
            [latest, latest - 1].into_iter().filter_map(full).find(|date| date.year() <= this_year + 50)?
        }
        Some((_, date)) => parse(date, DATE)?,
    };
    Some(UnixMillis::from_datetime(at))
}

/// The wait that a `Retry-After` header asks for: seconds, or a date. `None` when it is neither.
pub(crate) fn retry_after(value: &str, now: UnixMillis) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    // More digits than a number has: longer than anything.
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::MAX);
    }
    http_date(value, now).map(|at| at.since(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ErrorClass as E;
    use OutcomeKind as K;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const NOW: UnixMillis = UnixMillis(784_111_777_000); // Sun, 06 Nov 1994 08:49:37 GMT

    fn answered(status: u16, retry_after_seconds: Option<u64>) -> Reply {
        Reply::Answered { status, retry_after: retry_after_seconds.map(Duration::from_secs) }
    }

    fn decide(reply: Reply, attempt: u32, age_seconds: i64) -> Decision {
        let policy = RetryPolicy::new(vec![10.0, 20.0], 0.0, 100.0).unwrap();
        classify(
            &reply,
            &Situation {
                policy: &policy,
                attempt,
                since: UnixMillis(NOW.0 - age_seconds * 1000),
                now: NOW,
                random: 0.5,
                max_retry_after: Duration::from_secs(60),
                via: Via::Main,
            },
        )
    }

    #[test]
    fn a_fallback_that_is_gone_does_not_disable_its_subscription() {
        let policy = RetryPolicy::new(vec![10.0], 0.0, 100.0).unwrap();
        let situation = Situation {
            policy: &policy,
            attempt: 1,
            since: NOW,
            now: NOW,
            random: 0.5,
            max_retry_after: MINUTE,
            via: Via::Fallback,
        };
        assert_eq!(classify(&answered(410, None), &situation).kind, K::Retry);
    }

    proptest! {
        #[test]
        fn a_failed_attempt_is_tried_again_before_its_age_is_over_or_is_a_dead_letter_with_the_reason(
            delays in proptest::collection::vec(0.1f64..2_592_000.0, 0..10), jitter in 0.0f64..0.5, age in 1.0f64..7_776_000.0,
            attempt in 1u32..12, old_ms in 0i64..8_000_000_000, asked in proptest::option::of(0u64..10_000_000), random in 0.0f64..1.0,
        ) {
            let policy = RetryPolicy::new(delays, jitter, age).unwrap();
            let situation = Situation {
                policy: &policy,
                attempt,
                since: UnixMillis(NOW.0 - old_ms),
                now: NOW,
                random,
                max_retry_after: MINUTE,
                via: Via::Main,
            };
            let decision = classify(&answered(503, asked), &situation);
            let planned = policy.delay_after(attempt, random);
            match (decision.kind, decision.reason) {
                (K::Retry, None) => {
                    let (next, planned) = (decision.not_before.unwrap(), planned.unwrap());
                    prop_assert!(next <= policy.expires_at(situation.since));
                    prop_assert!(next >= NOW.plus(planned));
                    prop_assert!(next <= NOW.plus(planned.max(MINUTE)));
                }
                (K::Dead, Some(DeadReason::AttemptsExhausted)) => prop_assert_eq!(planned, None),
                (K::Dead, Some(DeadReason::Expired)) => {
                    let wait = planned.unwrap().max(Duration::from_secs(asked.unwrap_or(0)).min(MINUTE));
                    prop_assert!(NOW.plus(wait) > policy.expires_at(situation.since));
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn an_attempt_is_decided_by_this_table() {
        let failed = |class| Reply::Failed { class, status: None };
        // reply, attempt, age in s → kind, wait in s, reason, error
        let table = [
            (answered(200, None), 1, 0, K::Delivered, None, None, None),
            (answered(204, None), 3, 999, K::Delivered, None, None, None),
            (answered(299, Some(5)), 1, 0, K::Delivered, None, None, None),
            // Nothing but 2xx is a success; what is informational or made up is none.
            (answered(101, None), 1, 0, K::Retry, Some(10), None, Some(E::Status)),
            (answered(199, None), 1, 0, K::Retry, Some(10), None, Some(E::Status)),
            (answered(300, None), 1, 0, K::Retry, Some(10), None, Some(E::Redirect)),
            (answered(399, None), 1, 0, K::Retry, Some(10), None, Some(E::Redirect)),
            (answered(600, None), 1, 0, K::Retry, Some(10), None, Some(E::Status)),
            (answered(999, None), 1, 0, K::Retry, Some(10), None, Some(E::Status)),
            (answered(410, None), 3, 999, K::Disable, None, Some(DeadReason::EndpointGone), Some(E::Status)),
            (answered(410, None), 1, 0, K::Disable, None, Some(DeadReason::EndpointGone), Some(E::Status)),
            (answered(302, None), 1, 0, K::Retry, Some(10), None, Some(E::Redirect)),
            (answered(304, Some(30)), 1, 0, K::Retry, Some(10), None, Some(E::Redirect)),
            (answered(400, None), 1, 0, K::Retry, Some(10), None, Some(E::Status)),
            (answered(404, None), 2, 0, K::Retry, Some(20), None, Some(E::Status)),
            (answered(500, Some(30)), 1, 0, K::Retry, Some(10), None, Some(E::Status)),
            (answered(429, Some(30)), 1, 0, K::Retry, Some(30), None, Some(E::Status)),
            (answered(502, Some(30)), 1, 0, K::Retry, Some(30), None, Some(E::Status)),
            (answered(503, Some(30)), 1, 0, K::Retry, Some(30), None, Some(E::Status)),
            (answered(504, Some(30)), 1, 0, K::Retry, Some(30), None, Some(E::Status)),
            // Not before the policy's own delay, and bounded.
            (answered(503, Some(1)), 1, 0, K::Retry, Some(10), None, Some(E::Status)),
            (answered(503, Some(9_999)), 1, 0, K::Retry, Some(60), None, Some(E::Status)),
            (answered(500, None), 3, 0, K::Dead, None, Some(DeadReason::AttemptsExhausted), Some(E::Status)),
            (answered(500, None), 1, 89, K::Retry, Some(10), None, Some(E::Status)),
            (answered(500, None), 1, 91, K::Dead, None, Some(DeadReason::Expired), Some(E::Status)),
            (answered(503, Some(60)), 1, 50, K::Dead, None, Some(DeadReason::Expired), Some(E::Status)),
            (failed(E::Timeout), 1, 0, K::Retry, Some(10), None, Some(E::Timeout)),
            (failed(E::Connect), 1, 0, K::Retry, Some(10), None, Some(E::Connect)),
            (failed(E::Tls), 1, 0, K::Retry, Some(10), None, Some(E::Tls)),
            (failed(E::Dns), 1, 0, K::Retry, Some(10), None, Some(E::Dns)),
            (failed(E::Refused), 1, 0, K::Retry, Some(10), None, Some(E::Refused)),
            (failed(E::Reset), 1, 0, K::Retry, Some(10), None, Some(E::Reset)),
            (failed(E::Protocol), 1, 0, K::Retry, Some(10), None, Some(E::Protocol)),
            (failed(E::ForbiddenAddress), 1, 0, K::Retry, Some(10), None, Some(E::ForbiddenAddress)),
            (failed(E::Secret), 3, 0, K::Dead, None, Some(DeadReason::AttemptsExhausted), Some(E::Secret)),
            // A response that began well and was cut off is not a success.
            (
                Reply::Failed { class: E::Reset, status: Some(200) },
                1,
                0,
                K::Retry,
                Some(10),
                None,
                Some(E::Reset),
            ),
            (
                Reply::Failed { class: E::Timeout, status: Some(410) },
                1,
                0,
                K::Retry,
                Some(10),
                None,
                Some(E::Timeout),
            ),
        ];
        for (reply, attempt, age, kind, wait, reason, error) in table {
            let not_before = wait.map(|seconds| NOW.plus(Duration::from_secs(seconds)));
            let expected = Decision { kind, not_before, reason, error };
            assert_eq!(decide(reply, attempt, age), expected, "{reply:?}, attempt {attempt}, age {age}");
        }
    }

    #[test]
    fn every_status_is_decided_by_its_own_or_its_hundred() {
        for status in 0..=999 {
            let decision = decide(answered(status, Some(30)), 1, 0);
            let (kind, wait, error) = match status {
                200..=299 => (K::Delivered, None, None),
                300..=399 => (K::Retry, Some(10), Some(E::Redirect)),
                410 => (K::Disable, None, Some(E::Status)),
                429 | 502 | 503 | 504 => (K::Retry, Some(30), Some(E::Status)),
                _ => (K::Retry, Some(10), Some(E::Status)),
            };
            let not_before = wait.map(|seconds| NOW.plus(Duration::from_secs(seconds)));
            assert_eq!(
                (decision.kind, decision.not_before, decision.error),
                (kind, not_before, error),
                "{status}"
            );
        }
    }

    #[test]
    fn no_failure_is_anything_but_a_failure() {
        for class in E::ALL {
            for status in [None, Some(200), Some(410), Some(503)] {
                let decision = decide(Reply::Failed { class, status }, 1, 0);
                let not_before = Some(NOW.plus(Duration::from_secs(10)));
                assert_eq!(
                    (decision.kind, decision.not_before),
                    (K::Retry, not_before),
                    "{class:?} {status:?}"
                );
                assert_eq!(decision.error, Some(class));
                let last = decide(Reply::Failed { class, status }, 3, 0);
                assert_eq!(
                    (last.kind, last.reason),
                    (K::Dead, Some(DeadReason::AttemptsExhausted)),
                    "{class:?}"
                );
            }
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let table = [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("Sunday, 06-Nov-94 08:50:37 GMT", Some(60)),
            ("Monday, 07-Nov-94 08:49:37 GMT", Some(86_400)),
            // At most fifty years ahead, else a century earlier.
            ("Monday, 07-Nov-44 08:49:37 GMT", Some(1_578_009_600)),
            ("Monday, 06-Nov-45 08:49:37 GMT", Some(0)),
            ("Sun Nov  6 08:50:37 1994", Some(60)),
            ("Wed Nov 16 08:49:37 1994", Some(864_000)),
            ("99999999999999999999999", Some(u64::MAX)),
            // A leap second is as good as the one before.
            ("Sun, 06 Nov 1994 08:50:60 GMT", Some(82)),
            ("Sunday, 06-Nov-94 08:50:60 GMT", Some(82)),
            ("Sun Nov  6 08:50:60 1994", Some(82)),
            ("Sun, 06 Nov 1994 08:50:61 GMT", None),
            // Whatever the day of the week is called.
            ("Mon, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(252_618_189_022)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Tue, 29 Feb 2000 00:00:00 GMT", Some(167_670_623)),
            ("Mon, 29 Feb 1999 00:00:00 GMT", None),
            ("Sun, 06 Nov 1994 08:50:37 +0000", None),
            ("Sun, 06 Nov 1994 08:50:37 CET", None),
            ("Sun, 31 Feb 1994 08:50:37 GMT", None),
            ("Sunday, 06-Nov", None),
            ("-1", None),
            ("soon", None),
            ("", None),
            ("1.5", None),
        ];
        for (value, seconds) in table {
            let wait = retry_after(value, NOW).map(|wait| wait.as_secs());
            assert_eq!(wait, seconds, "{value:?}");
        }
    }
}
