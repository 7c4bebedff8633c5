//! What the control plane tells the other services: records on the compacted `config` topic.
//!
//! The Kafka key is `<kind>/<id>`; a tombstone means deleted. Every entity has a `version` that grows with each
//! change; consumers ignore a version that is not newer than the one they hold.

use crate::{
    DecodeError, UnixMillis,
    api_key::SecretHash,
    batch::BatchPolicy,
    breaker_policy::BreakerPolicy,
    error::check_version,
    ids::{ApiKeyId, SubscriptionId, TenantId},
    pattern::TypePattern,
    retry_policy::RetryPolicy,
    seal::Sealed,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, num::NonZeroU32, str::FromStr};
use url::Url;

/// Major version of config records.
pub const CONFIG_VERSION: u32 = 1;

/// Names an entity: the Kafka key of its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ConfigKey {
    /// `tenant/<id>`
    Tenant(TenantId),
    /// `api-key/<id>`
    ApiKey(ApiKeyId),
    /// `subscription/<id>`
    Subscription(SubscriptionId),
}

impl fmt::Display for ConfigKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tenant(id) => write!(f, "tenant/{id}"),
            Self::ApiKey(id) => write!(f, "api-key/{id}"),
            Self::Subscription(id) => write!(f, "subscription/{id}"),
        }
    }
}

impl FromStr for ConfigKey {
    type Err = DecodeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unknown = || DecodeError::UnknownConfigKey(text.chars().take(80).collect());
        let (kind, id) = text.split_once('/').ok_or_else(unknown)?;
        match kind {
            "tenant" => id.parse().map(Self::Tenant).map_err(|_| unknown()),
            "api-key" => id.parse().map(Self::ApiKey).map_err(|_| unknown()),
            "subscription" => id.parse().map(Self::Subscription).map_err(|_| unknown()),
            _ => Err(unknown()),
        }
    }
}

/// A customer of the installation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tenant {
    /// [`CONFIG_VERSION`].
    pub v: u32,
    /// Grows with each change.
    pub version: u64,
    /// Identity.
    pub id: TenantId,
    /// For people.
    pub name: String,
    /// Whether its keys are accepted.
    pub state: TenantState,
    /// Sustained events per second; `None` leaves it to the installation's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events_per_second: Option<NonZeroU32>,
    /// Sustained requests per second; `None` leaves it to the installation's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<NonZeroU32>,
}

/// Whether a tenant may send events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TenantState {
    /// Accepted.
    Active,
    /// Every request is refused.
    Suspended,
}

/// A key that producers authenticate with. The key itself is nowhere stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ApiKeyRecord {
    /// [`CONFIG_VERSION`].
    pub v: u32,
    /// Grows with each change.
    pub version: u64,
    /// The public part of the key.
    pub id: ApiKeyId,
    /// Owner.
    pub tenant: TenantId,
    /// SHA-256 of the secret part.
    pub hash: SecretHash,
    /// Whether it is accepted.
    pub state: ApiKeyState,
    /// When it stops being accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<UnixMillis>,
    /// Sustained events per second of this key alone, within its tenant's; `None` for no limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events_per_second: Option<NonZeroU32>,
    /// Sustained requests per second of this key alone, within its tenant's; `None` for no limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<NonZeroU32>,
}

/// Whether a key is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApiKeyState {
    /// Accepted.
    Active,
    /// Refused for good.
    Revoked,
}

/// A tenant's interest in event types, delivered to one URL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Subscription {
    /// [`CONFIG_VERSION`].
    pub v: u32,
    /// Grows with each change.
    pub version: u64,
    /// Identity.
    pub id: SubscriptionId,
    /// Owner.
    pub tenant: TenantId,
    /// Where deliveries go: `http` or `https`, checked by the control plane.
    pub url: Url,
    /// Which event types; one match is enough.
    pub types: Vec<TypePattern>,
    /// Whether deliveries are made.
    pub state: SubscriptionState,
    /// Since when it is paused, or when it was last changed while it was; `None` while it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_since: Option<UnixMillis>,
    /// Events whose record time is earlier are not delivered.
    pub active_from: UnixMillis,
    /// Signing secrets, newest first; several while a rotation overlaps.
    pub secrets: Vec<SigningSecret>,
    /// When failed deliveries are tried again.
    pub retry: RetryPolicy,
    /// What history keeps of successes.
    #[serde(default)]
    pub history: History,
    /// Longest attempt in milliseconds, connecting and reading the body included.
    pub timeout_ms: u32,
    /// Headers added to every delivery. Reserved names are refused by the control plane.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// What the body looks like.
    #[serde(default)]
    pub format: Format,
    /// Condition that an event must pass besides its type, see [`crate::filter`]; `None` for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<String>,
    /// When the batches that events are delivered in close; `None` for a request per event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchPolicy>,
    /// Where deliveries go while `url` gets none because it does not answer; `None`: they wait. Checked like `url`, and never equal to it.
    /// Readers from before it was there ignore it: with them deliveries wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback_url: Option<Box<Url>>,
    /// When an endpoint gets no requests for a while; `None` leaves it to the installation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breaker: Option<BreakerPolicy>,
    /// Requests per second to the endpoint, by all dispatchers together; `None` for as many as it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_second: Option<NonZeroU32>,
}

