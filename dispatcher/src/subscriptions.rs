//! The subscriptions, by tenant and by id, fed from the `config` topic.
//!
//! Partition threads read on every record, the feed writes now and then: readers take what is there as it is and wait for nobody,
//! the writer copies the small part that it changes.

use crate::{
    delivery::Delivery,
    lane::{Lane, Limits, PutOff},
    read_map::ReadMap,
    sign::SigningKeys,
    target::Target,
};
use arc_swap::ArcSwap;
use floodway_schemas::{
    UnixMillis,
    config::{ConfigChange, ConfigKey, Subscription, SubscriptionState},
    ids::{SubscriptionId, TenantId},
    outcome::Via,
    pattern::TypeIndex,
    seal::SealingKeys,
};
use std::{
    iter,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

/// A subscription made ready for deliveries.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// Its configuration, without what is elsewhere in this: headers and secrets.
    pub(crate) subscription: Subscription,
    /// Where to, and with which headers of its own; `None` when the URL is not one that HTTP can address.
    pub(crate) target: Option<Target>,
    /// Its secrets, opened.
    pub(crate) keys: SigningKeys,
    /// Its lane, kept across changes of the configuration.
    pub(crate) lane: Arc<Lane<Delivery>>,
    /// Where deliveries go while that lane's endpoint gets none.
    pub(crate) fallback: Option<Box<Fallback>>,
}

/// An endpoint that stands in for a subscription's own. What it gets is signed alike.
#[derive(Debug)]
pub(crate) struct Fallback {
    /// Where to.
    pub(crate) target: Option<Target>,
    /// Its lane, with a breaker of its own.
    pub(crate) lane: Arc<Lane<Delivery>>,
}

/// All subscriptions. One thread changes them, any number reads.
#[derive(Debug, Default)]
pub(crate) struct Subscriptions {
    by_id: ReadMap<SubscriptionId, Arc<Endpoint>>,
    by_tenant: ReadMap<TenantId, Arc<ArcSwap<TypeIndex<Arc<Endpoint>>>>>,
    /// Number of subscriptions.
    len: AtomicUsize,
}

impl Endpoint {
    /// Of a subscription; `held` is what it was before.
    fn new(mut subscription: Subscription, sealing: &SealingKeys, held: Option<&Self>) -> Self {
        let keys = SigningKeys::open(&subscription, sealing);
        let target = Target::new(&subscription.url, &subscription.headers);
        let lane = held.map(|held| Arc::clone(&held.lane)).unwrap_or_default();
        let is_other_policy = held.is_some_and(|held| held.subscription.breaker != subscription.breaker);
        if is_other_policy || held.is_some_and(|held| held.subscription.url != subscription.url) {
            lane.close_breaker();
        }
        let fallback = subscription.fallback_url.as_ref().map(|url| {
            let target = Target::new(url, &subscription.headers);
            let held = held
                .and_then(|held| Some((held.subscription.fallback_url.as_ref()?, held.fallback.as_ref()?)));
            let lane = held.map(|(_, held)| Arc::clone(&held.lane)).unwrap_or_default();
            if is_other_policy || held.is_some_and(|(before, _)| before != url) {
                lane.close_breaker();
            }
            Box::new(Fallback { target, lane })
        });
        // There may be hundreds of thousands of them.
        subscription.secrets = Vec::new();
        subscription.headers = Default::default();
        Self { target, keys, lane, fallback, subscription }
    }

    /// The lane of one of its endpoints; its own when there is no other.
    pub(crate) fn lane(&self, via: Via) -> &Arc<Lane<Delivery>> {
        match (via, &self.fallback) {
            (Via::Fallback, Some(fallback)) => &fallback.lane,
            _ => &self.lane,
        }
    }

    /// Where requests to one of its endpoints go.
    pub(crate) fn target(&self, via: Via) -> Option<&Target> {
        match (via, &self.fallback) {
            (Via::Fallback, Some(fallback)) => fallback.target.as_ref(),
            _ => self.target.as_ref(),
        }
    }

