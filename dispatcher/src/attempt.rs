//! One HTTP attempt: connect, TLS, headers and body, all within one deadline.

use crate::{
    classify::{self, Reply},
    connect::{ConnectError, Dial, DialError, EndpointClient},
    headers::PreparedEvent,
    subscriptions::Endpoint,
};
use bytes::Bytes;
use floodway_schemas::{
    UnixMillis,
    config::Format,
    exchange::{self, Exchange, Timings},
    outcome::{ErrorClass, MAX_RESPONSE_BYTES},
};
use http::{Extensions, HeaderMap, HeaderValue, Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::{CaptureConnection, capture_connection};
use std::{
    error::Error as StdError,
    io,
    time::{Duration, Instant},
};

/// Most bytes of a response that are read: a well-behaved answer ends before, and its connection can be used again.
const MAX_READ_BYTES: usize = 64 * 1024;
/// Longest text about an error, in bytes.
const MAX_DETAIL_BYTES: usize = 200;
const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("Floodway/", env!("CARGO_PKG_VERSION")));

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
    status: Option<u16>,
    first_byte: Option<Duration>,
    response_headers: HeaderMap,
    dial: Option<Dial>,
}

/// Makes one attempt at `endpoint`, not longer than `timeout`. `record` asks for the exchange also of a success.
pub(crate) async fn attempt(
    client: &EndpointClient,
    endpoint: &Endpoint,
    event: &PreparedEvent,
    record: bool,
    timeout: Duration,
    now: UnixMillis,
) -> Report {
    let started = Instant::now();
    let mut course = Course::default();
    let (reply, detail, response) = match request(endpoint, event, now) {
        Err(failure) => (Reply::Failed { class: failure.class, status: None }, Some(failure.detail), None),
        Ok(request) => match tokio::time::timeout(timeout, send(client, request, started, &mut course)).await
        {
            Ok(Ok(answer)) => {
                let retry_after = answer.retry_after.and_then(|text| classify::retry_after(&text, now));
                (Reply::Answered { status: answer.status, retry_after }, None, answer.body)
            }
            Ok(Err(failure)) => {
                (Reply::Failed { class: failure.class, status: course.status }, Some(failure.detail), None)
            }
            Err(_) => {
                let detail = format!("no complete response within {} ms", timeout.as_millis());
                (Reply::Failed { class: ErrorClass::Timeout, status: course.status }, Some(detail), None)
            }
        },
    };
    let duration = started.elapsed();
    let succeeded = matches!(reply, Reply::Answered { status: 200..=299, .. });
    let exchange =
        (record || !succeeded).then(|| Box::new(describe(&course, endpoint, event, started, duration, now)));
    Report { reply, detail, response, duration, exchange }
}

/// The exchange of an attempt, for people.
fn describe(
    course: &Course,
    endpoint: &Endpoint,
    event: &PreparedEvent,
    started: Instant,
    total: Duration,
    now: UnixMillis,
) -> Exchange {
    let microseconds = |duration: Duration| u32::try_from(duration.as_micros()).unwrap_or(u32::MAX);
    // A connection that was begun before this attempt is one that was there.
    let reused = course.dial.as_ref().is_some_and(|dial| dial.began < started);
    let dial = course.dial.as_ref().filter(|_| !reused);
    let kept = |headers: &HeaderMap| {
        exchange::headers(headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())))
    };
    Exchange {
        address: course.dial.as_ref().and_then(|dial| dial.address).map(|address| address.to_string()),
        reused,
        timings: Timings {
            dns_us: dial.and_then(|dial| dial.dns).map(microseconds),
            connect_us: dial.and_then(|dial| dial.connect).map(microseconds),
            tls_us: dial.and_then(|dial| dial.tls).map(microseconds),
            first_byte_us: course.first_byte.map(microseconds),
            total_us: Some(microseconds(total)),
        },
        // Put together again rather than kept: most attempts succeed. The signature is not shown anyway.
        request_headers: kept(&request_headers(endpoint, event, now.0.div_euclid(1000), String::new())),
        response_headers: kept(&course.response_headers),
    }
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

struct Answer {
    status: u16,
    retry_after: Option<String>,
    body: Option<String>,
}

/// The signed request.
fn request(
    endpoint: &Endpoint,
    event: &PreparedEvent,
    now: UnixMillis,
) -> Result<Request<Full<Bytes>>, Failure> {
    let unusable = || Failure::new(ErrorClass::Protocol, "the URL cannot be addressed over HTTP");
    let uri = endpoint.uri.clone().ok_or_else(unusable)?;
    let body = match endpoint.subscription.format {
        Format::Data => event.body.clone(),
        Format::Cloudevents => event.envelope.clone(),
    };
    let timestamp = now.0.div_euclid(1000);
    let signature = endpoint.keys.sign(&event.message_id, timestamp, &body, now).ok_or_else(|| {
        Failure::new(ErrorClass::Secret, "the signing secret does not open with the configured sealing keys")
    })?;
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = uri;
    *request.headers_mut() = request_headers(endpoint, event, timestamp, signature);
    Ok(request)
}

