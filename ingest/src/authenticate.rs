//! Who sends: the keys and tenants of the `config` topic, held in memory.

use crate::{
    budget::TenantBytes,
    error::Refusal,
    limit::{Limits, Rates, Scope, Standing},
};
use floodway_schemas::{
    UnixMillis,
    api_key::{PresentedKey, SecretHash},
    config::{ApiKeyRecord, ApiKeyState, ConfigChange, ConfigKey, Tenant, TenantState},
    ids::{ApiKeyId, TenantId},
};
use http::{HeaderMap, header::AUTHORIZATION};
use std::{
    collections::HashMap,
    num::NonZeroU32,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
};

/// Compared with when the key is unknown, so that this case takes the time of the others. No secret has this hash.
const NO_HASH: SecretHash = SecretHash([0; 32]);

/// An authenticated sender.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The key that was presented; the default `source` of its events.
    pub(crate) key: ApiKeyId,
    /// Its owner.
    pub(crate) tenant: Arc<TenantAccess>,
    /// The key's own limits.
    key_limits: Option<Arc<Limits>>,
}

impl Caller {
    /// Counts the request against the limits of its tenant and key.
    pub(crate) fn take_request(&self, standing: &mut Standing) -> Result<(), Refusal> {
        self.limits().try_for_each(|limits| limits.take_request(standing))
    }

    /// Counts a request's events, all or none of them against each limit.
    pub(crate) fn take_events(&self, events: usize, standing: &mut Standing) -> Result<(), Refusal> {
        self.limits().try_for_each(|limits| limits.take_events(events, standing))
    }

    /// The key's own limits first: what they refuse takes nothing of the tenant's, which its other keys share.
    fn limits(&self) -> impl Iterator<Item = &Limits> {
        [&self.key_limits, &self.tenant.limits].into_iter().flatten().map(Arc::as_ref)
    }
}

/// A tenant as far as accepting is concerned.
#[derive(Debug)]
pub(crate) struct TenantAccess {
    pub(crate) id: TenantId,
    version: u64,
    state: TenantState,
    /// Kept across versions that do not change the rates: a change of name gives no new burst.
    limits: Option<Arc<Limits>>,
    /// Its request bodies in memory. A new version counts anew, within the bound of the process.
    pub(crate) body_bytes: TenantBytes,
}

/// Every key and tenant. Read once per request, written when the configuration changes.
#[derive(Debug)]
pub(crate) struct KeyTable {
    entries: RwLock<Entries>,
    caught_up: AtomicBool,
    /// Of tenants without rates of their own.
    default_rates: Rates,
    burst_seconds: NonZeroU32,
}

#[derive(Debug, Default)]
struct Entries {
    keys: HashMap<ApiKeyId, KeyAccess>,
    tenants: HashMap<TenantId, Arc<TenantAccess>>,
}

#[derive(Debug)]
struct KeyAccess {
    record: ApiKeyRecord,
    limits: Option<Arc<Limits>>,
}

impl KeyTable {
    /// An empty table that refuses everybody until it has caught up.
    pub(crate) fn new(default_rates: Rates, burst_seconds: NonZeroU32) -> Self {
        Self { entries: RwLock::default(), caught_up: AtomicBool::new(false), default_rates, burst_seconds }
    }

    /// From now on a key that is not in the table does not exist.
    pub(crate) fn set_caught_up(&self) {
        self.caught_up.store(true, Ordering::Release);
    }

    /// Finds out who sends a request.
    pub(crate) fn authenticate(&self, headers: &HeaderMap, now: UnixMillis) -> Result<Caller, Refusal> {
        if !self.caught_up.load(Ordering::Acquire) {
            return Err(Refusal::NotReady);
        }
        let presented =
            bearer(headers).and_then(|text| PresentedKey::parse(text).ok()).ok_or(Refusal::Unauthorized)?;
        let entries = self.read();
        let key = entries.keys.get(&presented.id);
        let proven = key.map_or(NO_HASH, |key| key.record.hash) == presented.hash;
        let key = key.filter(|key| proven && is_accepted(&key.record, now)).ok_or(Refusal::Unauthorized)?;
        let tenant = entries.tenants.get(&key.record.tenant).ok_or(Refusal::Unauthorized)?;
        match tenant.state {
            TenantState::Active => {
                Ok(Caller { key: presented.id, tenant: Arc::clone(tenant), key_limits: key.limits.clone() })
            }
            TenantState::Suspended => Err(Refusal::Suspended),
        }
    }

