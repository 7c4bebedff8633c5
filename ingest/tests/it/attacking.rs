//! What hostile or broken clients send on a socket. Whatever it is: no 5xx, no wait beyond the timeouts, one reading of it
//! only, no more of a connection whose framing is in doubt, and everybody else is served.

use crate::harness::{PATIENCE, TestIngest, settings};
use floodway_ingest::Settings;
use std::time::{Duration, Instant};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

const GOOD: &str = r#"{"type":"good"}"#;
/// What follows an attack on its connection: stored, it would prove that the server took it for a request.
const SMUGGLED: &str = r#"{"type":"smuggled"}"#;

fn patient_settings() -> Settings {
    Settings { header_timeout: Duration::from_secs(2), body_timeout: Duration::from_secs(2), ..settings() }
}

/// Sends bytes, keeps the connection open, and reads until the server closes it.
async fn until_closed(ingest: &TestIngest, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(ingest.address).await.unwrap();
    // A server that has seen enough may close before it has read everything.
    let _ = timeout(PATIENCE, stream.write_all(bytes)).await.expect("the server neither reads nor closes");
    let mut answers = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answers)).await.expect("the server did not close");
    answers
}

/// The statuses of HTTP/1 answers, in order.
fn statuses(answers: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answers);
    text.match_indices("HTTP/1.").filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok()).collect()
}

impl TestIngest {
    /// A request with these lines in its header, and this after it.
    fn raw(&self, lines: &str, rest: &str) -> String {
        format!(
            "POST /v1/events HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\n{lines}\r\n{rest}",
            self.sender.key
        )
    }

    /// A whole request.
    fn whole(&self, lines: &str, body: &str) -> String {
        self.raw(&format!("{lines}content-length: {}\r\n", body.len()), body)
    }

    async fn answers(&self, name: &str, bytes: impl AsRef<[u8]>, expected: &[u16]) {
        let answers = until_closed(self, bytes.as_ref()).await;
        assert_eq!(statuses(&answers), expected, "{name}: {}", String::from_utf8_lossy(&answers));
    }