/// Whether a subscription's deliveries are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SubscriptionState {
    /// Delivered.
    Active,
    /// Matched and deferred until resumed.
    Paused,
    /// Not matched; pending retries become dead letters.
    Disabled,
}

impl SubscriptionState {
    /// The state's name, as in JSON and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Disabled => "disabled",
        }
    }
}

/// What history keeps of successful deliveries; failures and final outcomes are always kept row by row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum History {
    /// Successes are counted per minute.
    #[default]
    Counters,
    /// Successes are kept row by row.
    All,
    /// One success in so many is kept, by the event's id, see [`History::keeps`].
    Sampled(NonZeroU32),
}

impl History {
    /// Whether the success of an event's delivery gets a row. Depends on nothing but the id, so that an event is kept for all
    /// subscriptions that sample alike or for none, whoever delivers it and how often.
    pub fn keeps(self, event_id: &str) -> bool {
        match self {
            Self::Counters => false,
            Self::All => true,
            Self::Sampled(one_in) => spread(event_id).is_multiple_of(one_in.get().into()),
        }
    }
}

/// FNV-1a, then the last step of splitmix64: every bit of the id counts for every bit of the number. Written out here because
/// it may never change: processes of different versions have to agree.
fn spread(id: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in id.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// What the body of a delivery looks like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// The event's `data` as sent; attributes in `ce-*` headers (CloudEvents HTTP binary mode).
    #[default]
    Data,
    /// The whole envelope (CloudEvents HTTP structured mode).
    Cloudevents,
}

/// How deliveries are signed, by the names of Standard Webhooks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignatureScheme {
    /// HMAC-SHA256 with a secret that the receiver has, too.
    #[default]
    V1,
    /// Ed25519: the receiver has the public key only.
    V1a,
}

/// What the text of a secret for [`SignatureScheme::V1`] starts with; base64 of 24 to 64 random bytes follows.
pub const HMAC_SECRET_PREFIX: &str = "whsec_";
/// What the text of a secret for [`SignatureScheme::V1a`] starts with; base64 of seed and public key, 32 bytes each, follows.
pub const ED25519_SECRET_PREFIX: &str = "whsk_";
/// What the text of a public key for [`SignatureScheme::V1a`] starts with; base64 of its 32 bytes follows.
pub const ED25519_PUBLIC_PREFIX: &str = "whpk_";

/// A signing secret, sealed with the subscription's id as context.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SigningSecret {
    /// The sealed text of the secret: `whsec_…` or `whsk_…`, which tells its scheme.
    pub sealed: Sealed,
    /// The public key, `whpk_…`, of a secret for [`SignatureScheme::V1a`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_key: Option<String>,
    /// After this instant it signs no more; `None` for the current secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<UnixMillis>,
}

impl SigningSecret {
    /// How it signs.
    pub fn scheme(&self) -> SignatureScheme {
        if self.public_key.is_some() { SignatureScheme::V1a } else { SignatureScheme::V1 }
    }
}

/// A change read from the `config` topic.
#[derive(Debug, Clone, PartialEq)]
pub enum ConfigChange {
    /// A tenant was created or changed.
    Tenant(Tenant),
    /// A key was created or changed.
    ApiKey(ApiKeyRecord),
    /// A subscription was created or changed.
    Subscription(Box<Subscription>),
    /// The entity is gone.
    Deleted(ConfigKey),
}

impl ConfigChange {
    /// Reads a record of the `config` topic; no value means a tombstone.
    pub fn decode(key: &[u8], value: Option<&[u8]>) -> Result<Self, DecodeError> {
        let key: ConfigKey = String::from_utf8_lossy(key).parse()?;
        let Some(value) = value else { return Ok(Self::Deleted(key)) };
        check_version(value, CONFIG_VERSION)?;
        Ok(match key {
            ConfigKey::Tenant(_) => Self::Tenant(serde_json::from_slice(value)?),
            ConfigKey::ApiKey(_) => Self::ApiKey(serde_json::from_slice(value)?),
            ConfigKey::Subscription(_) => Self::Subscription(serde_json::from_slice(value)?),
        })
    }

    /// The entity that changed.
    pub fn key(&self) -> ConfigKey {
        match self {
            Self::Tenant(tenant) => ConfigKey::Tenant(tenant.id),
            Self::ApiKey(key) => ConfigKey::ApiKey(key.id),
            Self::Subscription(subscription) => ConfigKey::Subscription(subscription.id),
            Self::Deleted(key) => *key,
        }
    }

