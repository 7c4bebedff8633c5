//! Requests as they go over the wire, rendered once: afterwards only digits and random characters change in place.
//!
//! Compressed bodies cannot be changed in place. A bounded pool of them is rendered in advance and sent again and
//! again, so their ids repeat, and a run with them has no ledger.

use super::{
    content::{self, Arena},
    error::LoadError,
    event_id::{CONNECTION_DIGITS, EventId, KEY_DIGITS, Keys, NUMBER_DIGITS, write_digits},
    monotonic::STAMP_DIGITS,
    target::Target,
    workload::{Encoding, Entropy, Workload},
};
use std::io::{self, Write};

/// Most compressed requests of a pool, and most bytes of them. They are shared by all threads.
const POOL_REQUESTS: u64 = 2048;
const POOL_BYTES: usize = 64 * 1024 * 1024;
/// Digits of the number that a type ends with.
const TYPE_DIGITS: usize = 5;
/// Level of zstd: what clients use when they do not choose.
const ZSTD_LEVEL: i32 = 3;

/// One rendered request and the places in it that change. All events have the same size, so their places are
/// `stride` apart.
#[derive(Debug, Clone)]
pub(super) struct Template {
    bytes: Vec<u8>,
    head: usize,
    events: usize,
    stride: usize,
    /// Places in the first event, counted from the start of the request.
    connection: usize,
    number: usize,
    key: Option<usize>,
    random: Option<(usize, usize)>,
    kind: Option<usize>,
    stamp: Option<usize>,
    keys: Keys,
    /// What types end with, in turns.
    numbers: Vec<u32>,
}

impl Template {
    /// A request of a workload. `run` goes into JSON as it is.
    pub(super) fn new(workload: &Workload, target: &Target, run: &str, keys: Keys) -> Self {
        let event = Event::new(workload, run);
        let many = workload.events_per_request > 1;
        let stride = event.bytes.len() + 1;
        let body_bytes = stride * workload.events_per_request - 1 + 2 * usize::from(many);
        let mut bytes = target.head(Encoding::Identity, body_bytes);
        let head = bytes.len();
        let first = head + usize::from(many);
        for position in 0..workload.events_per_request {
            if many {
                bytes.push(if position == 0 { b'[' } else { b',' });
            }
            bytes.extend_from_slice(&event.bytes);
        }
        if many {
            bytes.push(b']');
        }
        Self {
            head,
            bytes,
            events: workload.events_per_request,
            stride,
            connection: first + event.connection,
            number: first + event.number,
            key: event.key.map(|at| first + at),
            random: event.random.map(|(at, count)| (first + at, count)),
            kind: event.kind.map(|at| first + at),
            stamp: event.stamp.map(|at| first + at),
            keys,
            numbers: workload.numbers.clone(),
        }
    }

    /// The request as rendered.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes of the body.
    pub(super) fn body_bytes(&self) -> usize {
        self.bytes.len() - self.head
    }

    /// Makes a copy of the request that of `connection`, its events numbered from `first` on.
    pub(super) fn patch(&self, request: &mut [u8], connection: u32, first: u64, arena: Option<&mut Arena>) {
        let mut slot = 0;
        let slots = self.keys.of_connection(connection);
        if self.key.is_some() {
            slot = self.keys.slot(EventId { connection, number: first });
        }
        for position in 0..self.events {
            let offset = position * self.stride;
            let mut digits = |at: usize, count: usize, value| {
                write_digits(&mut request[offset + at..offset + at + count], value);
            };
            digits(self.connection, CONNECTION_DIGITS, connection.into());
            digits(self.number, NUMBER_DIGITS, first + position as u64);
            if let Some(at) = self.kind {
                digits(at, TYPE_DIGITS, self.type_number(connection, first + position as u64).into());
            }
            if let Some(at) = self.key {
                digits(at, KEY_DIGITS, self.keys.key(connection, slot));
                slot = if slot + 1 == slots { 0 } else { slot + 1 };
            }
        }
        if let (Some((at, count)), Some(arena)) = (self.random, arena) {
            for position in 0..self.events {
                let start = position * self.stride + at;
                arena.fill(&mut request[start..start + count]);
            }
        }
    }
}

impl Template {
    /// Writes into every event when the request was due.
    pub(super) fn stamp(&self, request: &mut [u8], micros: u64) {
        let Some(at) = self.stamp else { return };
        for position in 0..self.events {
            let start = position * self.stride + at;
            write_digits(&mut request[start..start + STAMP_DIGITS], micros);
        }
    }