    fn lanes(&self) -> impl Iterator<Item = &Arc<Lane<Delivery>>> {
        iter::once(&self.lane).chain(self.fallback.as_ref().map(|fallback| &fallback.lane))
    }

    /// Whether an event of a type that it wants, recorded at `at`, is for this subscription.
    pub(crate) fn is_open(&self, at: UnixMillis) -> bool {
        self.subscription.state != SubscriptionState::Disabled && self.subscription.active_from <= at
    }
}

impl Subscriptions {
    /// Takes a change of the configuration. A version that is not newer than the one held is ignored. Called by one thread.
    pub(crate) fn apply(&self, change: ConfigChange, sealing: &SealingKeys) {
        match change {
            ConfigChange::Subscription(subscription) => self.put(*subscription, sealing),
            ConfigChange::Deleted(ConfigKey::Subscription(id)) => self.remove(id),
            ConfigChange::Tenant(_) | ConfigChange::ApiKey(_) | ConfigChange::Deleted(_) => {}
        }
    }

    /// The subscription with this id.
    pub(crate) fn get(&self, id: SubscriptionId) -> Option<Arc<Endpoint>> {
        self.by_id.get(&id)
    }

    /// The subscriptions of a tenant that want an event of this type, recorded at `at`.
    pub(crate) fn matching(&self, tenant: TenantId, event_type: &str, at: UnixMillis) -> Vec<Arc<Endpoint>> {
        let Some(index) = self.by_tenant.get(&tenant) else { return Vec::new() };
        let index = index.load();
        index.matching(event_type).filter(|endpoint| endpoint.is_open(at)).cloned().collect()
    }

    /// Number of subscriptions.
    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Takes every delivery that waits out of its lane.
    pub(crate) fn take_waiting(&self) -> Vec<Delivery> {
        let mut waiting = Vec::new();
        self.by_id.for_each(|endpoint| waiting.extend(endpoint.lanes().flat_map(|lane| lane.take_waiting())));
        waiting
    }

    /// Takes every delivery that waited for too long out of its lane; `share` is this process's share of rates.
    pub(crate) fn take_overdue(&self, limits: &Limits, share: f64, now: Instant) -> Vec<PutOff<Delivery>> {
        let mut overdue = Vec::new();
        self.by_id.for_each(|endpoint| {
            let limits = limits.of(&endpoint.subscription, share);
            endpoint.lanes().for_each(|lane| overdue.extend(lane.take_overdue(&limits, now, rand::random())));
        });
        overdue
    }

    fn put(&self, subscription: Subscription, sealing: &SealingKeys) {
        let held = self.get(subscription.id);
        if held.as_ref().is_some_and(|held| held.subscription.version >= subscription.version) {
            return;
        }
        let endpoint = Arc::new(Endpoint::new(subscription, sealing, held.as_deref()));
        let Subscription { id, tenant, ref types, .. } = endpoint.subscription;
        self.by_id.insert(id, Arc::clone(&endpoint));
        let own = self.by_tenant.get(&tenant).unwrap_or_default();
        let mut index = TypeIndex::clone(&own.load());
        // One exchange: no event sees the subscription twice, or not at all.
        if let Some(held) = held.as_ref().filter(|held| held.subscription.tenant == tenant) {
            index.remove(&held.subscription.types, |endpoint| Arc::ptr_eq(endpoint, held));
        }
        index.insert(types, &endpoint);
        own.store(Arc::new(index));
        self.by_tenant.insert(tenant, own);
        match held {
            None => drop(self.len.fetch_add(1, Ordering::Relaxed)),
            Some(held) if held.subscription.tenant != tenant => self.detach(&held),
            Some(_) => {}
        }
    }

