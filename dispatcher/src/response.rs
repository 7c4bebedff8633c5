//! Reading HTTP/1 responses. Pure: bytes in, what they say out.
//!
//! Whatever is unusual ends the connection's use, and whatever is ambiguous is an error: a connection is given to the next
//! request only when this response ended where it said it would.

use floodway_schemas::outcome::MAX_RESPONSE_BYTES;

/// Most bytes of a response's head.
pub(crate) const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Most bytes of a body that are read: a well-behaved answer ends before, and its connection can be used again.
pub(crate) const MAX_BODY_BYTES: usize = 64 * 1024;
/// Headers of a response for which there is room at once, and the most that there may be.
const FEW_HEADERS: usize = 24;
pub(crate) const MAX_HEADERS: usize = 128;
/// Most hexadecimal digits of a chunk's size.
const MAX_SIZE_DIGITS: u32 = 15;

/// Something other than HTTP, or beyond the limits.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid HTTP response: {0}")]
pub(crate) struct InvalidResponse(pub(crate) &'static str);

/// The head of a final response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    /// Bytes that it and interim responses before it took.
    pub(crate) len: usize,
    /// Its status.
    pub(crate) status: u16,
    /// Its `Retry-After`.
    pub(crate) retry_after: Option<String>,
    /// How the body ends.
    pub(crate) framing: Framing,
    /// Whether another request may follow on the connection.
    pub(crate) keep_alive: bool,
}

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// After so many bytes.
    Length(u64),
    /// With the last chunk.
    Chunked,
    /// With the connection.
    UntilClose,
}

impl Head {
    /// The head that `bytes` begin with, `None` when it is not complete. Interim responses are passed over.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Self>, InvalidResponse> {
        let mut begin = 0;
        loop {
            let Some(mut head) = parse_one(&bytes[begin..])? else {
                return if bytes.len() >= MAX_HEAD_BYTES {
                    Err(InvalidResponse("too large a head"))
                } else {
                    Ok(None)
                };
            };
            begin += head.len;
            match head.status {
                101 => return Err(InvalidResponse("a change of protocols that nobody asked for")),
                100..=199 => {}
                _ => {
                    head.len = begin;
                    return Ok(Some(head));
                }
            }
        }
    }
}

fn parse_one(bytes: &[u8]) -> Result<Option<Head>, InvalidResponse> {
    match parse_with::<FEW_HEADERS>(bytes) {
        Err(httparse::Error::TooManyHeaders) => parse_with::<MAX_HEADERS>(bytes),
        parsed => parsed,
    }
    .map_err(|error| match error {
        httparse::Error::TooManyHeaders => InvalidResponse("too many headers"),
        httparse::Error::Status => InvalidResponse("its status"),
        httparse::Error::Version => InvalidResponse("its version"),
        httparse::Error::Token => InvalidResponse("its first line"),
        _ => InvalidResponse("its headers"),
    })?
    .transpose()
}

type Parsed = Result<Option<Result<Head, InvalidResponse>>, httparse::Error>;

fn parse_with<const HEADERS: usize>(bytes: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(len) = response.parse(bytes)? else { return Ok(None) };
    Ok(Some(head(&response, len)))
}

fn head(response: &httparse::Response<'_, '_>, len: usize) -> Result<Head, InvalidResponse> {
    let status = response.code.unwrap_or_default();
    let mut keep_alive = response.version == Some(1);
    let (mut length, mut coding, mut retry_after) = (None, None, None);
    for header in response.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        match header.name.len() {
            14 if is("content-length") => {
                let stated = parse_length(header.value)?;
                if length.replace(stated).is_some_and(|before| before != stated) {
                    return Err(InvalidResponse("two lengths"));
                }
            }
            17 if is("transfer-encoding") => coding = Some(header.value),
            10 if is("connection") => keep_alive &= !has_token(header.value, b"close"),
            11 if is("retry-after") => {
                retry_after = std::str::from_utf8(header.value).ok().map(str::to_owned)
            }
            _ => {}
        }
    }
    let framing = match (coding, length) {
        _ if matches!(status, 204 | 304) => Framing::Length(0),
        (Some(coding), _) if ends_chunked(coding) => Framing::Chunked,
        (Some(_), _) | (None, None) => Framing::UntilClose,
        (None, Some(length)) => Framing::Length(length),
    };
    // With both, somebody on the way may have read the other one.
    keep_alive &= framing != Framing::UntilClose && !(coding.is_some() && length.is_some());
    Ok(Head { len, status, retry_after, framing, keep_alive })
}

fn parse_length(value: &[u8]) -> Result<u64, InvalidResponse> {
    let value = value.trim_ascii();
    let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    digits
        .then(|| std::str::from_utf8(value).ok()?.parse().ok())
        .flatten()
        .ok_or(InvalidResponse("its length"))
}

