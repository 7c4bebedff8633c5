//! Which URLs a subscription may deliver to.
//!
//! This refuses mistakes and plain attempts early, with a message. It is not the guard: a host name can resolve to
//! anything later, so the dispatcher checks every address that it connects to.

use floodway_schemas::address;
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use url::{Host, Url};

/// Longest URL, in bytes, as given and as stored.
const MAX_URL_BYTES: usize = 2_048;

/// What the operator allows beyond the public internet.
#[derive(Debug, Clone, Default)]
pub(crate) struct EndpointRules {
    allowed: Vec<IpNet>,
}

impl EndpointRules {
    pub(crate) fn new(allowed: Vec<IpNet>) -> Self {
        Self { allowed }
    }

    /// The URL that deliveries go to while `url` does not answer, or why it cannot be one.
    pub(crate) fn check_fallback(&self, text: &str, url: &Url) -> Result<Box<Url>, String> {
        let fallback = self.check(text).map_err(|error| format!("fallback_{error}"))?;
        if fallback == *url {
            return Err("fallback_url is url: what does not answer cannot stand in for itself".to_owned());
        }
        Ok(Box::new(fallback))
    }

    /// The URL as it is stored, or why it cannot be one.
    pub(crate) fn check(&self, text: &str) -> Result<Url, String> {
        if text.len() > MAX_URL_BYTES {
            return Err(format!("url has {} bytes, at most {MAX_URL_BYTES} are allowed", text.len()));
        }
        let url = Url::parse(text).map_err(|error| format!("url is not a URL: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err("url must start with https:// or http://".to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("url must not hold a user name or password: they would be stored in clear".to_owned());
        }
        if url.fragment().is_some() {
            return Err("url must not have a fragment".to_owned());
        }
        if url.as_str().len() > MAX_URL_BYTES {
            return Err(format!("url has more than {MAX_URL_BYTES} bytes once escaped"));
        }
        match url.host() {
            None => return Err("url has no host".to_owned()),
            Some(Host::Domain(name)) => self.check_name(name)?,
            Some(Host::Ipv4(address)) => self.check_address(address.into())?,
            Some(Host::Ipv6(address)) => self.check_address(address.into())?,
        }
        Ok(url)
    }

    fn check_name(&self, name: &str) -> Result<(), String> {
        // The URL parser has made it lower case already. A final dot names the same host.
        let name = name.trim_end_matches('.');
        if name.is_empty() {
            return Err("url has no host".to_owned());
        }
        let is_local = name == "localhost"
            || name.ends_with(".localhost")
            || matches!(name, "localhost.localdomain" | "ip6-localhost" | "ip6-loopback");
        if is_local && !self.allows(Ipv4Addr::LOCALHOST.into()) && !self.allows(Ipv6Addr::LOCALHOST.into()) {
            return Err(format!("url names {name}, which is this machine; {ALLOW}"));
        }
        if name == "metadata.google.internal" && !self.allows(Ipv4Addr::new(169, 254, 169, 254).into()) {
            return Err(format!("url names {name}, a metadata service; {ALLOW}"));
        }
        Ok(())
    }

    fn check_address(&self, address: IpAddr) -> Result<(), String> {
        match address::refusal(address, &self.allowed) {
            Some(what) => Err(format!("url points to {address}, which is {what}; {ALLOW}")),
            None => Ok(()),
        }
    }

    fn allows(&self, address: IpAddr) -> bool {
        address::refusal(address, &self.allowed).is_none()
    }
}

const ALLOW: &str = "the operator can allow it with FLOODWAY_CONTROL_PLANE__ALLOWED_NETWORKS";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_judged_as_in_this_table() {
        let rules = EndpointRules::new(vec![]);
        let good = [
            "https://example.com/hook",
            "http://example.com:8080/a?b=c",
            "https://EXAMPLE.com",
            "https://1.1.1.1/",
            "https://[2606:4700::1111]/",
            "https://münchen.example/ü",
            "https://localhost.example.com/",
            "https://notlocalhost/",
        ];
        for url in good {
            assert!(rules.check(url).is_ok(), "{url}: {:?}", rules.check(url));
        }
        let long = format!("https://example.com/{}", "a".repeat(MAX_URL_BYTES));
        let escaped_long = format!("https://example.com/{}", "ü".repeat(1_000));
        let bad = [
            ("", "not a URL"),
            ("example.com/hook", "not a URL"),
            ("https://", "not a URL"),
            ("ftp://example.com/", "must start with"),
            ("file:///etc/passwd", "must start with"),
            ("javascript:alert(1)", "must start with"),
            ("https://user@example.com/", "user name"),
            ("https://:secret@example.com/", "user name"),
            ("https://example.com/#top", "fragment"),
            (&long, "bytes"),
            (&escaped_long, "escaped"),
            ("http://localhost/", "this machine"),
            ("http://LOCALHOST.:80/", "this machine"),
            ("http://a.localhost/", "this machine"),
            ("http://metadata.google.internal/", "metadata"),
            ("http://127.0.0.1/", "loopback"),
            ("http://127.1/", "loopback"),
            ("http://0x7f000001/", "loopback"),
            ("http://2130706433/", "loopback"),
            ("http://017700000001/", "loopback"),
            ("http://0.0.0.0/", "unspecified"),
            ("http://10.1.2.3/", "private"),
            ("http://172.31.255.255/", "private"),
            ("http://192.168.0.1/", "private"),
            ("http://100.64.0.1/", "carrier-grade"),
            ("http://169.254.169.254/latest/meta-data", "metadata"),
            ("http://224.0.0.1/", "multicast"),
            ("http://255.255.255.255/", "reserved"),
            ("http://[::1]/", "loopback"),
            ("http://[::]/", "global unicast"),
            ("http://[::ffff:10.0.0.1]/", "IPv4-mapped"),
            ("http://[::ffff:1.1.1.1]/", "IPv4-mapped"),
            ("http://[64:ff9b::a00:1]/", "global unicast"),
            ("http://[64:ff9b:1::1]/", "global unicast"),
            ("http://[fd00:ec2::254]/", "metadata"),
            ("http://[fe80::1]/", "global unicast"),
            ("http://[fec0::1]/", "global unicast"),
            ("http://[ff02::1]/", "global unicast"),
            ("http://[2002:a00:1::]/", "6to4"),
            ("http://[2001:0:53aa::1]/", "reserved"),
        ];
        for (url, reason) in bad {
            let error = rules.check(url).expect_err(url);
            assert!(error.contains(reason), "{url}: {error}");
        }
    }

