//! Which headers a subscription may add to its deliveries.

use axum::http::{HeaderName, HeaderValue};
use std::collections::BTreeMap;

/// Most headers of one subscription.
const MAX_HEADERS: usize = 16;
/// Longest name, in bytes.
const MAX_NAME_BYTES: usize = 64;
/// Longest value, in bytes.
const MAX_VALUE_BYTES: usize = 1_024;

/// Names that Floodway or HTTP itself sets. `user-agent` is among them: receivers and their firewalls tell by it who calls.
const RESERVED: [&str; 19] = [
    "accept-encoding",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "traceparent",
    "tracestate",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "via",
];

/// Prefixes of names that Floodway sets.
const RESERVED_PREFIXES: [&str; 3] = ["webhook-", "ce-", "proxy-"];

/// Names whose values are credentials. Headers are stored and published in clear, unlike signing secrets.
const CREDENTIALS: [&str; 3] = ["authorization", "proxy-authorization", "cookie"];

/// The headers with lower-case names, or why they cannot be added.
pub(crate) fn check(headers: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, String> {
    if headers.len() > MAX_HEADERS {
        return Err(format!("headers has {} entries, at most {MAX_HEADERS} are allowed", headers.len()));
    }
    let mut checked = BTreeMap::new();
    for (name, value) in headers {
        let lower = check_name(&name)?;
        if value.len() > MAX_VALUE_BYTES || HeaderValue::from_str(&value).is_err() || !value.is_ascii() {
            return Err(format!(
                "headers.{lower} must be at most {MAX_VALUE_BYTES} bytes of visible ASCII and spaces"
            ));
        }
        if checked.insert(lower, value).is_some() {
            return Err(format!("headers has {name:?} twice: names differ in more than case"));
        }
    }
    Ok(checked)
}

fn check_name(name: &str) -> Result<String, String> {
    let lower = name.to_ascii_lowercase();
    if name.len() > MAX_NAME_BYTES || HeaderName::from_bytes(lower.as_bytes()).is_err() {
        let shown: String = name.chars().take(MAX_NAME_BYTES).collect();
        return Err(format!(
            "headers has {shown:?}, which is not a header name of at most {MAX_NAME_BYTES} bytes"
        ));
    }
    if CREDENTIALS.contains(&lower.as_str()) {
        return Err(format!(
            "headers.{lower} would be stored in clear; verify the webhook-signature of deliveries instead"
        ));
    }
    let reserved = RESERVED.contains(&lower.as_str())
        || RESERVED_PREFIXES.iter().any(|prefix| lower.starts_with(prefix));
    if reserved {
        return Err(format!("headers.{lower} is reserved: it is set by Floodway or by HTTP itself"));
    }
    Ok(lower)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_one(name: &str, value: &str) -> Result<BTreeMap<String, String>, String> {
        check(BTreeMap::from([(name.to_owned(), value.to_owned())]))
    }

    #[test]
    fn names_become_lower_case() {
        let headers = check_one("X-Team", "blue team").unwrap();
        assert_eq!(headers, BTreeMap::from([("x-team".to_owned(), "blue team".to_owned())]));
    }

    #[test]
    fn reserved_malformed_and_oversized_headers_are_refused_by_name() {
        let long = "v".repeat(MAX_VALUE_BYTES + 1);
        let bad = [
            ("Content-Type", "a", "headers.content-type is reserved"),
            ("Webhook-Id", "a", "headers.webhook-id is reserved"),
            ("ce-id", "a", "headers.ce-id is reserved"),
            ("User-Agent", "a", "headers.user-agent is reserved"),
            ("Authorization", "Bearer x", "stored in clear"),
            ("a b", "a", "not a header name"),
            ("", "a", "not a header name"),
            ("x-a", "a\nb", "headers.x-a must be"),
            ("x-a", "ü", "headers.x-a must be"),
            ("x-a", &long, "headers.x-a must be"),
        ];
        for (name, value, reason) in bad {
            let error = check_one(name, value).expect_err(name);
            assert!(error.contains(reason), "{name}: {error}");
        }
        let twice = BTreeMap::from([("X-A".to_owned(), "1".to_owned()), ("x-a".to_owned(), "2".to_owned())]);
        assert!(check(twice).unwrap_err().contains("twice"));
        let many = (0..=MAX_HEADERS).map(|index| (format!("x-{index}"), String::new())).collect();
        assert!(check(many).unwrap_err().contains("17 entries"));
    }
}