fn has_token(value: &[u8], token: &[u8]) -> bool {
    value.split(|&byte| byte == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(token))
}

fn ends_chunked(coding: &[u8]) -> bool {
    coding
        .rsplit(|&byte| byte == b',')
        .next()
        .is_some_and(|last| last.trim_ascii().eq_ignore_ascii_case(b"chunked"))
}

/// A body on its way: finds its end and keeps its start.
#[derive(Debug)]
pub(crate) struct Body {
    state: State,
    kept: Vec<u8>,
    /// Bytes read, those of the framing included.
    seen: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Fixed(u64),
    UntilClose,
    /// In a chunk's size: its value and its digits so far.
    Size(u64, u32),
    /// After it, up to the end of the line.
    Extension(u64),
    Chunk(u64),
    /// The line's end after a chunk.
    ChunkEnd,
    /// In a line after the last chunk: whether it is empty so far.
    Trailer(bool),
    Done,
}

/// How far a body has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// More is to come.
    Open,
    /// It ended; so many bytes of the input were its own.
    Ended(usize),
    /// It is longer than what is read.
    Long,
}

impl Body {
    /// A body of which nothing was read.
    pub(crate) fn new(framing: Framing) -> Self {
        let state = match framing {
            Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Fixed(length),
            Framing::Chunked => State::Size(0, 0),
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, kept: Vec::new(), seen: 0 }
    }

    /// Takes the next bytes.
    pub(crate) fn feed(&mut self, input: &[u8]) -> Result<Stage, InvalidResponse> {
        let mut at = 0;
        while self.state != State::Done && at < input.len() {
            at += self.step(&input[at..])?;
        }
        self.seen += at;
        Ok(match self.state {
            State::Done => Stage::Ended(at),
            _ if self.seen >= MAX_BODY_BYTES => Stage::Long,
            _ => Stage::Open,
        })
    }

    /// Whether the body ended when the connection ends here.
    pub(crate) fn ends_with_connection(&self) -> bool {
        matches!(self.state, State::UntilClose | State::Done)
    }

    /// What was kept, at most [`MAX_RESPONSE_BYTES`].
    pub(crate) fn into_kept(self) -> Vec<u8> {
        self.kept
    }

    /// Takes some of the input, which is not empty; returns how much.
    fn step(&mut self, input: &[u8]) -> Result<usize, InvalidResponse> {
        let byte = input[0];
        let (next, taken) = match self.state {
            State::Fixed(left) => {
                let taken = self.keep(input, left);
                let left = left - taken as u64;
                (if left == 0 { State::Done } else { State::Fixed(left) }, taken)
            }
            State::UntilClose => (State::UntilClose, self.keep(input, u64::MAX)),
            State::Size(size, digits) => match char::from(byte).to_digit(16) {
                Some(digit) if digits < MAX_SIZE_DIGITS => {
                    (State::Size(size * 16 + u64::from(digit), digits + 1), 1)
                }
                None if digits > 0 && matches!(byte, b';' | b' ' | b'\t' | b'\r' | b'\n') => {
                    (State::Extension(size), 0)
                }
                _ => return Err(InvalidResponse("the size of a chunk")),
            },
            State::Extension(size) => match byte {
                b'\n' if size == 0 => (State::Trailer(true), 1),
                b'\n' => (State::Chunk(size), 1),
                _ => (State::Extension(size), 1),
            },
            State::Chunk(left) => {
                let taken = self.keep(input, left);
                let left = left - taken as u64;
                (if left == 0 { State::ChunkEnd } else { State::Chunk(left) }, taken)
            }
            State::ChunkEnd => match byte {
                b'\r' => (State::ChunkEnd, 1),
                b'\n' => (State::Size(0, 0), 1),
                _ => return Err(InvalidResponse("the end of a chunk")),
            },
            State::Trailer(is_empty) => match byte {
                b'\n' if is_empty => (State::Done, 1),
                b'\n' => (State::Trailer(true), 1),
                b'\r' => (State::Trailer(is_empty), 1),
                _ => (State::Trailer(false), 1),
            },
            State::Done => (State::Done, 0),
        };
        self.state = next;
        Ok(taken)
    }

