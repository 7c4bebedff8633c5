//! Answers: 202 when everything was accepted, 207 when some was, a problem document when nothing was.

use crate::{
    batch::{Entry, EventId, Verdict},
    complete::{Completion, Fate},
    error::{RETRY_AFTER_SECONDS, Refusal},
    media::{ACCEPTED_CODINGS, ACCEPTED_TYPES},
    metrics::Metrics,
};
use bytes::Bytes;
use floodway_schemas::{
    MAX_EVENT_BYTES,
    problem::{PROBLEM_JSON, Problem},
};
use http::{
    HeaderValue, Response, StatusCode,
    header::{ACCEPT_ENCODING, ALLOW, CONTENT_TYPE, HeaderName, RETRY_AFTER, WWW_AUTHENTICATE},
};
use http_body_util::Full;
use serde::Serialize;
use uuid::Uuid;

/// What every request is answered with.
pub(crate) type Answer = Response<Full<Bytes>>;

const ACCEPT_POST: HeaderName = HeaderName::from_static("accept-post");
const JSON: &str = "application/json";
/// Bytes of an id in the answer, with its quotes and comma.
const ID_TEXT_BYTES: usize = 40;

/// One event in the answer.
#[derive(Debug, Serialize)]
struct EventResult<'a> {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a EventId<'a>>,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    duplicate_of: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
}

/// A problem document with Floodway's extension members.
#[derive(Debug, Serialize)]
struct ProblemBody<'a> {
    #[serde(flatten)]
    problem: &'a Problem,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    results: Option<&'a [EventResult<'a>]>,
}

#[derive(Debug, Serialize)]
struct MixedBody<'a> {
    results: &'a [EventResult<'a>],
}

/// Answers a request that was refused as a whole.
pub(crate) fn refused(refusal: &Refusal) -> Answer {
    let problem = refusal.problem();
    // Nothing of a refused request was enqueued.
    let outcome = (problem.status == 503).then_some("not_persisted");
    let mut answer = problem_answer(&ProblemBody { problem: &problem, outcome, results: None });
    let headers = answer.headers_mut();
    match refusal {
        Refusal::Unauthorized => drop(headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
        Refusal::MethodNotAllowed => drop(headers.insert(ALLOW, HeaderValue::from_static("POST"))),
        Refusal::UnsupportedMedia(_) => {
            drop(headers.insert(ACCEPT_POST, HeaderValue::from_static(ACCEPTED_TYPES)))
        }
        // RFC 9110, section 12.5.3.
        Refusal::UnsupportedCoding => {
            drop(headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(ACCEPTED_CODINGS)))
        }
        _ => {}
    }
    if let Some(seconds) = refusal.retry_after() {
        headers.insert(RETRY_AFTER, seconds.into());
    }
    answer
}

/// Answers a request whose events have been offered to Kafka.
pub(crate) fn settled(entries: &[Entry<'_>], completion: &Completion, metrics: &Metrics) -> Answer {
    if completion.is_all_delivered() {
        metrics.events_accepted.increment(entries.len() as u64);
        return accepted(entries);
    }
    // Reports may still come in after the deadline: the answer speaks of one moment.
    let fates = completion.fates();
    let results: Vec<_> = (0..entries.len()).map(|index| result(entries, index, &fates)).collect();
    results.iter().for_each(|result| count(result, metrics));
    let mut answer = match results.iter().any(|result| result.status == 202) {
        true => json_answer(StatusCode::MULTI_STATUS, JSON, to_json(&MixedBody { results: &results })),
        false => all_failed(&results),
    };
    if results.iter().any(|result| result.status == 503) {
        answer.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_SECONDS.into());
    }
    answer
}

/// 202 with the ids, in input order.
fn accepted(entries: &[Entry<'_>]) -> Answer {
    let mut body = Vec::with_capacity(32 + entries.len() * ID_TEXT_BYTES);
    body.extend_from_slice(b"{\"accepted\":");
    body.extend_from_slice(itoa::Buffer::new().format(entries.len()).as_bytes());
    body.extend_from_slice(b",\"ids\":[");
    for (index, entry) in entries.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        if let Some(id) = &entry.id {
            id.write_json(&mut body);
        }
    }
    body.extend_from_slice(b"]}");
    json_answer(StatusCode::ACCEPTED, JSON, body)
}

