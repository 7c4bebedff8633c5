//! Open connections by client address, so that one client does not take the places of all.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, Ipv6Addr},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// The network part of an IPv6 address: a client has the other half to itself.
const IPV6_NETWORK: u128 = !(u64::MAX as u128);

/// Counts connections. Touched when one opens or closes, never by a request. Holds an entry per address with an open
/// connection, so no more than there may be connections.
#[derive(Debug)]
pub(crate) struct OpenByAddress {
    /// 0 for no limit.
    limit: usize,
    counts: Mutex<HashMap<IpAddr, usize>>,
}

impl OpenByAddress {
    /// No connections yet, and at most `limit` per address later; 0 for no limit.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, counts: Mutex::default() }
    }

    /// Counts one more for the address; false, and nothing counted, when it has as many as it may.
    pub(crate) fn enter(&self, address: IpAddr) -> bool {
        if self.limit == 0 {
            return true;
        }
        match self.counts().entry(client(address)) {
            Entry::Occupied(count) if *count.get() >= self.limit => return false,
            Entry::Occupied(mut count) => *count.get_mut() += 1,
            Entry::Vacant(count) => drop(count.insert(1)),
        }
        true
    }

    /// Undoes an [`OpenByAddress::enter`] that counted.
    pub(crate) fn leave(&self, address: IpAddr) {
        if self.limit > 0
            && let Entry::Occupied(mut count) = self.counts().entry(client(address))
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    // Each critical section leaves the map whole, so a panic elsewhere does not spoil it.
    fn counts(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What counts as one client: an IPv4 address, also one written as IPv6, or an IPv6 network.
fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & IPV6_NETWORK).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_client_takes_no_more_than_its_share_and_nothing_remains_of_it() {
        let open = OpenByAddress::new(2);
        let same = [("10.0.0.1", "::ffff:10.0.0.1"), ("2001:db8:1:2::3", "2001:db8:1:2:ffff::4")];
        for (one, other) in same {
            assert!(open.enter(address(one)) && open.enter(address(other)));
            assert!(!open.enter(address(one)));
        }
        assert!(open.enter(address("10.0.0.2")) && open.enter(address("2001:db8:1:3::3")));
        open.leave(address("10.0.0.1"));
        assert!(open.enter(address("10.0.0.1")));
        for (one, other) in same {
            open.leave(address(one));
            open.leave(address(other));
        }
        open.leave(address("10.0.0.2"));
        open.leave(address("2001:db8:1:3::3"));
        assert!(open.counts().is_empty());
    }

    #[test]
    fn without_a_limit_nothing_is_counted() {
        let open = OpenByAddress::new(0);
        assert!((0..100).all(|_| open.enter(address("10.0.0.1"))));
        assert!(open.counts().is_empty());
        open.leave(address("10.0.0.1"));
    }
}
