//! Which addresses deliveries may reach: public ones, and networks that the operator opened.
//!
//! A subscriber chooses the URL, so without this rule the dispatcher would be a way into the operator's own network and its
//! cloud's metadata service. The dispatcher checks the address that it then connects to; the control plane refuses URLs with such
//! addresses early, with the reason.

use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IPv4 networks that are not public, by IANA's special-purpose registry, and one metadata service with a public address.
const FORBIDDEN_V4: [(Ipv4Addr, u8, &str); 17] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8, "unspecified"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "private"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "carrier-grade NAT"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "loopback"),
    (Ipv4Addr::new(168, 63, 129, 16), 32, "a metadata service"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "link-local or a metadata service"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "private"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "reserved for protocol assignments"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "documentation"),
    (Ipv4Addr::new(192, 31, 196, 0), 24, "reserved for AS112"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "reserved for 6to4 relays"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "private"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "benchmarking"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "documentation"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "documentation"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "reserved or broadcast"),
];

/// IPv6 networks inside global unicast (2000::/3) that are not public or lead to IPv4 addresses.
const FORBIDDEN_V6: [(Ipv6Addr, u8, &str); 5] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, "reserved for protocol assignments"),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, "documentation"),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16, "6to4"),
    (Ipv6Addr::new(0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0), 48, "reserved for AS112"),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, "documentation"),
];

/// Why deliveries must not reach `ip`; `None` when they may. Everything not known to be public is refused, unless it is
/// in one of the `opened` networks.
pub fn refusal(ip: IpAddr, opened: &[IpNet]) -> Option<&'static str> {
    if opened.iter().any(|network| network.contains(&ip)) {
        return None;
    }
    match ip {
        IpAddr::V4(ip) => refusal_v4(ip),
        IpAddr::V6(ip) => refusal_v6(ip),
    }
}

fn refusal_v4(ip: Ipv4Addr) -> Option<&'static str> {
    let is_in = |network, bits: u8| (u32::from(ip) ^ u32::from(network)) >> (32 - u32::from(bits)) == 0;
    FORBIDDEN_V4.iter().find(|&&(network, bits, _)| is_in(network, bits)).map(|&(_, _, what)| what)
}

/// Global unicast only: that alone refuses loopback, unspecified, v4-mapped and v4-compatible, NAT64, unique local, link-local
/// and multicast addresses.
fn refusal_v6(ip: Ipv6Addr) -> Option<&'static str> {
    let bits = u128::from(ip);
    if bits >> 125 != 0b001 {
        return Some(if ip.is_loopback() {
            "loopback"
        } else if ip.to_ipv4_mapped().is_some() {
            "IPv4-mapped"
        } else if ip.is_unique_local() {
            "private or a metadata service"
        } else {
            "not global unicast"
        });
    }
    let is_in = |network, length: u8| (bits ^ u128::from(network)) >> (128 - u32::from(length)) == 0;
    FORBIDDEN_V6.iter().find(|&&(network, length, _)| is_in(network, length)).map(|&(_, _, what)| what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_allowed() {
        let table = [
            ("1.1.1.1", true),
            ("93.184.216.34", true),
            ("100.63.255.255", true),
            ("100.128.0.1", true),
            ("172.15.0.1", true),
            ("172.32.0.1", true),
            ("169.253.0.1", true),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("10.0.0.1", false),
            ("100.64.0.1", false),
            ("100.100.100.200", false),
            ("127.0.0.1", false),
            ("127.255.255.254", false),
            ("168.63.129.16", false),
            ("169.254.169.254", false),
            ("172.16.0.1", false),
            ("172.31.255.255", false),
            ("192.0.0.192", false),
            ("192.0.2.1", false),
            ("192.88.99.1", false),
            ("192.168.1.1", false),
            ("198.18.0.1", false),
            ("198.19.255.255", false),
            ("198.51.100.1", false),
            ("203.0.113.1", false),
            ("224.0.0.1", false),
            ("239.255.255.255", false),
            ("240.0.0.1", false),
            ("255.255.255.255", false),
            ("2606:4700:4700::1111", true),
            ("2a00:1450:4001::1", true),
            ("::", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("::ffff:1.1.1.1", false),
            ("::1.1.1.1", false),
            ("64:ff9b::7f00:1", false),
            ("64:ff9b:1::1", false),
            ("100::1", false),
            ("2001::1", false),
            ("2001:20::1", false),
            ("2001:db8::1", false),
            ("2002:7f00:1::", false),
            ("3fff::1", false),
            ("5f00::1", false),
            ("fc00::1", false),
            ("fd00:ec2::254", false),
            ("fe80::1", false),
            ("ff02::1", false),
        ];
        for (ip, expected) in table {
            assert_eq!(refusal(ip.parse().unwrap(), &[]).is_none(), expected, "{ip}");
        }
    }

    #[test]
    fn an_opened_network_opens_nothing_else() {
        let opened = ["127.0.0.0/8".parse().unwrap()];
        assert_eq!(refusal("127.0.0.1".parse().unwrap(), &opened), None);
        for ip in ["10.0.0.1", "::1", "::ffff:127.0.0.1"] {
            assert!(refusal(ip.parse().unwrap(), &opened).is_some(), "{ip}");
        }
    }
}