fn request_headers(
    endpoint: &Endpoint,
    event: &PreparedEvent,
    timestamp: i64,
    signature: String,
) -> HeaderMap {
    let message = match endpoint.subscription.format {
        Format::Data => event.headers.clone(),
        Format::Cloudevents => event.structured_headers(),
    };
    // The subscription's own headers first, so that they replace none of ours.
    let mut headers = HeaderMap::with_capacity(endpoint.headers.len() + message.len() + 4);
    headers.extend(endpoint.headers.iter().cloned());
    // Of a map, in which every name is followed by its values: they replace.
    headers.extend(message);
    headers.insert(header::USER_AGENT, USER_AGENT);
    let ours = [
        ("webhook-id", event.message_id.clone()),
        ("webhook-timestamp", timestamp.to_string()),
        ("webhook-signature", signature),
    ];
    for (name, value) in ours {
        // Base64 and digits are always a header's value.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
    headers
}

/// Sends the request and reads the response; `course` has what is known so far at every point.
async fn send(
    client: &EndpointClient,
    mut request: Request<Full<Bytes>>,
    started: Instant,
    course: &mut Course,
) -> Result<Answer, Failure> {
    let connection = capture_connection(&mut request);
    let sent = {
        // Noted also when this is cut short while it waits for the response.
        let _noting = Noting { connection: &connection, dial: &mut course.dial };
        client.request(request).await
    };
    let response = sent.map_err(|error| {
        if course.dial.is_none() {
            course.dial = failed_dial(&error);
        }
        failure(&error, error.is_connect())
    })?;
    let (head, body) = response.into_parts();
    let code = head.status.as_u16();
    course.status = Some(code);
    course.first_byte = Some(started.elapsed());
    let retry_after =
        head.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()).map(str::to_owned);
    course.response_headers = head.headers;
    let body = read(body).await.map_err(|error| failure(&error, false))?;
    Ok(Answer { status: code, retry_after, body })
}

/// Notes the connection of a request when dropped.
struct Noting<'c> {
    connection: &'c CaptureConnection,
    dial: &'c mut Option<Dial>,
}

impl Drop for Noting<'_> {
    fn drop(&mut self) {
        let mut extras = Extensions::new();
        if let Some(connected) = self.connection.connection_metadata().as_ref() {
            connected.get_extras(&mut extras);
        }
        *self.dial = extras.remove::<Dial>();
    }
}

/// How far a connection came that was not made.
fn failed_dial(error: &(dyn StdError + 'static)) -> Option<Dial> {
    let mut cause = Some(error);
    while let Some(current) = cause {
        if let Some(failed) = current.downcast_ref::<DialError>() {
            return Some(failed.dial.clone());
        }
        cause = current.source();
    }
    None
}

/// The start of the body as text, `None` if it is empty. Reads no more than [`MAX_READ_BYTES`]: the rest is cut off with its connection.
async fn read(mut body: Incoming) -> Result<Option<String>, hyper::Error> {
    let mut kept = Vec::new();
    let mut seen = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        kept.extend_from_slice(&data[..data.len().min(MAX_RESPONSE_BYTES - kept.len())]);
        seen += data.len();
        if seen >= MAX_READ_BYTES {
            break;
        }
    }
    let mut text = String::from_utf8_lossy(&kept).into_owned();
    // Replacement characters take more bytes than what they replace.
    truncate(&mut text, MAX_RESPONSE_BYTES);
    Ok((!text.is_empty()).then_some(text))
}

fn truncate(text: &mut String, most: usize) {
    text.truncate(text.floor_char_boundary(most));
}

/// The class of a client's error, by the types along its chain of sources.
fn failure(error: &(dyn StdError + 'static), connecting: bool) -> Failure {
    let mut cause = Some(error);
    let mut last = error;
    while let Some(current) = cause {
        if let Some((class, detail)) = class_of(current) {
            return Failure::new(class, detail);
        }
        last = current;
        cause = current.source();
    }
    // Between the TCP connection and the first request there is only the TLS handshake.
    let class = if connecting { ErrorClass::Tls } else { ErrorClass::Protocol };
    Failure::new(class, last.to_string())
}

fn class_of(error: &(dyn StdError + 'static)) -> Option<(ErrorClass, String)> {
    if let Some(error) = error.downcast_ref::<ConnectError>() {
        return Some((error.class(), error.to_string()));
    }
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return Some((ErrorClass::Tls, error.to_string()));
    }
    if let Some(error) = error.downcast_ref::<io::Error>() {
        // An error wrapped by an I/O error is not among its sources.
        if let Some(class) = error.get_ref().and_then(|inner| class_of(inner)) {
            return Some(class);
        }
        let class = match error.kind() {
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => ErrorClass::Reset,
            io::ErrorKind::TimedOut => ErrorClass::Timeout,
            _ => return None,
        };
        return Some((class, error.to_string()));
    }
    let error = error.downcast_ref::<hyper::Error>()?;
    if error.is_parse() {
        Some((ErrorClass::Protocol, error.to_string()))
    } else if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        Some((ErrorClass::Reset, "the connection ended before the response did".to_owned()))
    } else if error.is_timeout() {
        Some((ErrorClass::Timeout, error.to_string()))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_classified_by_their_types_however_deep_they_are() {
        let tls = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, rustls::Error::DecryptError));
        let table: [(Box<dyn StdError>, ErrorClass); 6] = [
            (Box::new(ConnectError::Refused), ErrorClass::Refused),
            (Box::new(ConnectError::Failed(io::ErrorKind::ConnectionReset.into())), ErrorClass::Connect),
            (Box::new(tls), ErrorClass::Tls),
            (Box::new(io::Error::from(io::ErrorKind::ConnectionReset)), ErrorClass::Reset),
            (Box::new(io::Error::other(io::Error::from(io::ErrorKind::BrokenPipe))), ErrorClass::Reset),
            (Box::new(io::Error::other("?")), ErrorClass::Protocol),
        ];
        for (error, class) in table {
            assert_eq!(failure(error.as_ref(), false).class, class, "{error:?}");
        }
        assert_eq!(failure(&io::Error::other("?"), true).class, ErrorClass::Tls);
    }

    #[test]
    fn text_is_cut_between_characters() {
        let mut text = "aé".repeat(3);
        truncate(&mut text, 5);
        assert_eq!(text, "aéa");
    }
}