    fn remove(&self, id: SubscriptionId) {
        if let Some(held) = self.by_id.remove(&id) {
            self.detach(&held);
            self.len.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Takes a subscription out of its tenant's index.
    fn detach(&self, held: &Arc<Endpoint>) {
        let tenant = held.subscription.tenant;
        let Some(own) = self.by_tenant.get(&tenant) else { return };
        let mut index = TypeIndex::clone(&own.load());
        index.remove(&held.subscription.types, |endpoint| Arc::ptr_eq(endpoint, held));
        if index.is_empty() {
            self.by_tenant.remove(&tenant);
        }
        own.store(Arc::new(index));
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
        let of_type = |event_type| index.matching(second.tenant, event_type, UnixMillis(i64::MAX));
        assert_eq!((of_type("new").len(), of_type("old").len(), of_type("other").len()), (1, 0, 0));
        index.apply(ConfigChange::Deleted(ConfigKey::Subscription(second.id)), &sealing());
        assert!(index.get(second.id).is_none() && of_type("new").is_empty());
        assert!(index.by_tenant.get(&second.tenant).is_none());
        assert_eq!(index.len(), 0);
    }

    #[test]
    fn a_fallback_has_a_lane_of_its_own_which_is_kept_while_there_is_one() {
        let index = Subscriptions::default();
        let with = |version, fallback: Option<&str>| {
            let fallback_url = fallback.map(|url| Box::new(url.parse().unwrap()));
            let subscription = Subscription { fallback_url, ..subscription(version, r#"["*"]"#, "active") };
            put(&index, &subscription);
            index.get(subscription.id).unwrap()
        };
        let first = with(1, Some("https://else.com/a"));
        let own = first.lane(Via::Fallback);
        assert!(!Arc::ptr_eq(own, first.lane(Via::Main)));
        assert_eq!(&*first.target(Via::Fallback).unwrap().origin.host, "else.com");
        assert_eq!(&*first.target(Via::Main).unwrap().origin.host, "example.com");
        assert!(Arc::ptr_eq(own, with(2, Some("https://other.com/")).lane(Via::Fallback)));
        let without = with(3, None);
        assert!(Arc::ptr_eq(without.lane(Via::Fallback), first.lane(Via::Main)));
        assert!(without.fallback.is_none());
    }

    #[test]
    fn a_subscription_wants_its_types_from_its_first_day_on() {
        let from = UnixMillis(1_795_275_240_123);
        let table = [
            (r#"["order.*"]"#, "active", "order.created", from, true),
            (r#"["order.*"]"#, "paused", "order.created", from, true),
            (r#"["order.*"]"#, "disabled", "order.created", from, false),
            (r#"["order.*"]"#, "active", "order.created", UnixMillis(from.0 - 1), false),
            (r#"["order.*","user.left"]"#, "active", "user.left", from, true),
            (r#"["order.*","user.left"]"#, "active", "user.joined", from, false),
            (r#"["order.*","order.created"]"#, "active", "order.created", from, true),
        ];
        for (types, state, event_type, at, expected) in table {
            let index = Subscriptions::default();
            let subscription = subscription(1, types, state);
            put(&index, &subscription);
            let found = index.matching(subscription.tenant, event_type, at).len();
            assert_eq!(found, usize::from(expected), "{types} {state} {event_type}");
        }
    }

    #[test]
    fn a_subscription_takes_little_memory() {
        let index = Subscriptions::default();
        let mut subscription = subscription(1, r#"["order.*"]"#, "active");
        subscription.headers = [("x-team".to_owned(), "y".repeat(100))].into();
        put(&index, &subscription);
        let held = index.get(subscription.id).unwrap();
        // What the target and the keys were made from is not kept beside them.
        assert!(held.subscription.secrets.is_empty() && held.subscription.headers.is_empty());
        let target = held.target.as_ref().unwrap();
        let of_target = target.head.len() + target.origin.host.len();
        let of_subscription = held.subscription.url.as_str().len() + size_of_val(&*held.subscription.types);
        // The endpoint and its lane; both maps with its share of their empty places; an index of types of its own, as if it were its
        // tenant's only one.
        let own = size_of::<Endpoint>() + size_of::<Lane<Delivery>>();
        let maps = 4 * (size_of::<(SubscriptionId, Arc<Endpoint>)>() + size_of::<(TenantId, usize)>());
        let types = size_of::<ArcSwap<TypeIndex<Arc<Endpoint>>>>() + size_of::<TypeIndex<Arc<Endpoint>>>();
        let bytes = own + of_target + of_subscription + maps + types;
        assert!(bytes <= 1536, "{bytes} bytes");
    }
}
