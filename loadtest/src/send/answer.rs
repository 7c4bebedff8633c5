//! What ingest's answer says about each event of a request. Pure.

use serde::Deserialize;

/// What became of one event in one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Acknowledged: it is durable.
    Accepted,
    /// Refused for good, with this status: sending it again would change nothing.
    Refused(u16),
    /// Not accepted, and certainly not stored: to be sent again.
    NotPersisted(u16),
    /// Nobody knows whether it is stored: to be sent again, under the same id. Status 0 means no response.
    Unknown(u16),
}

/// Answers in full and with one result per event.
#[derive(Deserialize)]
struct Body {
    accepted: Option<u64>,
    results: Option<Vec<EventResult>>,
    outcome: Option<String>,
}

#[derive(Deserialize)]
struct EventResult {
    index: usize,
    status: u16,
    outcome: Option<String>,
    problem: Option<Problem>,
}

#[derive(Deserialize)]
struct Problem {
    outcome: Option<String>,
}

/// The fate of each of the `sent` events of a request, in their order. What the answer does not mention is unknown.
pub fn read_answer(status: u16, body: &[u8], sent: usize) -> Vec<Fate> {
    let body = serde_json::from_slice::<Body>(body).ok();
    if let Some(results) = body.as_ref().and_then(|body| body.results.as_ref()) {
        return read_results(results, status, sent);
    }
    if status == 202 {
        let complete = body.is_some_and(|body| body.accepted == Some(sent as u64));
        return vec![if complete { Fate::Accepted } else { Fate::Unknown(status) }; sent];
    }
    vec![fate(status, body.as_ref().and_then(|body| body.outcome.as_deref())); sent]
}

fn read_results(results: &[EventResult], status: u16, sent: usize) -> Vec<Fate> {
    let mut fates = vec![Fate::Unknown(status); sent];
    for result in results {
        let problem = result.problem.as_ref().and_then(|problem| problem.outcome.as_deref());
        if let Some(slot) = fates.get_mut(result.index) {
            *slot = fate(result.status, result.outcome.as_deref().or(problem));
        }
    }
    fates
}

fn fate(status: u16, outcome: Option<&str>) -> Fate {
    match (status, outcome) {
        (200..=299, _) => Fate::Accepted,
        (429, _) | (_, Some("not_persisted")) => Fate::NotPersisted(status),
        (408 | 500..=599, _) | (_, Some("unknown")) => Fate::Unknown(status),
        _ => Fate::Refused(status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Fate::{Accepted, NotPersisted, Refused, Unknown};

    #[test]
    fn every_event_of_a_request_gets_its_fate() {
        let mixed = r#"{"results":[{"index":1,"id":"b","status":400,"problem":{"type":"x","title":"y"}},
            {"index":0,"id":"a","status":202},{"index":2,"id":"c","status":503,"problem":{"outcome":"unknown"}},
            {"index":3,"id":"d","status":503,"outcome":"not_persisted"},{"index":4,"id":"e","status":429}]}"#;
        for (status, body, expected) in [
            (202, r#"{"accepted":2,"ids":["a","b"]}"#, vec![Accepted, Accepted]),
            (202, r#"{"accepted":1,"ids":["a"]}"#, vec![Unknown(202), Unknown(202)]),
            (202, "", vec![Unknown(202)]),
            (
                207,
                mixed,
                vec![
                    Accepted,
                    Refused(400),
                    Unknown(503),
                    NotPersisted(503),
                    NotPersisted(429),
                    Unknown(207),
                ],
            ),
            (429, r#"{"type":"urn:floodway:problem:rate-limited","status":429}"#, vec![NotPersisted(429)]),
            (503, r#"{"outcome":"not_persisted"}"#, vec![NotPersisted(503); 2]),
            (503, r#"{"outcome":"unknown"}"#, vec![Unknown(503)]),
            (503, "overloaded", vec![Unknown(503)]),
            (413, "{}", vec![Refused(413)]),
            (400, "not json", vec![Refused(400)]),
        ] {
            assert_eq!(read_answer(status, body.as_bytes(), expected.len()), expected, "{status} {body}");
        }
    }
}