    /// Takes over a change; one that is not newer than what the table has is ignored.
    pub(crate) fn apply(&self, change: ConfigChange) {
        match change {
            ConfigChange::ApiKey(record) => self.put_key(record),
            ConfigChange::Tenant(tenant) => self.put_tenant(&tenant),
            ConfigChange::Deleted(ConfigKey::ApiKey(id)) => drop(self.write().keys.remove(&id)),
            ConfigChange::Deleted(ConfigKey::Tenant(id)) => drop(self.write().tenants.remove(&id)),
            ConfigChange::Subscription(_) | ConfigChange::Deleted(ConfigKey::Subscription(_)) => {}
        }
    }

    fn put_key(&self, record: ApiKeyRecord) {
        let mut entries = self.write();
        let known = entries.keys.get(&record.id);
        if known.is_some_and(|known| known.record.version >= record.version) {
            return;
        }
        let rates = Rates { requests: record.requests_per_second, events: record.events_per_second };
        let limits = self.limits(Scope::Key, rates, known.and_then(|known| known.limits.as_ref()));
        entries.keys.insert(record.id, KeyAccess { record, limits });
    }

    /// Limits of these rates: the known ones, if they are of the same.
    fn limits(&self, scope: Scope, rates: Rates, known: Option<&Arc<Limits>>) -> Option<Arc<Limits>> {
        match known {
            Some(known) if known.rates() == rates => Some(Arc::clone(known)),
            _ => Limits::new(scope, rates, self.burst_seconds).map(Arc::new),
        }
    }

    fn put_tenant(&self, tenant: &Tenant) {
        let rates = Rates {
            requests: tenant.requests_per_second.or(self.default_rates.requests),
            events: tenant.events_per_second.or(self.default_rates.events),
        };
        let mut entries = self.write();
        let known = entries.tenants.get(&tenant.id);
        if known.is_some_and(|known| known.version >= tenant.version) {
            return;
        }
        let limits = self.limits(Scope::Tenant, rates, known.and_then(|known| known.limits.as_ref()));
        let access = TenantAccess {
            id: tenant.id,
            version: tenant.version,
            state: tenant.state,
            limits,
            body_bytes: TenantBytes::default(),
        };
        entries.tenants.insert(tenant.id, Arc::new(access));
    }

    // Each critical section leaves the maps whole, so a panic elsewhere does not spoil them.
    fn read(&self) -> RwLockReadGuard<'_, Entries> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Entries> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_accepted(record: &ApiKeyRecord, now: UnixMillis) -> bool {
    record.state == ApiKeyState::Active && record.expires_at.is_none_or(|end| now < end)
}