    /// The value of the record; `None` is a tombstone.
    pub fn encode(&self) -> Result<Option<Vec<u8>>, serde_json::Error> {
        match self {
            Self::Tenant(tenant) => serde_json::to_vec(tenant).map(Some),
            Self::ApiKey(key) => serde_json::to_vec(key).map(Some),
            Self::Subscription(subscription) => serde_json::to_vec(subscription).map(Some),
            Self::Deleted(_) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(name: &str) -> (ConfigKey, &'static str) {
        let (key, json) = match name {
            "tenant" => {
                ("tenant/01938f2e-0000-7000-8000-000000000001", include_str!("../golden/config-tenant.json"))
            }
            "api-key" => (
                "api-key/01938f2e-0000-7000-8000-000000000004",
                include_str!("../golden/config-api-key.json"),
            ),
            _ => (
                "subscription/01938f2e-0000-7000-8000-000000000002",
                include_str!("../golden/config-subscription.json"),
            ),
        };
        (key.parse().unwrap(), json.trim_end())
    }

    #[test]
    fn records_read_from_their_golden_files_write_them_again() {
        for name in ["tenant", "api-key", "subscription"] {
            let (key, json) = golden(name);
            let change = ConfigChange::decode(key.to_string().as_bytes(), Some(json.as_bytes())).unwrap();
            assert_eq!(change.key(), key);
            assert_eq!(String::from_utf8(change.encode().unwrap().unwrap()).unwrap(), json);
        }
    }

    #[test]
    fn a_subscription_has_what_it_is_given_and_readers_pass_over_what_they_do_not_know() {
        let (key, json) = golden("subscription");
        let more = json.trim_end_matches('}').to_owned()
            + r#"},"fallback_url":"https://example.com/else","breaker":{"failures":3,"pause_ms":1000},"requests_per_second":9,"later":1}"#;
        let more = more.replacen(r#""format":"data"}"#, r#""format":"data""#, 1);
        let read = ConfigChange::decode(key.to_string().as_bytes(), Some(more.as_bytes())).unwrap();
        let ConfigChange::Subscription(subscription) = &read else { panic!("{read:?}") };
        assert_eq!(subscription.fallback_url.as_ref().unwrap().as_str(), "https://example.com/else");
        assert_eq!(subscription.breaker.unwrap().failures, Some(3));
        assert_eq!(subscription.requests_per_second.unwrap().get(), 9);
        let written = String::from_utf8(read.encode().unwrap().unwrap()).unwrap();
        assert_eq!(written, more.replace(r#","later":1"#, ""));
    }

    #[test]
    fn a_tombstone_reads_as_deleted() {
        let (key, _) = golden("tenant");
        let change = ConfigChange::decode(key.to_string().as_bytes(), None).unwrap();
        assert_eq!(change, ConfigChange::Deleted(key));
        assert_eq!(change.encode().unwrap(), None);
    }

    #[test]
    fn unknown_keys_versions_and_policies_are_refused() {
        assert!(matches!(ConfigChange::decode(b"robot/1", None), Err(DecodeError::UnknownConfigKey(_))));
        let (key, json) = golden("tenant");
        let newer = json.replacen("\"v\":1", "\"v\":9", 1);
        assert!(matches!(
            ConfigChange::decode(key.to_string().as_bytes(), Some(newer.as_bytes())),
            Err(DecodeError::UnknownVersion { found: 9, .. })
        ));
        let (key, json) = golden("subscription");
        let bad = json.replacen("\"jitter\":0.2", "\"jitter\":7.0", 1);
        assert!(ConfigChange::decode(key.to_string().as_bytes(), Some(bad.as_bytes())).is_err());
        let batch = json.replacen(
            "\"format\":\"data\"",
            "\"batch\":{\"max_events\":1,\"max_bytes\":9,\"max_age_ms\":9}",
            1,
        );
        assert!(ConfigChange::decode(key.to_string().as_bytes(), Some(batch.as_bytes())).is_err());
    }

    #[test]
    fn a_sample_is_the_same_everywhere_and_about_as_large_as_asked_for() {
        let sampled = |one_in| History::Sampled(NonZeroU32::new(one_in).unwrap());
        let kept = |history: History, ids: &mut dyn Iterator<Item = String>| {
            ids.filter(|id| history.keeps(id)).count()
        };
        for one_in in [2, 10, 100] {
            // Ids that differ in their last digits, and ids of a fixed width.
            let numbers = kept(sampled(one_in), &mut (0..100_000).map(|n| format!("order-{n}")));
            let uuids = kept(
                sampled(one_in),
                &mut (0..100_000u128).map(|n| uuid::Uuid::from_u128(n << 64 | 7).to_string()),
            );
            for found in [numbers, uuids] {
                let expected = 100_000 / one_in as usize;
                assert!(found.abs_diff(expected) < expected / 5, "{found} of {expected}");
            }
        }
        assert!(History::All.keeps("x") && !History::Counters.keeps("x") && sampled(1).keeps("x"));
        // Never to change.
        assert_eq!(spread("order-1"), 0xedf2_3fc2_e07f_a9d3);
        assert_eq!(serde_json::to_string(&sampled(100)).unwrap(), r#"{"sampled":100}"#);
        assert_eq!(serde_json::from_str::<History>(r#""counters""#).unwrap(), History::Counters);
    }
}