    #[test]
    fn a_fallback_is_judged_like_a_url_and_is_another_one() {
        let rules = EndpointRules::new(vec![]);
        let url = "https://example.com/hook".parse().unwrap();
        assert!(rules.check_fallback("https://example.com/else", &url).is_ok());
        let bad = [
            ("https://EXAMPLE.com:443/hook", "fallback_url is url"),
            ("http://10.0.0.1/", "fallback_url points to 10.0.0.1, which is private"),
            ("https://user@example.com/", "fallback_url must not hold a user name"),
            ("x", "fallback_url is not a URL"),
        ];
        for (fallback, reason) in bad {
            let error = rules.check_fallback(fallback, &url).unwrap_err();
            assert!(error.contains(reason), "{fallback}: {error}");
        }
    }

    #[test]
    fn what_the_operator_allows_passes_and_nothing_else() {
        let rules = EndpointRules::new(vec!["127.0.0.0/8".parse().unwrap(), "10.0.0.0/8".parse().unwrap()]);
        for url in ["http://127.0.0.1:9000/", "http://localhost:9000/", "http://10.1.1.1/"] {
            assert!(rules.check(url).is_ok(), "{url}");
        }
        for url in ["http://192.168.1.1/", "http://[::1]/", "http://[::ffff:127.0.0.1]/"] {
            assert!(rules.check(url).is_err(), "{url}");
        }
    }
}