/// The credentials of the `Bearer` scheme, whose name is case-insensitive.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    // Two of them may have been two senders on the way here.
    let value = values.next().filter(|_| values.next().is_none())?;
    let (scheme, credentials) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| credentials.trim())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::Scope;
    use floodway_schemas::{api_key, config::CONFIG_VERSION};
    use secrecy::ExposeSecret;
    use uuid::Uuid;

    const NOW: UnixMillis = UnixMillis(1_000_000);
    const TENANT: TenantId = TenantId(Uuid::from_u128(1));
    const KEY: ApiKeyId = ApiKeyId(Uuid::from_u128(2));

    fn tenant(version: u64, state: TenantState) -> ConfigChange {
        let name = "t".to_owned();
        ConfigChange::Tenant(Tenant {
            v: CONFIG_VERSION,
            version,
            id: TENANT,
            name,
            state,
            events_per_second: None,
            requests_per_second: None,
        })
    }

    fn key(version: u64, state: ApiKeyState, expires_at: Option<i64>) -> ConfigChange {
        let (_, hash) = api_key::compose("live", KEY, &[7; 32]).unwrap();
        let expires_at = expires_at.map(UnixMillis);
        ConfigChange::ApiKey(ApiKeyRecord {
            v: CONFIG_VERSION,
            version,
            id: KEY,
            tenant: TENANT,
            hash,
            state,
            expires_at,
            events_per_second: None,
            requests_per_second: None,
        })
    }

    fn table(changes: impl IntoIterator<Item = ConfigChange>) -> KeyTable {
        let table = KeyTable::new(Rates::default(), NonZeroU32::MIN);
        changes.into_iter().for_each(|change| table.apply(change));
        table.set_caught_up();
        table
    }

    fn answer(table: &KeyTable, secret: [u8; 32]) -> Result<TenantId, Refusal> {
        let (text, _) = api_key::compose("live", KEY, &secret).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, format!("bearer {}", text.expose_secret()).parse().unwrap());
        table.authenticate(&headers, NOW).map(|caller| caller.tenant.id)
    }

    #[test]
    fn a_good_key_of_an_active_tenant_is_let_in() {
        let table = table([tenant(1, TenantState::Active), key(1, ApiKeyState::Active, Some(NOW.0 + 1))]);
        assert_eq!(answer(&table, [7; 32]), Ok(TENANT));
    }

    #[test]
    fn every_bad_key_gets_the_same_answer() {
        let active = tenant(1, TenantState::Active);
        let cases = [
            (vec![active.clone()], [7; 32]),
            (vec![active.clone(), key(1, ApiKeyState::Active, None)], [8; 32]),
            (vec![active.clone(), key(1, ApiKeyState::Revoked, None)], [7; 32]),
            (vec![active.clone(), key(1, ApiKeyState::Active, Some(NOW.0))], [7; 32]),
            (vec![key(1, ApiKeyState::Active, None)], [7; 32]),
            (
                vec![
                    active.clone(),
                    key(1, ApiKeyState::Active, None),
                    ConfigChange::Deleted(ConfigKey::ApiKey(KEY)),
                ],
                [7; 32],
            ),
            // Suspension is told only to those who have the secret.
            (vec![tenant(1, TenantState::Suspended), key(1, ApiKeyState::Active, None)], [8; 32]),
        ];
        for (changes, secret) in cases {
            assert_eq!(answer(&table(changes), secret), Err(Refusal::Unauthorized));
        }
        assert_eq!(table([active]).authenticate(&HeaderMap::new(), NOW).unwrap_err(), Refusal::Unauthorized);
    }

    #[test]
    fn an_older_version_is_ignored() {
        let changes = [
            tenant(5, TenantState::Suspended),
            tenant(4, TenantState::Active),
            key(3, ApiKeyState::Active, None),
            key(2, ApiKeyState::Revoked, None),
        ];
        assert_eq!(answer(&table(changes), [7; 32]), Err(Refusal::Suspended));
    }

    #[test]
    fn nobody_is_judged_before_the_table_has_caught_up() {
        let table = KeyTable::new(Rates::default(), NonZeroU32::MIN);
        assert_eq!(table.authenticate(&HeaderMap::new(), NOW).unwrap_err(), Refusal::NotReady);
    }

    #[test]
    fn what_a_keys_own_limit_refuses_takes_nothing_of_its_tenants() {
        let limits = |scope, events| {
            let rates = Rates { requests: None, events: NonZeroU32::new(events) };
            Limits::new(scope, rates, const { NonZeroU32::new(1000).unwrap() }).map(Arc::new)
        };
        let tenant = Arc::new(TenantAccess {
            id: TENANT,
            version: 1,
            state: TenantState::Active,
            limits: limits(Scope::Tenant, 10),
            body_bytes: TenantBytes::default(),
        });
        let caller = |key_limits| Caller { key: KEY, tenant: Arc::clone(&tenant), key_limits };
        let limited = caller(limits(Scope::Key, 1));
        let standing = &mut Standing::default();
        assert_eq!(limited.take_events(1000, standing), Ok(()));
        for _ in 0..20 {
            assert!(limited.take_events(900, standing).is_err());
        }
        assert_eq!(caller(None).take_events(9000, standing), Ok(()));
    }
}
