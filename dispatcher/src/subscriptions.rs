//! The subscriptions, by tenant and by id, fed from the `config` topic.
//!
//! Partition threads read on every record, the feed writes now and then: a read takes a shared lock for as long as it takes to
//! clone one `Arc`.

use crate::{
    delivery::Delivery,
    headers,
    lane::{Lane, Limits},
    sign::SigningKeys,
};
use floodway_schemas::{
    UnixMillis,
    config::{ConfigChange, ConfigKey, Subscription, SubscriptionState},
    ids::{SubscriptionId, TenantId},
    seal::SealingKeys,
};
use http::{HeaderMap, Uri};
use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

/// A subscription made ready for deliveries.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Its configuration.
    pub(crate) subscription: Subscription,
    /// Where to; `None` when the URL is not one that HTTP can address.
    pub(crate) uri: Option<Uri>,
    /// Its own headers.
    pub(crate) headers: HeaderMap,
    /// Its secrets, opened.
    pub(crate) keys: SigningKeys,
    /// Its lane, kept across changes of the configuration.
    pub(crate) lane: Arc<Lane<Delivery>>,
}

/// All subscriptions.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions(RwLock<Index>);

#[derive(Debug, Default)]
struct Index {
    by_id: HashMap<SubscriptionId, Arc<Endpoint>>,
    /// Copied on write only while a reader holds it.
    by_tenant: HashMap<TenantId, Arc<Vec<Arc<Endpoint>>>>,
}

impl Endpoint {
    fn new(subscription: Subscription, sealing: &SealingKeys, lane: Arc<Lane<Delivery>>) -> Self {
        let mut url = subscription.url.clone();
        // User information in a URL is for the connection, and no part of what is asked for.
        let _ = url.set_username("").and_then(|()| url.set_password(None));
        url.set_fragment(None);
        Self {
            uri: Uri::try_from(url.as_str()).ok(),
            headers: headers::custom_headers(&subscription.headers),
            keys: SigningKeys::open(&subscription, sealing),
            lane,
            subscription,
        }
    }

    /// Whether an event of this type, recorded at `at`, is for this subscription.
    pub(crate) fn wants(&self, event_type: &str, at: UnixMillis) -> bool {
        self.subscription.state != SubscriptionState::Disabled
            && self.subscription.active_from <= at
            && self.subscription.types.iter().any(|pattern| pattern.matches(event_type))
    }
}

impl Subscriptions {
    /// Takes a change of the configuration. A version that is not newer than the one held is ignored.
    pub(crate) fn apply(&self, change: ConfigChange, sealing: &SealingKeys) {
        match change {
            ConfigChange::Subscription(subscription) => self.put(*subscription, sealing),
            ConfigChange::Deleted(ConfigKey::Subscription(id)) => self.write().remove(id),
            ConfigChange::Tenant(_) | ConfigChange::ApiKey(_) | ConfigChange::Deleted(_) => {}
        }
    }

    /// The subscription with this id.
    pub(crate) fn get(&self, id: SubscriptionId) -> Option<Arc<Endpoint>> {
        self.read().by_id.get(&id).cloned()
    }

    /// The subscriptions of a tenant.
    pub(crate) fn of_tenant(&self, tenant: TenantId) -> Option<Arc<Vec<Arc<Endpoint>>>> {
        self.read().by_tenant.get(&tenant).cloned()
    }

    /// Number of subscriptions.
    pub(crate) fn len(&self) -> usize {
        self.read().by_id.len()
    }

    /// Takes every delivery that waits out of its lane.
    pub(crate) fn take_waiting(&self) -> Vec<Delivery> {
        self.endpoints().iter().flat_map(|endpoint| endpoint.lane.take_waiting()).collect()
    }

    /// Takes every delivery that waited for too long out of its lane, each with the time to defer it for.
    pub(crate) fn take_overdue(&self, limits: &Limits, now: Instant) -> Vec<(Delivery, Duration)> {
        let take = |endpoint: &Arc<Endpoint>| endpoint.lane.take_overdue(limits, now, rand::random());
        self.endpoints().iter().flat_map(take).collect()
    }

    fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        self.read().by_id.values().cloned().collect()
    }

    fn put(&self, subscription: Subscription, sealing: &SealingKeys) {
        let held = self.get(subscription.id);
        if held.as_ref().is_some_and(|held| held.subscription.version >= subscription.version) {
            return;
        }
        let lane = held.map(|held| Arc::clone(&held.lane)).unwrap_or_default();
        // Secrets are opened outside of the lock.
        let endpoint = Arc::new(Endpoint::new(subscription, sealing, lane));
        self.write().insert(endpoint);
    }

    /// Each critical section leaves the index usable at every point: a panic elsewhere is no reason to stop.
    fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    fn insert(&mut self, endpoint: Arc<Endpoint>) {
        let (id, tenant) = (endpoint.subscription.id, endpoint.subscription.tenant);
        if let Some(held) = self.by_id.insert(id, Arc::clone(&endpoint)) {
            self.detach(&held);
        }
        Arc::make_mut(self.by_tenant.entry(tenant).or_default()).push(endpoint);
    }

    fn remove(&mut self, id: SubscriptionId) {
        if let Some(held) = self.by_id.remove(&id) {
            self.detach(&held);
        }
    }

    fn detach(&mut self, held: &Arc<Endpoint>) {
        let Entry::Occupied(mut of_tenant) = self.by_tenant.entry(held.subscription.tenant) else { return };
        Arc::make_mut(of_tenant.get_mut()).retain(|endpoint| !Arc::ptr_eq(endpoint, held));
        if of_tenant.get().is_empty() {
            of_tenant.remove();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealing() -> SealingKeys {
        SealingKeys::parse(&floodway_runtime::testing::SEALING_KEY.to_owned().into()).unwrap()
    }

    fn subscription(version: u64, types: &str, state: &str) -> Subscription {
        let golden = include_str!("../../schemas/golden/config-subscription.json");
        let mut json: serde_json::Value = serde_json::from_str(golden).unwrap();
        json["version"] = version.into();
        json["types"] = serde_json::from_str(types).unwrap();
        json["state"] = state.into();
        serde_json::from_value(json).unwrap()
    }

    fn put(index: &Subscriptions, subscription: &Subscription) {
        index.apply(ConfigChange::Subscription(Box::new(subscription.clone())), &sealing());
    }

    #[test]
    fn a_newer_version_replaces_and_keeps_the_lane_an_older_one_is_ignored() {
        let index = Subscriptions::default();
        let second = subscription(2, r#"["*"]"#, "active");
        put(&index, &second);
        let lane = Arc::clone(&index.get(second.id).unwrap().lane);
        put(&index, &subscription(1, r#"["old"]"#, "active"));
        put(&index, &subscription(3, r#"["new"]"#, "active"));
        let held = index.get(second.id).unwrap();
        assert_eq!(held.subscription.version, 3);
        assert!(Arc::ptr_eq(&held.lane, &lane));
        assert_eq!(index.of_tenant(second.tenant).unwrap().len(), 1);
        index.apply(ConfigChange::Deleted(ConfigKey::Subscription(second.id)), &sealing());
        assert!(index.get(second.id).is_none() && index.of_tenant(second.tenant).is_none());
        assert_eq!(index.len(), 0);
    }

    #[test]
    fn an_endpoint_wants_its_types_from_its_first_day_on() {
        let from = UnixMillis(1_795_275_240_123);
        let table = [
            (r#"["order.*"]"#, "active", "order.created", from, true),
            (r#"["order.*"]"#, "paused", "order.created", from, true),
            (r#"["order.*"]"#, "disabled", "order.created", from, false),
            (r#"["order.*"]"#, "active", "order.created", UnixMillis(from.0 - 1), false),
            (r#"["order.*","user.left"]"#, "active", "user.left", from, true),
            (r#"["order.*","user.left"]"#, "active", "user.joined", from, false),
        ];
        for (types, state, event_type, at, expected) in table {
            let endpoint = Endpoint::new(subscription(1, types, state), &sealing(), Arc::default());
            assert_eq!(endpoint.wants(event_type, at), expected, "{types} {state} {event_type}");
        }
    }
}