    /// What the type of a connection's event ends with. Connections begin at places that are evenly spread, so all numbers
    /// come up from the start.
    fn type_number(&self, connection: u32, number: u64) -> u32 {
        let turns = self.numbers.len() as u64;
        let start = turns * u64::from(connection) / self.keys.connections();
        self.numbers[((start + number) % turns) as usize]
    }
}

/// One event, and the places in it that change.
struct Event {
    bytes: Vec<u8>,
    connection: usize,
    number: usize,
    key: Option<usize>,
    random: Option<(usize, usize)>,
    kind: Option<usize>,
    stamp: Option<usize>,
}

impl Event {
    fn new(workload: &Workload, run: &str) -> Self {
        let mut bytes = format!("{{\"type\":\"{}", workload.event_type).into_bytes();
        let kind = (!workload.numbers.is_empty()).then(|| {
            bytes.push(b'.');
            append_digits(&mut bytes, TYPE_DIGITS)
        });
        let stamp = workload.stamped.then(|| {
            bytes.extend_from_slice(b"\",\"sentat\":\"");
            append_digits(&mut bytes, STAMP_DIGITS)
        });
        bytes.extend_from_slice(format!("\",\"id\":\"{run}-").as_bytes());
        let connection = append_digits(&mut bytes, CONNECTION_DIGITS);
        bytes.push(b'-');
        let number = append_digits(&mut bytes, NUMBER_DIGITS);
        bytes.push(b'"');
        let key = (workload.keys > 0).then(|| {
            bytes.extend_from_slice(b",\"partitionkey\":\"key-");
            let at = append_digits(&mut bytes, KEY_DIGITS);
            bytes.push(b'"');
            at
        });
        bytes.extend_from_slice(b",\"data\":");
        let data = bytes.len();
        let random = content::append(&mut bytes, workload.data_bytes, workload.entropy);
        bytes.push(b'}');
        Self {
            bytes,
            connection,
            number,
            key,
            random: random.map(|(at, count)| (data + at, count)),
            kind,
            stamp,
        }
    }
}

/// Appends zeros; returns where.
fn append_digits(bytes: &mut Vec<u8>, count: usize) -> usize {
    let at = bytes.len();
    bytes.resize(at + count, b'0');
    at
}

/// Compressed requests, to be sent in turns.
#[derive(Debug)]
pub(super) struct EncodedPool {
    requests: Vec<Vec<u8>>,
    /// Mean bytes of a body.
    pub(super) body_bytes: usize,
}

impl EncodedPool {
    /// Renders the pool: as many requests as its bounds allow.
    pub(super) fn new(template: &Template, workload: &Workload, target: &Target) -> Result<Self, LoadError> {
        let mut arena = arena_for(workload, 0);
        let mut identity = template.bytes().to_vec();
        let (mut requests, mut bytes, mut bodies) = (Vec::new(), 0, 0);
        for number in 0..POOL_REQUESTS {
            template.patch(&mut identity, 0, number * template.events as u64, arena.as_mut());
            let body = encode(&identity[template.head..], workload.encoding)?;
            let mut request = target.head(workload.encoding, body.len());
            request.extend_from_slice(&body);
            bytes += request.len();
            bodies += body.len();
            requests.push(request);
            if bytes >= POOL_BYTES {
                break;
            }
        }
        Ok(Self { body_bytes: bodies / requests.len(), requests })
    }

    /// The request for the turn.
    pub(super) fn request(&self, turn: u64) -> &[u8] {
        &self.requests[(turn % self.requests.len() as u64) as usize]
    }
}

/// Random characters if the workload needs them.
pub(super) fn arena_for(workload: &Workload, seed: u64) -> Option<Arena> {
    (workload.entropy == Entropy::Random).then(|| Arena::new(seed))
}

