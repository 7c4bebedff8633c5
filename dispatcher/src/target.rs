//! Where a subscription's deliveries go: the server, and what is the same in every request to it.

use crate::headers::{self, put_line};
use http::Uri;
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};
use url::{Host, Url};

/// Longest path with its query: servers take less.
const MAX_PATH_BYTES: usize = 65_534;
const USER_AGENT: &str = concat!("Floodway/", env!("CARGO_PKG_VERSION"));

/// A server: connections to it serve every subscription that names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    /// Whether it speaks TLS.
    pub(crate) https: bool,
    /// Name or address; IPv6 without brackets.
    pub(crate) host: Box<str>,
    /// Its port.
    pub(crate) port: u16,
}

/// The server and the fixed part of the requests.
#[derive(Debug)]
pub(crate) struct Target {
    /// The server.
    pub(crate) origin: Origin,
    /// Request line and the headers that are the same in every request, each line with its end.
    pub(crate) head: Box<[u8]>,
    /// The same for every subscription at the server: spreads servers over workers.
    pub(crate) spread: usize,
}

impl Target {
    /// Of a subscription's URL and its own headers; `None` when the URL is not one that HTTP can address.
    pub(crate) fn new(url: &Url, custom: &BTreeMap<String, String>) -> Option<Self> {
        let https = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let port = url.port_or_known_default()?;
        // User information in a URL is for the connection, and no part of what is asked for; neither is the fragment.
        let host = match url.host()? {
            Host::Domain(name) => name.into(),
            Host::Ipv4(address) => address.to_string().into(),
            Host::Ipv6(address) => address.to_string().into(),
        };
        let mut path = url.path().to_owned();
        if let Some(query) = url.query() {
            path.push('?');
            path.push_str(query);
        }
        // URLs are percent-encoded when they are parsed: a second lock.
        if path.len() > MAX_PATH_BYTES || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        let mut head = format!("POST {path} HTTP/1.1\r\n").into_bytes();
        let authority = match url.port() {
            Some(port) => format!("{}:{port}", url.host_str()?),
            None => url.host_str()?.to_owned(),
        };
        put_line(&mut head, "host", authority.as_bytes());
        put_line(&mut head, "user-agent", USER_AGENT.as_bytes());
        for (name, value) in headers::custom_headers(custom) {
            put_line(&mut head, &name, value.as_bytes());
        }
        // A third one, for HTTP/2 takes the head apart again.
        Uri::try_from(format!("{}://{authority}{path}", url.scheme())).ok()?;
        let origin = Origin { https, host, port };
        let mut hasher = DefaultHasher::new();
        origin.hash(&mut hasher);
        // Any part of a hash is as good as the whole.
        let spread = hasher.finish() as usize;
        Some(Self { origin, head: head.into(), spread })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Option<Target> {
        Target::new(&url.parse().unwrap(), &[("X-Team".to_owned(), "blue".to_owned())].into())
    }

    #[test]
    fn a_request_names_the_host_and_asks_for_path_and_query_only() {
        let target = target("https://user:secret@Example.com:8443/a b?c=\"d\"#e").unwrap();
        let origin = Origin { https: true, host: "example.com".into(), port: 8443 };
        assert_eq!(target.origin, origin);
        let head = String::from_utf8(target.head.into()).unwrap();
        let expected = format!(
            "POST /a%20b?c=%22d%22 HTTP/1.1\r\nhost: example.com:8443\r\nuser-agent: {USER_AGENT}\r\nx-team: blue\r\n"
        );
        assert_eq!(head, expected);
    }

    #[test]
    fn ports_follow_the_scheme_and_addresses_keep_their_brackets_in_the_host_header() {
        let table = [
            ("http://example.com", "example.com", 80, "host: example.com\r\n"),
            ("https://example.com:443/", "example.com", 443, "host: example.com\r\n"),
            ("http://[::1]:81/", "::1", 81, "host: [::1]:81\r\n"),
        ];
        for (url, host, port, line) in table {
            let target = target(url).unwrap();
            assert_eq!((&*target.origin.host, target.origin.port), (host, port), "{url}");
            assert!(String::from_utf8_lossy(&target.head).contains(line), "{url}");
        }
        assert!(target("ftp://example.com/").is_none());
        assert!(target(&format!("http://example.com/{}", "x".repeat(MAX_PATH_BYTES))).is_none());
    }
}
