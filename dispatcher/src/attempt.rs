//! One HTTP attempt: connect, TLS, headers and body, all within one deadline.

use crate::{
    classify::{self, Reply},
    connect::{ConnectError, Dial, io_class},
    connection::{Answer, ExchangeError, Noted},
    delivery::{Delivery, Order},
    headers::{Mode, PreparedEvent, put_line},
    pool::Pool,
    subscriptions::Endpoint,
    target::Target,
};
use bytes::Bytes;
use floodway_schemas::{
    UnixMillis,
    exchange::{self, Exchange, Header, Timings},
    outcome::{ErrorClass, MAX_RESPONSE_BYTES},
};
use std::{
    io::Write,
    pin::pin,
    time::{Duration, Instant},
};

/// How often a request is made again within an attempt when the endpoint has seen nothing of it, or says that it has not processed it.
const MAX_REPEATS: usize = 2;
/// Longest text about an error, in bytes.
const MAX_DETAIL_BYTES: usize = 200;

/// What an attempt met, and what history wants to know.
#[derive(Debug)]
pub(crate) struct Report {
    /// For the decision.
    pub(crate) reply: Reply,
    /// What went wrong, for people.
    pub(crate) detail: Option<String>,
    /// Start of the response body.
    pub(crate) response: Option<String>,
    /// How long it took.
    pub(crate) duration: Duration,
    /// What went over the wire: of failures, and of successes that are recorded.
    pub(crate) exchange: Option<Box<Exchange>>,
}

/// What is learned in the course of an attempt, also of one that is cut short.
#[derive(Default)]
struct Course {
    dial: Dial,
    noted: Noted,
}

/// Makes one attempt at a delivery's endpoint, not longer than `timeout`.
pub(crate) async fn attempt(pool: &Pool, delivery: &Delivery, timeout: Duration, now: UnixMillis) -> Report {
    let Delivery { order: Order { event, record, .. }, endpoint, .. } = delivery;
    let started = Instant::now();
    let mut course = Course::default();
    let mode = Mode::of(event, &endpoint.subscription);
    let body = event.body(mode);
    let request = request(endpoint, delivery.target(), event, mode, &body, now);
    let (reply, detail, response) = match &request {
        Err(failure) => {
            (Reply::Failed { class: failure.class, status: None }, Some(failure.detail.clone()), None)
        }
        Ok(request) => {
            let made = {
                // Pinned where it is made: the timeout would copy it.
                let make = pin!(request.make(pool, &mut course));
                tokio::time::timeout(timeout, make).await
            };
            match made {
                Ok(Ok(answer)) => {
                    let retry_after = answer.retry_after.and_then(|text| classify::retry_after(&text, now));
                    (Reply::Answered { status: answer.status, retry_after }, None, text(&answer.body))
                }
                Ok(Err(failure)) => {
                    let status = course.noted.status;
                    (Reply::Failed { class: failure.class, status }, Some(failure.detail), None)
                }
                Err(_) => {
                    let detail = format!("no complete response within {} ms", timeout.as_millis());
                    let status = course.noted.status;
                    (Reply::Failed { class: ErrorClass::Timeout, status }, Some(detail), None)
                }
            }
        }
    };
    let duration = started.elapsed();
    let succeeded = matches!(reply, Reply::Answered { status: 200..=299, .. });
    let exchange =
        (*record || !succeeded).then(|| Box::new(course.describe(request.as_ref().ok(), started, duration)));
    Report { reply, detail, response, duration, exchange }
}

impl Course {
    /// The exchange of an attempt, for people.
    fn describe(&self, request: Option<&Request<'_>>, started: Instant, total: Duration) -> Exchange {
        let microseconds = |duration: Duration| u32::try_from(duration.as_micros()).unwrap_or(u32::MAX);
        let Self { dial, noted } = self;
        let mut sent = Vec::new();
        if let Some(request) = request {
            // Put together again rather than kept: most attempts succeed.
            request.put_head(&mut sent);
        }
        Exchange {
            address: dial.address.map(|address| address.to_string()),
            reused: dial.reused,
            timings: Timings {
                dns_us: dial.dns.map(microseconds),
                connect_us: dial.connect.map(microseconds),
                tls_us: dial.tls.map(microseconds),
                first_byte_us: noted.head_at.map(|at| microseconds(at.saturating_duration_since(started))),
                total_us: Some(microseconds(total)),
            },
            request_headers: header_lines(&sent),
            response_headers: header_lines(&noted.head),
        }
    }
}

/// The headers of a message's head; of the last one, when others came before it.
fn header_lines(head: &[u8]) -> Vec<Header> {
    let head = String::from_utf8_lossy(head);
    let last = head.trim_end().rsplit("\r\n\r\n").next().unwrap_or_default();
    let lines = last.lines().skip(1).filter_map(|line| line.split_once(':'));
    exchange::headers(lines.map(|(name, value)| (name.trim(), value.trim().as_bytes())))
}

/// Why an attempt failed.
struct Failure {
    class: ErrorClass,
    detail: String,
}

impl Failure {
    fn new(class: ErrorClass, detail: impl Into<String>) -> Self {
        let mut detail = detail.into();
        truncate(&mut detail, MAX_DETAIL_BYTES);
        Self { class, detail }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self::new(error.class(), error.to_string())
    }
}

