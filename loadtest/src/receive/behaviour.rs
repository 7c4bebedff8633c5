//! How a path of the receiver answers. Pure: the answer follows from the behaviour and the number of the arrival.

use http::StatusCode;
use std::time::Duration;

/// Longest `/delay`: far beyond any delivery timeout, so `/hang` is the way to ask for more.
pub const MAX_DELAY: Duration = Duration::from_secs(600);

/// What a path does with a webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// `/ok`: 200.
    Ok,
    /// `/fail/N`: fails the first `times` arrivals of each webhook-id, then 200. `?status=` changes the 500.
    Fail {
        /// Arrivals that fail, per webhook-id.
        times: u32,
        /// What they are answered.
        status: StatusCode,
    },
    /// `/status/N`: always this status.
    Status(StatusCode),
    /// `/delay/100ms`, `/delay/2s`: 200 after a wait.
    Delay(Duration),
    /// `/hang`: never answers.
    Hang,
    /// `/drip`: 200, then a body of one byte a second that never ends.
    Drip,
    /// `/gone`: 410.
    Gone,
    /// `/redirect`: 302 to `/ok/redirected` of the same receiver.
    Redirect,
    /// `/reset`: ends the connection instead of answering.
    Reset,
    /// `/big`: 200, then a body without end, as fast as it is read.
    Big,
}

/// The behaviour of one request and what its query adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// What to do.
    pub behaviour: Behaviour,
    /// `?retry-after=SECONDS`: sent as `Retry-After` with every answer that is not a success.
    pub retry_after: Option<u32>,
}

/// One answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// This status, at once.
    Status(StatusCode),
    /// 200 after a wait.
    OkAfter(Duration),
    /// 302.
    Redirect,
    /// Nothing, ever.
    Hang,
    /// 200 and a slow endless body.
    Drip,
    /// 200 and a fast endless body.
    Big,
    /// The connection ends.
    Reset,
}

impl Behaviour {
    /// The behaviour that a path names by its first segments; what follows is a label: `/fail/2/orders` and
    /// `/fail/2/invoices` behave alike and are counted apart. `None` for paths that name none.
    pub fn of(path: &str, query: Option<&str>) -> Option<Self> {
        let mut segments = path.strip_prefix('/')?.split('/');
        let behaviour = match segments.next()? {
            "ok" => Self::Ok,
            "fail" => Self::Fail {
                times: segments.next()?.parse().ok()?,
                status: match parameter(query, "status") {
                    Some(text) => status(text)?,
                    None => StatusCode::INTERNAL_SERVER_ERROR,
                },
            },
            "status" => Self::Status(status(segments.next()?)?),
            "delay" => Self::Delay(duration(segments.next()?)?),
            "hang" => Self::Hang,
            "drip" => Self::Drip,
            "gone" => Self::Gone,
            "redirect" => Self::Redirect,
            "reset" => Self::Reset,
            "big" => Self::Big,
            _ => return None,
        };
        Some(behaviour)
    }

    /// The answer to the `arrival`-th arrival of one webhook-id, counted from 1.
    pub fn answer(self, arrival: u32) -> Answer {
        match self {
            Self::Ok => Answer::Status(StatusCode::OK),
            Self::Fail { times, status } if arrival <= times => Answer::Status(status),
            Self::Fail { .. } => Answer::Status(StatusCode::OK),
            Self::Status(status) => Answer::Status(status),
            Self::Delay(wait) => Answer::OkAfter(wait),
            Self::Hang => Answer::Hang,
            Self::Drip => Answer::Drip,
            Self::Gone => Answer::Status(StatusCode::GONE),
            Self::Redirect => Answer::Redirect,
            Self::Reset => Answer::Reset,
            Self::Big => Answer::Big,
        }
    }
}

impl Route {
    /// The route of a request, see [`Behaviour::of`].
    pub fn of(path: &str, query: Option<&str>) -> Option<Self> {
        Some(Self { behaviour: Behaviour::of(path, query)?, retry_after: retry_after(query) })
    }
}

impl Answer {
    /// Whether the sender gets a complete 2xx response. Endless bodies do not count: when their reader stops is
    /// its own choice, so what it made of them is asked on its side.
    pub fn is_success(self) -> bool {
        match self {
            Self::Status(status) => status.is_success(),
            Self::OkAfter(_) => true,
            Self::Redirect | Self::Hang | Self::Drip | Self::Big | Self::Reset => false,
        }
    }
}

/// `?retry-after=SECONDS` of a query.
pub fn retry_after(query: Option<&str>) -> Option<u32> {
    parameter(query, "retry-after")?.parse().ok()
}

/// A parameter of a query, as it is written there.
pub fn parameter<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    query?
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

fn status(text: &str) -> Option<StatusCode> {
    let status = StatusCode::from_bytes(text.as_bytes()).ok()?;
    // 1xx are interim: hyper sends none as a final answer.
    (!status.is_informational()).then_some(status)
}

/// `100ms` or `2s`, at most [`MAX_DELAY`].
fn duration(text: &str) -> Option<Duration> {
    let wait = match text.strip_suffix("ms") {
        Some(millis) => Duration::from_millis(millis.parse().ok()?),
        None => Duration::from_secs(text.strip_suffix('s')?.parse().ok()?),
    };
    (wait <= MAX_DELAY).then_some(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_its_behaviour_and_the_rest_is_a_label() {
        let fail =
            |times, status: u16| Behaviour::Fail { times, status: StatusCode::from_u16(status).unwrap() };
        for (path, query, expected) in [
            ("/ok", None, Some(Behaviour::Ok)),
            ("/ok/orders/eu", None, Some(Behaviour::Ok)),
            ("/fail/2", None, Some(fail(2, 500))),
            ("/fail/2/orders", Some("a=b&status=503"), Some(fail(2, 503))),
            ("/status/429", Some("retry-after=3"), Some(Behaviour::Status(StatusCode::TOO_MANY_REQUESTS))),
            ("/delay/100ms", None, Some(Behaviour::Delay(Duration::from_millis(100)))),
            ("/delay/2s/label", None, Some(Behaviour::Delay(Duration::from_secs(2)))),
            ("/gone", None, Some(Behaviour::Gone)),
            ("/", None, None),
            ("/fail", None, None),
            ("/fail/many", None, None),
            ("/status/101", None, None),
            ("/delay/3h", None, None),
            ("/delay/601s", None, None),
            ("/okay", None, None),
        ] {
            assert_eq!(Behaviour::of(path, query), expected, "{path}?{query:?}");
        }
        assert_eq!(Route::of("/status/429", Some("retry-after=3")).unwrap().retry_after, Some(3));
    }

    #[test]
    fn a_failing_path_fails_its_number_of_times_per_webhook() {
        let behaviour = Behaviour::of("/fail/2", None).unwrap();
        let answers: Vec<bool> = (1..=4).map(|arrival| behaviour.answer(arrival).is_success()).collect();
        assert_eq!(answers, [false, false, true, true]);
    }
}
