//! The one decision about an attempt: delivered, retry at a time, dead with a reason, or disable the endpoint.
//!
//! Pure: the clock and the dice are arguments. Nothing else in the dispatcher looks at a status code to decide.

use floodway_schemas::{
    UnixMillis,
    outcome::{DeadReason, ErrorClass, OutcomeKind},
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
        Reply::Answered { status: 410, .. } => Decision {
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
    let Situation { policy, attempt, since, now, random, max_retry_after } = *situation;
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

/// `Sun, 06 Nov 1994 08:49:37 GMT`; the two obsolete forms are not read.
const HTTP_DATE: &[FormatItem<'_>] = format_description!(
    "[weekday repr:short], [day padding:zero] [month repr:short] [year] [hour]:[minute]:[second] GMT"
);

/// The wait that a `Retry-After` header asks for: seconds, or a date. `None` when it is neither.
pub(crate) fn retry_after(value: &str, now: UnixMillis) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at: OffsetDateTime = PrimitiveDateTime::parse(value, HTTP_DATE).ok()?.assume_utc();
    Some(UnixMillis::from_datetime(at).since(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ErrorClass as E;
    use OutcomeKind as K;

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
            },
        )
    }

    #[test]
    fn an_attempt_is_decided_by_this_table() {
        let failed = |class| Reply::Failed { class, status: None };
        // reply, attempt, age in s → kind, wait in s, reason, error
        let table = [
            (answered(200, None), 1, 0, K::Delivered, None, None, None),
            (answered(204, None), 3, 999, K::Delivered, None, None, None),
            (answered(299, Some(5)), 1, 0, K::Delivered, None, None, None),
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
    fn retry_after_is_seconds_or_a_date() {
        let table = [
            ("120", Some(120)),
            (" 0 ", Some(0)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
            ("", None),
            ("1.5", None),
        ];
        for (value, seconds) in table {
            assert_eq!(retry_after(value, NOW), seconds.map(Duration::from_secs), "{value:?}");
        }
    }
}
