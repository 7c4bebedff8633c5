//! What went over the wire in one attempt, for whoever looks for the reason of a failure. Bounded, and without secrets.

use serde::{Deserialize, Serialize};

/// Most headers kept of a request, and of a response.
const MAX_HEADERS: usize = 32;
/// Most bytes kept of a header's value.
const MAX_VALUE_BYTES: usize = 256;
/// Most bytes kept of all names and values of one message. Both messages fit into an outcome beside an event of the largest size.
const MAX_HEADERS_BYTES: usize = 2048;
/// What stands for a value that is nobody else's business.
const REDACTED: &str = "[redacted]";
/// Parts of the names of headers whose values may be credentials.
const SECRETIVE: [&str; 10] =
    ["auth", "cookie", "token", "secret", "signature", "key", "password", "credential", "session", "jwt"];

/// What orders an event opens nothing.
const PARTITION_KEY: &str = "ce-partitionkey";

/// One attempt's exchange.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Exchange {
    /// The address and port connected to; absent when there was no connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Whether the connection was there before, so that nothing was resolved or connected.
    pub reused: bool,
    /// How long the parts took.
    pub timings: Timings,
    /// What was sent. Values that may be credentials, and signatures, are left out.
    pub request_headers: Vec<Header>,
    /// What came back; empty without a response.
    pub response_headers: Vec<Header>,
}

/// How long the parts of an attempt took, in microseconds. Absent: there was no such part, or it did not end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timings {
    /// Resolving the host's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns_us: Option<u32>,
    /// The TCP connection, all addresses that were tried included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connect_us: Option<u32>,
    /// The TLS handshake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_us: Option<u32>,
    /// From the start of the attempt to the head of the response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_byte_us: Option<u32>,
    /// The whole attempt, the body included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_us: Option<u32>,
}

/// A header of a message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Its name, in lower case.
    pub name: String,
    /// Its value, printable ASCII, cut off at some length.
    pub value: String,
}

/// The first headers of a message as they are kept.
pub fn headers<'h>(headers: impl Iterator<Item = (&'h str, &'h [u8])>) -> Vec<Header> {
    let mut room = MAX_HEADERS_BYTES;
    let mut kept = Vec::new();
    for (name, value) in headers.take(MAX_HEADERS) {
        let name = name.to_ascii_lowercase();
        let is_secretive = name != PARTITION_KEY && SECRETIVE.iter().any(|part| name.contains(part));
        let value = if is_secretive {
            REDACTED.to_owned()
        } else {
            let printable = |&byte: &u8| if matches!(byte, b' '..=b'~') { char::from(byte) } else { '?' };
            value.iter().take(MAX_VALUE_BYTES).map(printable).collect()
        };
        let Some(left) = room.checked_sub(name.len() + value.len()) else { break };
        room = left;
        kept.push(Header { name, value });
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_bounded_printable_and_without_secrets() {
        let long = vec![b'x'; 10_000];
        let sent: [(&str, &[u8]); 7] = [
            ("Content-Type", b"text/plain"),
            ("Set-Cookie", b"id=s3cr3t"),
            ("X-Api-Key", b"s3cr3t"),
            ("ce-partitionkey", b"customer-9"),
            ("webhook-signature", b"v1,s3cr3t"),
            ("x-odd", b"a\0\xff\"b"),
            ("x-long", &long),
        ];
        let kept = headers(sent.into_iter());
        let value = |name: &str| kept.iter().find(|header| header.name == name).unwrap().value.as_str();
        assert_eq!(value("content-type"), "text/plain");
        assert_eq!(value("x-odd"), "a??\"b");
        assert_eq!(value("ce-partitionkey"), "customer-9");
        assert_eq!(value("x-long").len(), MAX_VALUE_BYTES);
        for name in ["set-cookie", "x-api-key", "webhook-signature"] {
            assert_eq!(value(name), REDACTED);
        }
        let many = std::iter::repeat_n(("x-many", long.as_slice()), 1_000);
        let kept = headers(many);
        let bytes: usize = kept.iter().map(|header| header.name.len() + header.value.len()).sum();
        assert!(kept.len() <= MAX_HEADERS && bytes <= MAX_HEADERS_BYTES);
    }
}
