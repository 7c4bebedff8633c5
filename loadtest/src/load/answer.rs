//! Answers on the wire: where one ends, and what it says. Pure.

use crate::send::answer::{Fate, read_answer};
use std::mem::MaybeUninit;
use thiserror::Error;

/// Most headers of an answer; ingest sends five.
const MAX_HEADERS: usize = 64;
/// Largest head of an answer, in bytes.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Largest body of an answer, in bytes: a result for each of 10,000 events fits.
const MAX_BODY_BYTES: usize = 16 * 1024 * 1024;

/// The head of a final answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    /// Where the body starts: behind interim answers and the head.
    pub(super) body_at: usize,
    pub(super) body_bytes: usize,
    /// Whether the connection can be used again.
    pub(super) keep_alive: bool,
}

/// Bytes that are no answer that can be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum Malformed {
    #[error("not an HTTP answer: {0}")]
    NotHttp(#[from] httparse::Error),
    #[error("the answer's head has more than {MAX_HEAD_BYTES} bytes")]
    HeadTooLarge,
    #[error("the answer does not say how long it is, or is too long")]
    Length,
}

impl Head {
    /// Bytes of the whole answer.
    pub(super) fn end(&self) -> usize {
        self.body_at + self.body_bytes
    }
}

/// Reads the head that the bytes start with; `None` if it is not complete. Interim answers (1xx) are passed over.
pub(super) fn read_head(bytes: &[u8]) -> Result<Option<Head>, Malformed> {
    let mut start = 0;
    loop {
        let mut headers = [const { MaybeUninit::uninit() }; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut response,
            &bytes[start..],
            &mut headers,
        )?;
        let (httparse::Status::Complete(length), Some(status)) = (parsed, response.code) else {
            if bytes.len() > MAX_HEAD_BYTES {
                return Err(Malformed::HeadTooLarge);
            }
            return Ok(None);
        };
        start += length;
        if status < 200 {
            continue;
        }
        let keep_alive = response.version == Some(1) && !closes(response.headers);
        let body_bytes = match status {
            204 | 304 => 0,
            _ => content_length(response.headers)?,
        };
        return Ok(Some(Head { status, body_at: start, body_bytes, keep_alive }));
    }
}

fn content_length(headers: &[httparse::Header<'_>]) -> Result<usize, Malformed> {
    let mut length = None;
    for header in headers {
        // Chunks are not read: Floodway's ingest never sends any.
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(Malformed::Length);
        }
        if header.name.eq_ignore_ascii_case("content-length") {
            let digits = header.value.iter().all(u8::is_ascii_digit);
            let value = digits.then(|| str::from_utf8(header.value).ok()?.parse().ok()).flatten();
            if value.is_none() || length.is_some_and(|length| Some(length) != value) {
                return Err(Malformed::Length);
            }
            length = value;
        }
    }
    length.filter(|length| *length <= MAX_BODY_BYTES).ok_or(Malformed::Length)
}

fn closes(headers: &[httparse::Header<'_>]) -> bool {
    headers.iter().any(|header| {
        header.name.eq_ignore_ascii_case("connection") && header.value.eq_ignore_ascii_case(b"close")
    })
}

/// What became of the events of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Settled {
    /// All alike.
    All(Fate),
    /// Each for itself, in the order of the request.
    Each(Vec<Fate>),
}

/// Reads answers to requests of one size.
#[derive(Debug, Clone)]
pub(super) struct Classifier {
    events: usize,
    /// What the body of an answer starts with that accepts everything.
    accepted: Vec<u8>,
}

impl Classifier {
    /// For requests of so many events.
    pub(super) fn new(events: usize) -> Self {
        Self { events, accepted: format!("{{\"accepted\":{events},").into_bytes() }
    }

    /// What an answer says about the events. That everything was accepted is seen without parsing JSON.
    pub(super) fn classify(&self, status: u16, body: &[u8]) -> Settled {
        if status == 202 && body.starts_with(&self.accepted) {
            return Settled::All(Fate::Accepted);
        }
        let fates = read_answer(status, body, self.events);
        match fates.first() {
            Some(&first) if fates.iter().all(|fate| *fate == first) => Settled::All(first),
            _ => Settled::Each(fates),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ANSWER: &[u8] =
        b"HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\nContent-Length: 26\r\n\
        date: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n{\"accepted\":1,\"ids\":[\"a\"]}";

    #[test]
    fn an_answer_is_read_wherever_it_is_split() {
        let expected = Head { status: 202, body_at: ANSWER.len() - 26, body_bytes: 26, keep_alive: true };
        for end in 0..=ANSWER.len() {
            let head = read_head(&ANSWER[..end]).unwrap();
            assert_eq!(head, (end >= expected.body_at).then_some(expected), "{end}");
        }
        assert_eq!(expected.end(), ANSWER.len());
    }

    #[test]
    fn an_answer_ends_where_it_says_whatever_follows() {
        let twice = [ANSWER, ANSWER].concat();
        assert_eq!(read_head(&twice), read_head(ANSWER));
        let interim = [b"HTTP/1.1 100 Continue\r\n\r\n".as_slice(), ANSWER].concat();
        let head = read_head(&interim).unwrap().unwrap();
        assert_eq!((head.status, head.end()), (202, interim.len()));
        assert_eq!(read_head(&interim[..30]), Ok(None));
    }

    #[test]
    fn a_server_that_will_close_is_believed() {
        for (text, keep_alive) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\nconnection: Close\r\ncontent-length: 0\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", false),
            ("HTTP/1.1 204 No Content\r\n\r\n", true),
        ] {
            assert_eq!(read_head(text.as_bytes()).unwrap().unwrap().keep_alive, keep_alive, "{text}");
        }
    }

    #[test]
    fn what_has_no_clear_end_is_malformed() {
        for text in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        ] {
            assert_eq!(read_head(text.as_bytes()), Err(Malformed::Length), "{text}");
        }
        assert!(matches!(read_head(b"SSH-2.0-OpenSSH\r\n"), Err(Malformed::NotHttp(_))));
        let endless = [b"HTTP/1.1 200 OK\r\na: ".as_slice(), &[b'x'; MAX_HEAD_BYTES]].concat();
        assert_eq!(read_head(&endless), Err(Malformed::HeadTooLarge));
    }

    #[test]
    fn everything_accepted_is_seen_by_how_the_body_starts() {
        let classifier = Classifier::new(2);
        for (status, body, expected) in [
            // Not JSON: proof that it was not parsed.
            (202, r#"{"accepted":2,…"#, Settled::All(Fate::Accepted)),
            (202, r#"{"ids":["a","b"],"accepted":2}"#, Settled::All(Fate::Accepted)),
            (202, r#"{"accepted":20,"ids":[]}"#, Settled::All(Fate::Unknown(202))),
            (202, "", Settled::All(Fate::Unknown(202))),
            (503, r#"{"outcome":"not_persisted"}"#, Settled::All(Fate::NotPersisted(503))),
            (429, "{}", Settled::All(Fate::NotPersisted(429))),
            (401, "", Settled::All(Fate::Refused(401))),
            (
                207,
                r#"{"results":[{"index":0,"status":202},{"index":1,"status":400}]}"#,
                Settled::Each(vec![Fate::Accepted, Fate::Refused(400)]),
            ),
        ] {
            assert_eq!(classifier.classify(status, body.as_bytes()), expected, "{status} {body}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_incomplete_or_malformed_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = read_head(&bytes);
            let _ = read_head(&[b"HTTP/1.1 200 OK\r\n".as_slice(), &bytes].concat());
            let _ = Classifier::new(3).classify(207, &bytes);
        }
    }
}