    /// Keeps the start of the body; returns how much of the input belongs to it, at most `left`.
    fn keep(&mut self, input: &[u8], left: u64) -> usize {
        let taken = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        let room = MAX_RESPONSE_BYTES - self.kept.len();
        self.kept.extend_from_slice(&input[..taken.min(room)]);
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Option<Head>, InvalidResponse> {
        Head::parse(text.as_bytes())
    }

    #[test]
    fn a_head_says_how_the_body_ends_and_whether_the_connection_goes_on() {
        use Framing::{Chunked, Length, UntilClose};
        // status and headers → framing, keep-alive
        let table = [
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n", Length(3), true),
            ("HTTP/1.1 200\r\nContent-Length: 3\r\nContent-Length: 3\r\n", Length(3), true),
            ("HTTP/1.1 200 OK\r\nConnection: Keep-Alive, Close\r\ncontent-length: 0\r\n", Length(0), false),
            ("HTTP/1.0 200 OK\r\ncontent-length: 3\r\n", Length(3), false),
            ("HTTP/1.1 204 No Content\r\n", Length(0), true),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, Chunked\r\n", Chunked, true),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n", Chunked, false),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n", UntilClose, false),
            ("HTTP/1.1 200 OK\r\n", UntilClose, false),
        ];
        for (text, framing, keep_alive) in table {
            let head = parse(&format!("{text}\r\n")).unwrap().unwrap();
            assert_eq!((head.framing, head.keep_alive), (framing, keep_alive), "{text}");
        }
        for text in [
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: +3\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "SSH-2.0-OpenSSH\r\n",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn interim_responses_are_passed_over_and_heads_may_come_in_pieces() {
        let text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 503 \r\nRetry-After: 7\r\ncontent-length: 2\r\n\r\n";
        for end in 0..text.len() {
            assert_eq!(parse(&text[..end]), Ok(None), "{end}");
        }
        let head = parse(&format!("{text}ok")).unwrap().unwrap();
        assert_eq!((head.len, head.status, head.retry_after.as_deref()), (text.len(), 503, Some("7")));
    }

    #[test]
    fn heads_are_bounded_by_bytes_and_headers() {
        let headers = |count: usize| (0..count).map(|n| format!("x-{n}: 1\r\n")).collect::<String>();
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", headers(MAX_HEADERS));
        assert!(parse(&many).unwrap().is_some());
        let too_many = format!("HTTP/1.1 200 OK\r\n{}\r\n", headers(MAX_HEADERS + 1));
        assert_eq!(parse(&too_many), Err(InvalidResponse("too many headers")));
        let long = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(MAX_HEAD_BYTES));
        assert_eq!(parse(&long), Err(InvalidResponse("too large a head")));
    }

    #[test]
    fn what_is_not_a_chunked_body_is_an_error_and_a_long_one_is_left() {
        for text in ["x\r\n", ";\r\n", "\r\n", "3\r\nabcd", "1000000000000000\r\n"] {
            assert!(Body::new(Framing::Chunked).feed(text.as_bytes()).is_err(), "{text:?}");
        }
        let mut body = Body::new(Framing::Length(1 << 40));
        assert_eq!(body.feed(&[b'x'; MAX_BODY_BYTES]), Ok(Stage::Long));
        assert_eq!(body.into_kept(), [b'x'; MAX_RESPONSE_BYTES]);
        let mut extension = Body::new(Framing::Chunked);
        assert_eq!(extension.feed(&[b'1'; 1]), Ok(Stage::Open));
        assert_eq!(extension.feed(&[b';'; MAX_BODY_BYTES]), Ok(Stage::Long));
    }

    proptest! {
        #[test]
        fn a_body_ends_at_its_end_however_it_arrives(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..50), 0..6),
            chunked in any::<bool>(), piece in 1usize..20,
        ) {
            let content = chunks.concat();
            let mut sent = Vec::new();
            let framing = if chunked {
                for chunk in &chunks {
                    sent.extend_from_slice(format!("{:X};n=v\r\n", chunk.len()).as_bytes());
                    sent.extend_from_slice(chunk);
                    sent.extend_from_slice(b"\r\n");
                }
                sent.extend_from_slice(b"0\r\nx-trailer: 1\r\n\r\n");
                Framing::Chunked
            } else {
                sent.extend_from_slice(&content);
                Framing::Length(content.len() as u64)
            };
            let length = sent.len();
            sent.extend_from_slice(b"HTTP/1.1");
            let mut body = Body::new(framing);
            let mut at = 0;
            loop {
                let end = (at + piece).min(sent.len());
                match body.feed(&sent[at..end]).unwrap() {
                    Stage::Ended(taken) => {
                        prop_assert_eq!(at + taken, length);
                        break;
                    }
                    stage => prop_assert_eq!(stage, Stage::Open),
                }
                at = end;
            }
            prop_assert_eq!(body.into_kept(), content);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Head::parse(&bytes);
            let _ = Head::parse(&[b"HTTP/1.1 200 OK\r\n", &bytes[..]].concat());
            let _ = Body::new(Framing::Chunked).feed(&bytes);
        }
    }
}