impl From<ExchangeError> for Failure {
    fn from(error: ExchangeError) -> Self {
        let class = match &error {
            ExchangeError::Unsent(error) | ExchangeError::Io(error) => {
                io_class(error).unwrap_or(ErrorClass::Protocol)
            }
            ExchangeError::Ended | ExchangeError::Refused(_) => ErrorClass::Reset,
            ExchangeError::Http2(error) => http2_class(error),
            ExchangeError::Invalid(_) | ExchangeError::Http1Required(_) => ErrorClass::Protocol,
        };
        Self::new(class, error.to_string())
    }
}

/// The class of an HTTP/2 connection's or stream's failure.
fn http2_class(error: &h2::Error) -> ErrorClass {
    match error.get_io() {
        Some(error) => io_class(error).unwrap_or(ErrorClass::Protocol),
        None if error.is_remote() => ErrorClass::Reset,
        None => ErrorClass::Protocol,
    }
}

/// A signed request.
struct Request<'a> {
    endpoint: &'a Endpoint,
    target: &'a Target,
    event: &'a PreparedEvent,
    mode: Mode,
    body: &'a Bytes,
    /// In seconds.
    timestamp: i64,
    signature: String,
}

fn request<'a>(
    endpoint: &'a Endpoint,
    target: Option<&'a Target>,
    event: &'a PreparedEvent,
    mode: Mode,
    body: &'a Bytes,
    now: UnixMillis,
) -> Result<Request<'a>, Failure> {
    let unusable = || Failure::new(ErrorClass::Protocol, "the URL cannot be addressed over HTTP");
    let target = target.ok_or_else(unusable)?;
    let timestamp = now.0.div_euclid(1000);
    let signature = endpoint.keys.sign(&event.message_id, timestamp, body, now).ok_or_else(|| {
        Failure::new(ErrorClass::Secret, "the signing secret does not open with the configured sealing keys")
    })?;
    Ok(Request { endpoint, target, event, mode, body, timestamp, signature })
}

impl Request<'_> {
    /// Sends it and reads the response; `course` has what is known so far at every point.
    async fn make(&self, pool: &Pool, course: &mut Course) -> Result<Answer, Failure> {
        let Course { dial, noted } = course;
        let tenant = self.endpoint.subscription.tenant;
        let mut lease = pool.connection(&self.target.origin, tenant, dial).await?;
        let mut repeats = 0..MAX_REPEATS;
        let answer = loop {
            let made = lease.exchange(|out| self.put_head(out), self.body, noted).await;
            let may_repeat = match &made {
                // Closed while it was not used: the endpoint has seen nothing of the request.
                Err(ExchangeError::Unsent(_)) => lease.is_reused(),
                Err(ExchangeError::Refused(_)) => true,
                Err(ExchangeError::Http1Required(_)) => {
                    lease.require_http1();
                    true
                }
                _ => false,
            };
            if !may_repeat || repeats.next().is_none() {
                break made?;
            }
            Box::pin(lease.replace(tenant, dial)).await?;
        };
        if answer.reusable {
            lease.keep(Instant::now());
        }
        Ok(answer)
    }

    /// Writes the request up to the empty line.
    fn put_head(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.target.head);
        self.event.put_headers(self.mode, out);
        // Base64 and digits are always a header's value.
        put_line(out, "webhook-id", self.event.message_id.as_bytes());
        put_line(out, "webhook-signature", self.signature.as_bytes());
        // Writing to memory cannot fail.
        let _ = write!(
            out,
            "webhook-timestamp: {}\r\ncontent-length: {}\r\n\r\n",
            self.timestamp,
            self.body.len()
        );
    }
}

/// The start of a body as text, `None` if it is empty.
fn text(body: &[u8]) -> Option<String> {
    let mut text = String::from_utf8_lossy(body).into_owned();
    // Replacement characters take more bytes than what they replace.
    truncate(&mut text, MAX_RESPONSE_BYTES);
    (!text.is_empty()).then_some(text)
}

fn truncate(text: &mut String, most: usize) {
    text.truncate(text.floor_char_boundary(most));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn failures_are_classified_by_what_caused_them() {
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        let table = [
            (Failure::from(ConnectError::Refused), ErrorClass::Refused),
            (Failure::from(ConnectError::Failed(io::ErrorKind::ConnectionReset.into())), ErrorClass::Connect),
            (Failure::from(ExchangeError::Io(reset)), ErrorClass::Reset),
            (Failure::from(ExchangeError::Ended), ErrorClass::Reset),
            (Failure::from(ExchangeError::Io(io::Error::other("?"))), ErrorClass::Protocol),
        ];
        for (failure, class) in table {
            assert_eq!(failure.class, class, "{}", failure.detail);
        }
    }

    #[test]
    fn the_headers_of_the_final_response_are_kept() {
        let head =
            b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\nServer: a: b\r\nx-token: y\r\n\r\n";
        let kept = header_lines(head);
        let kept: Vec<_> = kept.iter().map(|header| (&*header.name, &*header.value)).collect();
        assert_eq!(kept, [("server", "a: b"), ("x-token", "[redacted]")]);
        assert!(header_lines(b"").is_empty());
    }

    #[test]
    fn text_is_cut_between_characters() {
        let mut text = "aé".repeat(3);
        truncate(&mut text, 5);
        assert_eq!(text, "aéa");
    }
}