    /// Others are served, and only the `good` events have been stored.
    async fn is_unharmed(&self, good: usize) {
        assert_eq!(self.post(GOOD).await.status, 202);
        for record in self.stored(good + 1).await {
            assert!(String::from_utf8(record.value).unwrap().contains(r#""type":"good""#));
        }
    }
}

fn chunked(body: &str) -> String {
    format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
}

#[tokio::test]
async fn a_request_whose_length_is_in_doubt_is_refused_or_the_last_of_its_connection() {
    let ingest = TestIngest::start(patient_settings()).await;
    let smuggled = ingest.whole("", SMUGGLED);
    let te = "transfer-encoding: chunked\r\n";
    let body = chunked(GOOD);

    // Both lengths: the chunks count, as the standard has it, and the connection ends with the answer.
    let mut good = 0;
    for lines in [format!("content-length: 4\r\n{te}"), format!("{te}content-length: 4\r\n")] {
        ingest.answers("both lengths", ingest.raw(&lines, &body) + &smuggled, &[202]).await;
        good += 1;
    }
    let refused = [
        ("two lengths", format!("content-length: {}\r\ncontent-length: 4\r\n", GOOD.len())),
        ("a list of lengths", format!("content-length: {}, 4\r\n", GOOD.len())),
        ("a negative length", "content-length: -1\r\n".to_owned()),
        ("a signed length", "content-length: +15\r\n".to_owned()),
        ("a length in hex", "content-length: 0xf\r\n".to_owned()),
        ("no number", "content-length: \r\n".to_owned()),
        ("a length beyond counting", "content-length: 99999999999999999999\r\n".to_owned()),
        ("chunks inside of another coding", "transfer-encoding: chunked, identity\r\n".to_owned()),
        ("another coding", "transfer-encoding: gzip\r\n".to_owned()),
        ("a coding that looks like chunks", "transfer-encoding: xchunked\r\n".to_owned()),
        ("a quoted coding", "transfer-encoding: \"chunked\"\r\n".to_owned()),
        (
            "chunks and then nothing",
            "transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n".to_owned(),
        ),
        ("a folded line", "transfer-encoding:\r\n chunked\r\n".to_owned()),
        ("another folded line", "x: a\r\n\tb\r\ncontent-length: 15\r\n".to_owned()),
        ("a space before the colon", "transfer-encoding : chunked\r\n".to_owned()),
        ("a tab before the colon", "content-length\t: 15\r\n".to_owned()),
        ("a space before the name", " transfer-encoding: chunked\r\n".to_owned()),
        ("no colon", "transfer-encoding chunked\r\n".to_owned()),
        ("an empty name", ": chunked\r\n".to_owned()),
        ("a NUL in a value", "x: a\0b\r\ncontent-length: 15\r\n".to_owned()),
        ("a NUL in a name", "x\0y: a\r\ncontent-length: 15\r\n".to_owned()),
        ("a carriage return alone", "x: a\rtransfer-encoding: chunked\r\ncontent-length: 15\r\n".to_owned()),
        ("a vertical tab before the value", "transfer-encoding:\u{b}chunked\r\n".to_owned()),
    ];
    for (name, lines) in refused {
        let answers = until_closed(&ingest, (ingest.raw(&lines, &body) + &smuggled).as_bytes()).await;
        let statuses = statuses(&answers);
        assert!(
            matches!(statuses[..], [400] | [431]),
            "{name}: {statuses:?} {}",
            String::from_utf8_lossy(&answers)
        );
    }
    // Spellings of one thing: case, white space around the value, the same length twice.
    let same = [
        ("casing", "Transfer-Encoding: ChUnKeD\r\n".to_owned(), body.clone()),
        ("white space", "transfer-encoding: \t chunked \t\r\n".to_owned(), body.clone()),
        (
            "the same length twice",
            format!("content-length: {0}\r\ncontent-length: {0}\r\n", GOOD.len()),
            GOOD.to_owned(),
        ),
    ];
    for (name, lines, body) in same {
        let sent = ingest.raw(&format!("{lines}connection: close\r\n"), &body);
        ingest.answers(name, sent, &[202]).await;
        good += 1;
    }
    // Line feeds alone end lines for this server, which the standard allows: one reading, header and body alike.
    let bare = ingest.whole("connection: close\r\n", GOOD).replace("\r\n", "\n");
    ingest.answers("line feeds alone", bare, &[202]).await;
    ingest.is_unharmed(good + 1).await;
    ingest.finish().await;
}

#[tokio::test]
async fn chunks_are_read_as_the_standard_has_them_and_no_otherwise() {
    let ingest = TestIngest::start(patient_settings()).await;
    let te = "transfer-encoding: chunked\r\n";
    let smuggled = ingest.whole("", SMUGGLED);
    let broken = [
        ("no number", "zz\r\n"),
        ("nothing", "\r\n"),
        ("a minus", "-1\r\na\r\n0\r\n\r\n"),
        ("hex with a prefix", "0xf\r\n"),
        ("a space before the size", " f\r\n"),
        ("a size beyond counting", "fffffffffffffffff\r\n"),
        ("a line feed alone after the size", "1\na\r\n0\r\n\r\n"),
        ("more than was announced", "1\r\nab\r\n0\r\n\r\n"),
        ("no line end after the chunk", "1\r\na0\r\n\r\n"),
        ("a folded extension", "1;a=b\n c\r\na\r\n0\r\n\r\n"),
    ];
    for (name, chunks) in broken {
        ingest.answers(name, ingest.raw(te, chunks) + &smuggled, &[400]).await;
    }
    let flood = format!("1;{}\r\n", "x".repeat(40_000));
    ingest.answers("a flood of extensions", ingest.raw(te, &flood), &[400]).await;
    let trailers = format!("{:x}\r\n{GOOD}\r\n0\r\n{}", GOOD.len(), "a: b\r\n".repeat(20_000));
    ingest.answers("a flood of trailers", ingest.raw(te, &trailers), &[400]).await;
    ingest.answers("no last chunk", ingest.raw(te, "1\r\n{\r\n"), &[408]).await;
    ingest.answers("an unfinished size", ingest.raw(te, "f"), &[408]).await;

    let single: String = GOOD.chars().map(|c| format!("1\r\n{c}\r\n")).collect();
    let good = [
        ("chunks of one byte", format!("{single}0\r\n\r\n")),
        ("an extension", format!("{:x};a=\"b;c\"\r\n{GOOD}\r\n0;last\r\n\r\n", GOOD.len())),
        ("leading zeros", format!("{:08X}\r\n{GOOD}\r\n000\r\n\r\n", GOOD.len())),
        (
            "trailers, which are no headers",
            format!(
                "{:x}\r\n{GOOD}\r\n0\r\ncontent-length: 4\r\nauthorization: Bearer x\r\n\r\n",
                GOOD.len()
            ),
        ),
    ];
    let close = format!("{te}connection: close\r\n");
    for (name, chunks) in &good {
        ingest.answers(name, ingest.raw(&close, chunks), &[202]).await;
    }
    ingest.is_unharmed(good.len()).await;
    ingest.finish().await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let ingest = TestIngest::start(patient_settings()).await;
    let te = "transfer-encoding: chunked\r\n";
    let sent = [
        ingest.whole("", GOOD),
        ingest.whole("", "[]"),
        ingest.raw(te, &chunked(GOOD)),
        "GET /nowhere HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        "GET /v1/events HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        // Empty lines before a request are passed over.
        format!("\r\n{}", ingest.whole("connection: close\r\n", GOOD)),
        ingest.whole("", SMUGGLED),
    ]
    .concat();
    ingest.answers("in one packet", &sent, &[202, 400, 202, 404, 405, 202]).await;
    ingest.is_unharmed(3).await;
    ingest.finish().await;
}

#[tokio::test]
async fn headers_and_targets_beyond_their_limits_are_refused() {
    let ingest = TestIngest::start(patient_settings()).await;
    let many = |count: usize| (0..count).map(|n| format!("x-{n}: a\r\n")).collect::<String>();
    ingest
        .answers(
            "many",
            ingest.whole(&many(90), GOOD).replace("host: a", "host: a\r\nconnection: close"),
            &[202],
        )
        .await;
    ingest.answers("too many", ingest.whole(&many(200), SMUGGLED), &[431]).await;
    let large = format!("x: {}\r\n", "a".repeat(100_000));
    ingest.answers("too large", ingest.whole(&large, SMUGGLED), &[431]).await;
    // Nothing but header, without an end.
    ingest
        .answers("an endless line", format!("POST /v1/events HTTP/1.1\r\nx: {}", "a".repeat(100_000)), &[431])
        .await;
    for target in [format!("/v1/events?{}", "a".repeat(9000)), format!("/{}", "a".repeat(9000))] {
        let sent = ingest.whole("connection: close\r\n", SMUGGLED).replacen("/v1/events", &target, 1);
        let answers = until_closed(&ingest, sent.as_bytes()).await;
        assert_eq!(statuses(&answers), [414]);
        assert!(String::from_utf8_lossy(&answers).contains("urn:floodway:problem:target-too-long"));
    }
    ingest.is_unharmed(1).await;
    ingest.finish().await;
}

#[tokio::test]
async fn other_forms_versions_and_methods_have_one_reading() {
    let ingest = TestIngest::start(patient_settings()).await;
    let good = ingest.whole("connection: close\r\n", GOOD);
    let smuggled = ingest.whole("", SMUGGLED);
    let cases = [
        ("the absolute form", good.replacen(" /v1/events ", " http://a/v1/events ", 1), &[202][..]),
        ("a query", good.replacen("/v1/events", "/v1/events?x=1", 1), &[202]),
        ("HTTP/1.0", good.replacen("HTTP/1.1", "HTTP/1.0", 1) + &smuggled, &[202]),
        (
            "HTTP/1.0 without a host",
            ingest.whole("", GOOD).replacen("HTTP/1.1\r\nhost: a\r\n", "HTTP/1.0\r\n", 1) + &smuggled,
            &[202],
        ),
        (
            "chunks in HTTP/1.0",
            ingest
                .raw("transfer-encoding: chunked\r\n", &chunked(SMUGGLED))
                .replacen("HTTP/1.1", "HTTP/1.0", 1),
            &[400],
        ),
        ("an offer to upgrade", good.replacen("host: a", "host: a\r\nupgrade: h2c", 1), &[202]),
        ("no host", ingest.whole("connection: close\r\n", SMUGGLED).replacen("host: a\r\n", "", 1), &[400]),
        (
            "two hosts",
            ingest.whole("connection: close\r\n", SMUGGLED).replacen("host: a", "host: a\r\nhost: b", 1),
            &[400],
        ),
        (
            "two keys",
            ingest.whole("connection: close\r\n", SMUGGLED).replacen(
                "host: a",
                "host: a\r\nauthorization: Bearer x",
                1,
            ),
            &[401],
        ),
        ("HTTP/0.9", "GET /v1/events\r\n\r\n".to_owned() + &smuggled, &[400]),
        ("HTTP/2.0 on one line", good.replacen("HTTP/1.1", "HTTP/2.0", 1) + &smuggled, &[400]),
        ("HTTP/1.2", good.replacen("HTTP/1.1", "HTTP/1.2", 1) + &smuggled, &[400]),
        ("no HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03".to_owned(), &[400]),
        ("a space in the target", good.replacen("/v1/events", "/v1/events x", 1) + &smuggled, &[400]),
        ("two spaces", good.replacen("POST /", "POST  /", 1) + &smuggled, &[400]),
        ("CONNECT", "CONNECT a:443 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".to_owned(), &[404]),
        (
            "OPTIONS of the server",
            "OPTIONS * HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".to_owned(),
            &[404],
        ),
        ("TRACE", "TRACE /v1/events HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".to_owned(), &[405]),
        (
            "no known method",
            "BREW /v1/events HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".to_owned(),
            &[405],
        ),
    ];
    for (name, sent, expected) in &cases {
        ingest.answers(name, sent, expected).await;
    }
    ingest.is_unharmed(5).await;
    ingest.finish().await;
}

#[tokio::test]
async fn a_client_that_asks_first_is_told_to_go_on_only_once_its_header_has_passed() {
    let ingest = TestIngest::start(patient_settings()).await;
    let announced = |lines: &str| {
        ingest.raw(&format!("expect: 100-Continue\r\ncontent-length: {}\r\n{lines}", GOOD.len()), "")
    };
    let head = announced("connection: close\r\n");
    let refusals = [
        (head.replacen("Bearer ", "Bearer x", 1), 401),
        (head.replacen("application/json", "text/plain", 1), 415),
        (head.replacen("/v1/events", "/v2/events", 1), 404),
        (head.replacen(&format!("content-length: {}", GOOD.len()), "content-length: 99999999", 1), 413),
    ];
    for (sent, status) in refusals {
        ingest.answers("refused", sent, &[status]).await;
    }
    // A refusal ends the connection: what follows cannot be told from the body.
    let refused = announced("").replacen("Bearer ", "Bearer x", 1) + &ingest.whole("", SMUGGLED);
    ingest.answers("refused and more", refused, &[401]).await;

    let mut stream = TcpStream::connect(ingest.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut interim = [0; 25];
    timeout(PATIENCE, stream.read_exact(&mut interim)).await.unwrap().unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(GOOD.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(statuses(&answer), [202]);

    // Nobody who sends at once is kept waiting, and HTTP/1.0 knows no interim answers.
    let at_once = head.clone() + GOOD;
    let answers = until_closed(&ingest, at_once.as_bytes()).await;
    assert!(matches!(statuses(&answers)[..], [202] | [100, 202]), "{answers:?}");
    let old = at_once.replacen("HTTP/1.1", "HTTP/1.0", 1);
    ingest.answers("HTTP/1.0", old, &[202]).await;
    ingest.is_unharmed(3).await;
    ingest.finish().await;
}

#[tokio::test]
async fn a_header_that_trickles_in_ends_its_connection() {
    let settings = Settings { header_timeout: Duration::from_millis(500), ..settings() };
    let ingest = TestIngest::start(settings).await;
    let mut stream = TcpStream::connect(ingest.address).await.unwrap();
    stream.write_all(b"POST /v1/events HTTP/1.1\r\nhost: a\r\n").await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    let mut answer = [0; 64];
    // Each byte is progress, and together they are too slow.
    while stream.write_all(b"x").await.is_ok() {
        assert!(Instant::now() < deadline, "the connection goes on");
        if let Ok(read) = timeout(Duration::from_millis(50), stream.read(&mut answer)).await
            && read.map_or(0, |read| read) == 0
        {
            break;
        }
    }
    ingest.is_unharmed(0).await;
    ingest.finish().await;
}

#[tokio::test]
async fn requests_broken_off_anywhere_leave_nothing_behind() {
    let settings = Settings { max_connections: 2, max_reading_bytes: 10 * 1024 * 1024, ..patient_settings() };
    let ingest = TestIngest::start(settings).await;
    let whole = ingest.whole("", SMUGGLED);
    let announced = ingest.raw("content-length: 10000000\r\n", "{");
    let cuts = (1..whole.len()).step_by(17).map(|at| whole[..at].to_owned()).chain([announced]);
    for sent in cuts {
        loop {
            let mut stream = TcpStream::connect(ingest.address).await.unwrap();
            stream.write_all(sent.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = Vec::new();
            let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("not closed");
            match statuses(&answer)[..] {
                // The place of the connection before is given back a moment after its end.
                [503] => {}
                [] | [400] => break,
                ref other => panic!("{other:?}: {sent}"),
            }
        }
    }
    ingest.is_unharmed(0).await;
    ingest.finish().await;
}

#[tokio::test]
async fn small_requests_are_answered_while_a_huge_one_is_in_progress() {
    let ingest = TestIngest::start(Settings { workers: 1, ..settings() }).await;
    let event = format!(r#"{{"type":"good","data":"{}"}}"#, "x".repeat(980));
    let batch = format!("[{}]", vec![event.as_str(); 10_000].join(","));
    let mut stream = TcpStream::connect(ingest.address).await.unwrap();
    let sent = ingest.whole("connection: close\r\n", &batch);
    let (most, last) = sent.split_at(sent.len() - 1);
    stream.write_all(most.as_bytes()).await.unwrap();
    for _ in 0..10 {
        assert_eq!(ingest.post(GOOD).await.status, 202);
    }
    stream.write_all(last.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(statuses(&answer), [202]);
    ingest.is_unharmed(10_010).await;
    ingest.finish().await;
}

/// Frames of HTTP/2, written by hand.
mod http2 {
    pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    pub(super) const GOAWAY: u8 = 7;

    pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        frame
    }

    /// An empty SETTINGS, which opens a connection.
    pub(super) fn opening() -> Vec<u8> {
        [PREFACE, &frame(4, 0, 0, &[])].concat()
    }

    /// `POST http://a/v1/events`, in references to the static table and plain literals.
    pub(super) fn header_block() -> Vec<u8> {
        let mut block = vec![0x83, 0x86, 0x04, 10];
        block.extend(b"/v1/events");
        block.extend([0x01, 1, b'a']);
        block
    }

    pub(super) fn headers(flags: u8, stream: u32) -> Vec<u8> {
        frame(1, flags, stream, &header_block())
    }

    /// Whether the answer says why the connection ends.
    pub(super) fn says_goodbye(mut answer: &[u8]) -> bool {
        while let [a, b, c, kind, rest @ ..] = answer {
            if *kind == GOAWAY {
                return true;
            }
            let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            answer = rest.get(5 + length..).unwrap_or_default();
        }
        false
    }
}

#[tokio::test]
async fn floods_over_http2_end_their_connection() {
    use http2::{frame, headers, opening};
    let ingest = TestIngest::start(patient_settings()).await;
    let streams = |count: u32| (0..count).map(|n| 2 * n + 1);
    // Opened and taken back at once.
    let resets: Vec<u8> = streams(20_000)
        .flat_map(|id| [headers(4, id), frame(3, 0, id, &8_u32.to_be_bytes())].concat())
        .collect();
    // A header that never ends.
    let endless: Vec<u8> = [headers(0, 1)]
        .into_iter()
        .chain(
            (0..1000)
                .map(|_| frame(9, 0, 1, &[&[0x00, 1, b'x', 0x7f, 0x80, 0x7e][..], &[b'a'; 16_000]].concat())),
        )
        .flatten()
        .collect();
    // Data for streams that do not exist; a frame larger than allowed; a window beyond its size.
    let stray = streams(1000).flat_map(|id| frame(0, 0, id, b"x")).collect();
    let oversized = frame(1, 4, 1, &[0; 20_000]);
    let window = frame(8, 0, 0, &0x7fff_ffff_u32.to_be_bytes());
    let floods: [(&str, Vec<u8>); 5] = [
        ("rapid resets", resets),
        ("continuations", endless),
        ("stray data", stray),
        ("an oversized frame", oversized),
        ("a window too large", window),
    ];
    for (name, flood) in floods {
        let answer = until_closed(&ingest, &[opening(), flood].concat()).await;
        // A client that goes on sending may lose the last words to a reset.
        assert!(
            http2::says_goodbye(&answer) || name == "rapid resets" || name == "continuations",
            "{name}: {answer:?}"
        );
        assert!(statuses(&answer).is_empty(), "{name}");
    }
    // The preface and nothing; half of it.
    until_closed(&ingest, http2::PREFACE).await;
    until_closed(&ingest, &http2::PREFACE[..10]).await;
    ingest.is_unharmed(0).await;
    ingest.finish().await;
}