/// The worst status of the events, which are listed.
fn all_failed(results: &[EventResult<'_>]) -> Answer {
    let worst =
        results.iter().min_by_key(|result| severity_rank(result.status)).and_then(|r| r.problem.clone());
    // Every event that was not accepted has a problem, and there is at least one event.
    let mut problem = worst.unwrap_or_else(|| Problem::new("about:blank", "Service unavailable", 503));
    if results.len() > 1 {
        problem.detail = Some(format!("none of the {} events was accepted, see \"results\"", results.len()));
    }
    problem_answer(&ProblemBody { problem: &problem, outcome: None, results: Some(results) })
}

/// 503 is worse than 429, than 413, than 400: what may pass by itself comes first, so that clients repeat the request.
fn severity_rank(status: u16) -> u8 {
    match status {
        503 => 0,
        429 => 1,
        413 => 2,
        _ => 3,
    }
}

fn result<'a>(entries: &'a [Entry<'a>], index: usize, fates: &[Fate]) -> EventResult<'a> {
    let entry = &entries[index];
    let failed = |problem: Problem, outcome| EventResult {
        index,
        id: entry.id.as_ref(),
        status: problem.status,
        duplicate_of: None,
        outcome,
        problem: Some(problem),
    };
    match &entry.verdict {
        Verdict::Invalid(error) => failed(invalid(error.to_string()), None),
        Verdict::TooLarge(bytes) => failed(
            too_large(format!(
                "the event has {bytes} bytes with its attributes, the limit is {MAX_EVENT_BYTES}"
            )),
            None,
        ),
        // The first of its kind is never a repeat itself.
        Verdict::RepeatOf(first) => EventResult {
            index,
            id: entry.id.as_ref(),
            duplicate_of: Some(*first),
            ..result(entries, *first, fates)
        },
        Verdict::Offered => match fates[index] {
            Fate::Delivered => EventResult {
                index,
                id: entry.id.as_ref(),
                status: 202,
                duplicate_of: None,
                outcome: None,
                problem: None,
            },
            Fate::TooLarge => failed(too_large("Kafka does not take a record of this size".to_owned()), None),
            Fate::NotPersisted => failed(not_persisted(), Some("not_persisted")),
            Fate::Unknown | Fate::Pending => failed(unconfirmed(), Some("unknown")),
        },
    }
}

fn count(result: &EventResult<'_>, metrics: &Metrics) {
    let counter = match (result.duplicate_of, result.status, result.outcome) {
        (Some(_), ..) => &metrics.events_repeated,
        (_, 202, _) => &metrics.events_accepted,
        (_, 413, _) => &metrics.events_too_large,
        (_, 503, Some("not_persisted")) => &metrics.events_not_persisted,
        (_, 503, _) => &metrics.events_unknown,
        _ => &metrics.events_invalid,
    };
    counter.increment(1);
}

fn invalid(detail: String) -> Problem {
    Problem::new("urn:floodway:problem:invalid-event", "Invalid event", 400).with_detail(detail)
}

fn too_large(detail: String) -> Problem {
    Problem::new("urn:floodway:problem:event-too-large", "Event too large", 413).with_detail(detail)
}

fn not_persisted() -> Problem {
    Problem::new("urn:floodway:problem:not-persisted", "Event not persisted", 503)
        .with_detail("the queue to Kafka had no room; nothing was written, send the event again")
}

fn unconfirmed() -> Problem {
    Problem::new("urn:floodway:problem:unconfirmed", "Event not confirmed", 503).with_detail(
        "Kafka did not confirm the event in time and may have it; send it again with the same id",
    )
}

fn problem_answer(body: &ProblemBody<'_>) -> Answer {
    // Problems are made in this crate with valid statuses.
    let status = StatusCode::from_u16(body.problem.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    json_answer(status, PROBLEM_JSON, to_json(body))
}

fn json_answer(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

fn to_json(body: &impl Serialize) -> Vec<u8> {
    // These types have text keys and no custom serializers that fail: writing them to memory cannot fail.
    serde_json::to_vec(body).unwrap_or_default()
}

impl EventId<'_> {
    fn write_json(&self, out: &mut Vec<u8>) {
        match self {
            Self::Made(id) => {
                let mut text = Uuid::encode_buffer();
                out.push(b'"');
                out.extend_from_slice(id.as_hyphenated().encode_lower(&mut text).as_bytes());
                out.push(b'"');
            }
            // Visible ASCII may hold quotes and backslashes.
            Self::Sent(text) if !text.contains(['"', '\\']) => {
                out.push(b'"');
                out.extend_from_slice(text.as_bytes());
                out.push(b'"');
            }
            Self::Sent(text) => out.append(&mut to_json(text)),
        }
    }
}

impl Serialize for EventId<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Made(id) => serializer.collect_str(id),
            Self::Sent(text) => serializer.serialize_str(text),
        }
    }
}