fn encode(body: &[u8], encoding: Encoding) -> io::Result<Vec<u8>> {
    match encoding {
        Encoding::Identity => Ok(body.to_vec()),
        Encoding::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            encoder.write_all(body)?;
            encoder.finish()
        }
        Encoding::Zstd => zstd::bulk::compress(body, ZSTD_LEVEL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::io::Read;

    fn target() -> Target {
        Target::new("http://127.0.0.1:8080/base/", "fw_test").unwrap()
    }

    fn workload(events: usize, keys: u64, entropy: Entropy) -> Workload {
        Workload { events_per_request: events, keys, entropy, data_bytes: 100, ..Workload::default() }
    }

    /// The head and the events of a request on the wire.
    fn read(request: &[u8]) -> (String, Vec<Value>) {
        let at = memchr::memmem::find(request, b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8(request[..at].to_vec()).unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", request.len() - at)), "{head}");
        let body: Value = serde_json::from_slice(&request[at..]).unwrap();
        (head, body.as_array().cloned().unwrap_or_else(|| vec![body]))
    }

    #[test]
    fn a_request_is_http_with_as_many_events_as_asked_for() {
        for events in [1, 2, 10] {
            let template =
                Template::new(&workload(events, 0, Entropy::Text), &target(), "run", Keys::new(0, 1));
            let (head, bodies) = read(template.bytes());
            assert!(head.starts_with("POST /base/v1/events HTTP/1.1\r\nhost: 127.0.0.1:8080\r\n"), "{head}");
            assert!(head.contains("authorization: Bearer fw_test\r\ncontent-type: application/json\r\n"));
            assert_eq!(bodies.len(), events);
            assert!(
                bodies.iter().all(|event| event["data"].is_object() && event.get("partitionkey").is_none())
            );
        }
    }

    #[test]
    fn patching_changes_ids_keys_and_random_characters_and_nothing_else() {
        let keys = Keys::new(7, 3);
        for entropy in [Entropy::Text, Entropy::Random] {
            let workload = workload(5, 7, entropy);
            let template = Template::new(&workload, &target(), "run", keys);
            let mut request = template.bytes().to_vec();
            let mut arena = arena_for(&workload, 1);
            let mut seen = std::collections::BTreeSet::new();
            for (connection, first) in [(0, 0), (2, 5), (1, 999_999_999_990), (0, 5)] {
                template.patch(&mut request, connection, first, arena.as_mut());
                for (event, number) in read(&request).1.iter().zip(first..) {
                    let id = EventId { connection, number };
                    assert_eq!(event["id"], id.text("run"));
                    let key = keys.key(connection, keys.slot(id));
                    assert_eq!(event["partitionkey"], format!("key-{key:010}"));
                    assert_eq!(event["data"].to_string().len(), 100);
                    seen.insert(event["data"].to_string());
                }
            }
            assert_eq!(seen.len(), if entropy == Entropy::Random { 20 } else { 1 });
        }
    }

    #[test]
    fn types_take_turns_and_stamps_say_when_an_event_was_due() {
        let workload =
            Workload { numbers: vec![7, 0, 7, 12_345], stamped: true, ..workload(3, 0, Entropy::Text) };
        let template = Template::new(&workload, &target(), "run", Keys::new(0, 2));
        let mut request = template.bytes().to_vec();
        let types = |request: &[u8]| -> Vec<String> {
            read(request).1.iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect()
        };
        template.patch(&mut request, 0, 2, None);
        assert_eq!(types(&request), ["load.event.00007", "load.event.12345", "load.event.00007"]);
        template.patch(&mut request, 1, 0, None);
        assert_eq!(
            types(&request)[..2],
            ["load.event.00007", "load.event.12345"],
            "the second connection is half a turn ahead"
        );
        template.stamp(&mut request, 1_234_567_890);
        assert!(read(&request).1.iter().all(|event| event["sentat"] == "0000001234567890"));
    }

    #[test]
    fn encoded_bodies_are_the_events_and_say_how_they_are_encoded() {
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let workload = Workload { encoding, ..workload(3, 0, Entropy::Text) };
            let template = Template::new(&workload, &target(), "run", Keys::new(0, 1));
            let pool = EncodedPool::new(&template, &workload, &target()).unwrap();
            let request = pool.request(1 + POOL_REQUESTS);
            let at = memchr::memmem::find(request, b"\r\n\r\n").unwrap() + 4;
            let head = String::from_utf8_lossy(&request[..at]);
            let mut body = Vec::new();
            match encoding {
                Encoding::Gzip => {
                    flate2::read::GzDecoder::new(&request[at..]).read_to_end(&mut body).unwrap();
                }
                _ => body = zstd::bulk::decompress(&request[at..], 10_000).unwrap(),
            }
            let name = if encoding == Encoding::Gzip { "gzip" } else { "zstd" };
            assert!(head.contains(&format!("content-encoding: {name}\r\n")), "{head}");
            let events: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(events[0]["id"], EventId { connection: 0, number: 3 }.text("run"));
        }
    }
}
