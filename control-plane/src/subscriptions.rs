//! Subscriptions: create, list, show, change, delete.

use crate::{
    changed::{Changed, Deleted},
    delivery_headers,
    error::Refusal,
    extract::{Body, Ids, Name, Parameters, Timestamp, present},
    openapi::Problems,
    page::{PageOf, PageQuery, rows_for},
    routes::Api,
    secrets::NewSecret,
};
use axum::{Json, extract::State, http::StatusCode, response::Response};
use floodway_runtime::clock;
use floodway_schemas::{
    batch::{BatchPolicy, InvalidBatchPolicy},
    breaker_policy::{BreakerPolicy, InvalidBreakerPolicy},
    config::{
        CONFIG_VERSION, Format, History, SignatureScheme, SigningSecret, Subscription, SubscriptionState,
    },
    filter::Filter,
    ids::{SubscriptionId, TenantId},
    pattern::TypePattern,
    retry_policy::{InvalidPolicy, RetryPolicy},
};
use floodway_store::{
    subscriptions::{self, SubscriptionRow},
    tenants,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, num::NonZeroU32};
use url::Url;
use utoipa::ToSchema;
use uuid::Uuid;

/// Most subscriptions of one tenant. Bounds the transaction that deletes a tenant.
const MAX_SUBSCRIPTIONS: i64 = 10_000;
/// Most type patterns of one subscription.
const MAX_TYPES: usize = 64;
/// Longest attempt unless the subscription says otherwise, in milliseconds.
const DEFAULT_TIMEOUT_MS: u32 = 15_000;
/// Bounds of the longest attempt, in milliseconds: shorter ones fail healthy endpoints, longer ones hold connections.
const TIMEOUT_MS: std::ops::RangeInclusive<u32> = 100..=60_000;

/// Bounds of the rate of requests to one endpoint: more than that no installation makes.
const REQUESTS_PER_SECOND: std::ops::RangeInclusive<u32> = 1..=1_000_000;

/// Bounds of a sample, one in so many: one in one is `all`, and one in a million is next to nothing.
const SAMPLED: std::ops::RangeInclusive<u32> = 2..=1_000_000;

/// A subscription to create.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewSubscription {
    /// Where deliveries go: `https` or `http`, at most 2,048 bytes, no user name, no fragment, no private address.
    url: String,
    /// Event types wanted, 1 to 64: exact (`order.created`), by prefix (`order.*`), or all (`*`, the default).
    #[schema(value_type = Option<Vec<String>>)]
    types: Option<Vec<TypePattern>>,
    /// For people: 1 to 200 characters.
    #[schema(value_type = Option<String>)]
    name: Option<Name>,
    /// When failed deliveries are tried again; absent: the default schedule.
    retry: Option<Retry>,
    /// What history keeps of successes: `"counters"` (the default), their number; `"all"`, each; or `{"sampled": 100}`, one in so
    /// many, 2 to 1,000,000, chosen by the event's id.
    #[serde(default)]
    #[schema(value_type = Option<serde_json::Value>, example = "counters")]
    history: History,
    /// Longest attempt in milliseconds, 100 to 60,000; default 15,000.
    timeout_ms: Option<u32>,
    /// Headers added to every delivery: at most 16, no reserved names, no credentials.
    #[serde(default)]
    #[schema(value_type = Option<std::collections::HashMap<String, String>>)]
    headers: BTreeMap<String, String>,
    /// What the body looks like: `data` (the default), the event's data as sent, or `cloudevents`, the whole envelope, which is
    /// the default with `batch`, and the only one there.
    #[schema(value_type = Option<String>, example = "data")]
    format: Option<Format>,
    /// Delivers several events in one request, as a JSON array of envelopes; absent: one event per request.
    batch: Option<Batch>,
    /// Where deliveries go while `url` gets none because it does not answer, by the rules of `url`; absent: they wait.
    fallback_url: Option<String>,
    /// When an endpoint that does not answer gets no requests for a while; absent fields: as the installation says.
    breaker: Option<Breaker>,
    /// Most requests per second, by the whole installation, 1 to 1,000,000; absent: as many as the endpoint takes.
    requests_per_second: Option<u32>,
    /// Condition in CEL that an event must pass besides its type, at most 1,024 bytes: `event` has its attributes, `data` its data,
    /// as in `data.total > 100 && event.source == '/shop'`.
    filter: Option<String>,
    /// How deliveries are signed: `v1` (the default), HMAC-SHA256 with a shared secret, or `v1a`, Ed25519.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "v1")]
    signature: SignatureScheme,
    /// Events recorded earlier are not delivered; default: now.
    #[schema(value_type = Option<String>, format = DateTime)]
    active_from: Option<Timestamp>,
}

/// Fields of a subscription to change; absent ones stay.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SubscriptionChange {
    /// Where deliveries go.
    url: Option<String>,
    /// Event types wanted.
    #[schema(value_type = Option<Vec<String>>)]
    types: Option<Vec<TypePattern>>,
    /// For people; null removes it.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    name: Option<Option<Name>>,
    /// When failed deliveries are tried again; replaces the whole schedule, null means the default one.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Retry>)]
    retry: Option<Option<Retry>>,
    /// What history keeps of successes: `"counters"`, `"all"` or `{"sampled": 100}`.
    #[schema(value_type = Option<serde_json::Value>)]
    history: Option<History>,
    /// Longest attempt in milliseconds, 100 to 60,000.
    timeout_ms: Option<u32>,
    /// Headers added to every delivery; replaces them all.
    #[schema(value_type = Option<std::collections::HashMap<String, String>>)]
    headers: Option<BTreeMap<String, String>>,
    /// What the body looks like: `data` or `cloudevents`.
    #[schema(value_type = Option<String>)]
    format: Option<Format>,
    /// Condition in CEL that an event must pass; null removes it.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    filter: Option<Option<String>>,
    /// When batches close; replaces all of its fields. Null: one event per request from now on.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Batch>)]
    batch: Option<Option<Batch>>,
    /// Where deliveries go while `url` gets none because it does not answer; null: they wait.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>)]
    fallback_url: Option<Option<String>>,
    /// When an endpoint gets no requests for a while; replaces all of its fields, null: as the installation says.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<Breaker>)]
    breaker: Option<Option<Breaker>>,
    /// Most requests per second; null: as many as the endpoint takes.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<u32>)]
    requests_per_second: Option<Option<u32>>,
}

/// When a batch closes: by whichever bound is reached first. Absent fields take their defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Batch {
    /// Most events, 2 to 1,000; default 100.
    max_events: u32,
    /// Most bytes of the body, 1,024 to 1,048,576; default 262,144. An event that is larger goes alone.
    max_bytes: u32,
    /// Milliseconds from the first event on, 10 to 30,000; default 1,000.
    max_age_ms: u32,
}

impl Default for Batch {
    fn default() -> Self {
        BatchPolicy::default().into()
    }
}

impl From<BatchPolicy> for Batch {
    fn from(policy: BatchPolicy) -> Self {
        let BatchPolicy { max_events, max_bytes, max_age_ms } = policy;
        Self { max_events, max_bytes, max_age_ms }
    }
}

impl TryFrom<Batch> for BatchPolicy {
    type Error = InvalidBatchPolicy;

    fn try_from(batch: Batch) -> Result<Self, InvalidBatchPolicy> {
        Self::new(batch.max_events, batch.max_bytes, batch.max_age_ms)
    }
}

/// When an endpoint gets no requests for a while. Absent or null fields: as the installation says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Breaker {
    /// Failures in a row that stop requests, 1 to 64; 0: never.
    failures: Option<u32>,
    /// Percentage of failures among the last 64 attempts that stops them, 1 to 100.
    percent: Option<u32>,
    /// Milliseconds until one request is made to find out, 100 to 3,600,000; each that fails doubles it.
    pause_ms: Option<u32>,
    /// The most that it grows to, 100 to 3,600,000, not below `pause_ms`.
    max_pause_ms: Option<u32>,
}

impl From<BreakerPolicy> for Breaker {
    fn from(policy: BreakerPolicy) -> Self {
        let BreakerPolicy { failures, percent, pause_ms, max_pause_ms } = policy;
        Self { failures, percent, pause_ms, max_pause_ms }
    }
}

impl TryFrom<Breaker> for BreakerPolicy {
    type Error = InvalidBreakerPolicy;

    fn try_from(breaker: Breaker) -> Result<Self, InvalidBreakerPolicy> {
        let Breaker { failures, percent, pause_ms, max_pause_ms } = breaker;
        Self { failures, percent, pause_ms, max_pause_ms }.checked()
    }
}

/// When failed deliveries are tried again. Absent fields take their defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Retry {
    /// Seconds to wait before retry 1, 2, …, each 0.1 to 2,592,000 (30 days); after the last one the delivery is dead. At most 64.
    delays_seconds: Vec<f64>,
    /// Attempts in total, the first included, 1 to 200. Beyond the list of delays each waits for the last one of it. Null: one more
    /// than there are delays.
    max_attempts: Option<u32>,
    /// Spread of each delay as a share of it, 0 to 0.5.
    jitter: f64,
    /// Seconds after acceptance at which a delivery is given up, 1 to 7,776,000 (90 days).
    max_age_seconds: f64,
}

impl Default for Retry {
    fn default() -> Self {
        RetryPolicy::default().into()
    }
}

impl From<RetryPolicy> for Retry {
    fn from(policy: RetryPolicy) -> Self {
        let RetryPolicy { delays_seconds, max_attempts, jitter, max_age_seconds } = policy;
        Self { delays_seconds, max_attempts, jitter, max_age_seconds }
    }
}

impl TryFrom<Retry> for RetryPolicy {
    type Error = InvalidPolicy;

    fn try_from(retry: Retry) -> Result<Self, InvalidPolicy> {
        let policy = Self::new(retry.delays_seconds, retry.jitter, retry.max_age_seconds)?;
        match retry.max_attempts {
            Some(most) => policy.with_max_attempts(most),
            None => Ok(policy),
        }
    }
}

/// A tenant's interest in event types, delivered to one URL.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SubscriptionView {
    /// Identity.
    #[schema(value_type = Uuid)]
    id: SubscriptionId,
    /// Owner.
    #[schema(value_type = Uuid)]
    tenant: TenantId,
    /// For people.
    name: Option<String>,
    /// Where deliveries go.
    url: String,
    /// Event types wanted.
    #[schema(value_type = Vec<String>)]
    types: Vec<TypePattern>,
    /// `active`, `paused` or `disabled`.
    #[schema(value_type = String, example = "active")]
    state: SubscriptionState,
    /// Events recorded earlier are not delivered.
    #[schema(value_type = String, format = DateTime)]
    active_from: Timestamp,
    /// When failed deliveries are tried again.
    retry: Retry,
    /// What history keeps of successes: `"counters"`, `"all"` or `{"sampled": 100}`.
    #[schema(value_type = serde_json::Value, example = "counters")]
    history: History,
    /// Longest attempt, milliseconds.
    timeout_ms: u32,
    /// Headers added to every delivery.
    #[schema(value_type = std::collections::HashMap<String, String>)]
    headers: BTreeMap<String, String>,
    /// What the body looks like.
    #[schema(value_type = String, example = "data")]
    format: Format,
    /// Condition in CEL that an event must pass; null: none.
    filter: Option<String>,
    /// When batches close; null: one event per request.
    batch: Option<Batch>,
    /// Where deliveries go while `url` gets none because it does not answer; null: they wait.
    fallback_url: Option<String>,
    /// When an endpoint gets no requests for a while; null: as the installation says.
    breaker: Option<Breaker>,
    /// Most requests per second; null: as many as the endpoint takes.
    #[schema(value_type = Option<u32>)]
    requests_per_second: Option<NonZeroU32>,
    /// How deliveries are signed: `v1` or `v1a`.
    #[schema(value_type = String, example = "v1")]
    signature: SignatureScheme,
    /// The signing secrets, newest first, without the secrets themselves.
    secrets: Vec<SecretView>,
    /// Grows with each change.
    version: u64,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When it was last changed.
    #[schema(value_type = String, format = DateTime)]
    updated_at: Timestamp,
}

/// A signing secret, without the secret itself.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SecretView {
    /// The public key that verifies `v1a` signatures, `whpk_…`; null for `v1`.
    public_key: Option<String>,
    /// After this instant it signs no more; null for the current one.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
}

/// A new subscription. The only time that its first secret is shown.
#[derive(Serialize, ToSchema)]
pub(crate) struct CreatedSubscription {
    #[serde(flatten)]
    view: SubscriptionView,
    /// Verifies deliveries. It is stored sealed and cannot be shown again; for `v1a` it is the public key.
    secret: String,
}

impl From<SubscriptionRow> for SubscriptionView {
    fn from(row: SubscriptionRow) -> Self {
        let SubscriptionRow { record, name, created_at, updated_at } = row;
        let secret_view = |secret: SigningSecret| SecretView {
            public_key: secret.public_key,
            expires_at: secret.expires_at.map(Timestamp),
        };
        Self {
            id: record.id,
            tenant: record.tenant,
            name,
            url: record.url.into(),
            types: record.types,
            state: record.state,
            active_from: Timestamp(record.active_from),
            retry: record.retry.into(),
            history: record.history,
            timeout_ms: record.timeout_ms,
            headers: record.headers,
            format: record.format,
            filter: record.filter,
            batch: record.batch.map(Batch::from),
            fallback_url: record.fallback_url.map(|url| (*url).into()),
            breaker: record.breaker.map(Breaker::from),
            requests_per_second: record.requests_per_second,
            signature: record.secrets.first().map(SigningSecret::scheme).unwrap_or_default(),
            secrets: record.secrets.into_iter().map(secret_view).collect(),
            version: record.version,
            created_at: Timestamp(created_at),
            updated_at: Timestamp(updated_at),
        }
    }
}

/// Create a subscription
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/subscriptions", tag = "subscriptions", params(("tenant" = Uuid, Path)),
    request_body = NewSubscription,
    responses(
        (status = 201, description = "Created, and on the config topic", body = Changed<CreatedSubscription>), (status = 202, description = "Stored, and not on the config topic yet", body = Changed<CreatedSubscription>), Problems
    )
)]
pub(crate) async fn create_subscription(
    State(api): State<Api>,
    Ids(tenant): Ids<TenantId>,
    Body(new): Body<NewSubscription>,
) -> Result<Response, Refusal> {
    let id = SubscriptionId(Uuid::now_v7());
    let (secret, sealed) = NewSecret::make(&api.sealing, id, new.signature)?.into_parts();
    let row = new_row(&api, tenant, id, sealed, new)?;
    let created = api.change(async |write| {
        tenants::get(write.reader(), tenant).await?;
        if subscriptions::count(write.reader(), tenant).await? >= MAX_SUBSCRIPTIONS {
            let detail = format!("the tenant has {MAX_SUBSCRIPTIONS} subscriptions, which is the most");
            return Err(Refusal::Conflict(detail));
        }
        subscriptions::insert(write, &row).await?;
        Ok(CreatedSubscription { view: row.into(), secret })
    });
    Ok(created.await?.into_response(StatusCode::CREATED))
}

fn new_row(
    api: &Api,
    tenant: TenantId,
    id: SubscriptionId,
    secret: SigningSecret,
    new: NewSubscription,
) -> Result<SubscriptionRow, Refusal> {
    let now = clock::now();
    let batch = checked_batch(new.batch)?;
    let implied = if batch.is_some() { Format::Cloudevents } else { Format::default() };
    let format = new.format.unwrap_or(implied);
    check_format(format, batch)?;
    let url = api.endpoints.check(&new.url).map_err(Refusal::Invalid)?;
    let fallback_url = checked_fallback(api, new.fallback_url.as_deref(), &url)?;
    let record = Subscription {
        v: CONFIG_VERSION,
        version: 1,
        id,
        tenant,
        url,
        types: checked_types(new.types.unwrap_or_else(|| vec![TypePattern::Any]))?,
        state: SubscriptionState::Active,
        paused_since: None,
        active_from: new.active_from.map_or(now, |at| at.0),
        secrets: vec![secret],
        retry: checked_retry(new.retry)?,
        history: checked_history(new.history)?,
        timeout_ms: checked_timeout(new.timeout_ms.unwrap_or(DEFAULT_TIMEOUT_MS))?,
        headers: delivery_headers::check(new.headers).map_err(Refusal::Invalid)?,
        format,
        filter: checked_filter(new.filter)?,
        batch,
        fallback_url,
        breaker: checked_breaker(new.breaker)?,
        requests_per_second: checked_rate(new.requests_per_second)?,
    };
    Ok(SubscriptionRow { record, name: new.name.map(|name| name.0), created_at: now, updated_at: now })
}

/// List a tenant's subscriptions
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/subscriptions", tag = "subscriptions",
    params(("tenant" = Uuid, Path), PageQuery),
    responses((status = 200, description = "Found", body = PageOf<SubscriptionView>), Problems)
)]
pub(crate) async fn list_subscriptions(
    State(api): State<Api>,
    Ids(tenant): Ids<TenantId>,
    Parameters(query): Parameters<PageQuery>,
) -> Result<Json<PageOf<SubscriptionView>>, Refusal> {
    let (after, limit) = (query.after()?.map(SubscriptionId), query.limit()?);
    let client = api.pool.get().await?;
    tenants::get(&**client, tenant).await?;
    let rows = subscriptions::list(&**client, tenant, after, rows_for(limit)).await?;
    Ok(Json(PageOf::of(rows, limit, |row| row.record.id.0, SubscriptionView::from)))
}

/// Show a subscription
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/subscriptions/{id}", tag = "subscriptions",
    params(("tenant" = Uuid, Path), ("id" = Uuid, Path)),
    responses((status = 200, description = "Found", body = SubscriptionView), Problems)
)]
pub(crate) async fn get_subscription(
    State(api): State<Api>,
    Ids((tenant, id)): Ids<(TenantId, SubscriptionId)>,
) -> Result<Json<SubscriptionView>, Refusal> {
    let client = api.pool.get().await?;
    Ok(Json(subscriptions::get(&**client, tenant, id).await?.into()))
}

/// Change a subscription
#[utoipa::path(
    patch, path = "/v1/tenants/{tenant}/subscriptions/{id}", tag = "subscriptions",
    params(("tenant" = Uuid, Path), ("id" = Uuid, Path)), request_body = SubscriptionChange,
    responses((status = 200, description = "Changed, and on the config topic", body = Changed<SubscriptionView>), (status = 202, description = "Stored, and not on the config topic yet", body = Changed<SubscriptionView>), Problems)
)]
pub(crate) async fn change_subscription(
    State(api): State<Api>,
    Ids((tenant, id)): Ids<(TenantId, SubscriptionId)>,
    Body(wanted): Body<SubscriptionChange>,
) -> Result<Response, Refusal> {
    let changed = api.change(async |write| {
        let mut row = subscriptions::get(write.reader(), tenant, id).await?;
        apply(&api, &mut row, wanted)?;
        subscriptions::update(write, &mut row, clock::now()).await?;
        Ok(SubscriptionView::from(row))
    });
    Ok(changed.await?.into_response(StatusCode::OK))
}

fn apply(api: &Api, row: &mut SubscriptionRow, wanted: SubscriptionChange) -> Result<(), Refusal> {
    let record = &mut row.record;
    if let Some(url) = wanted.url {
        record.url = api.endpoints.check(&url).map_err(Refusal::Invalid)?;
    }
    if let Some(fallback) = wanted.fallback_url {
        record.fallback_url = checked_fallback(api, fallback.as_deref(), &record.url)?;
    } else if record.fallback_url.as_deref() == Some(&record.url) {
        return Err(Refusal::Invalid("url is fallback_url: change that, too, or remove it".to_owned()));
    }
    if let Some(breaker) = wanted.breaker {
        record.breaker = checked_breaker(breaker)?;
    }
    if let Some(rate) = wanted.requests_per_second {
        record.requests_per_second = checked_rate(rate)?;
    }
    if let Some(types) = wanted.types {
        record.types = checked_types(types)?;
    }
    if let Some(name) = wanted.name {
        row.name = name.map(|name| name.0);
    }
    if let Some(retry) = wanted.retry {
        record.retry = checked_retry(retry)?;
    }
    if let Some(history) = wanted.history {
        record.history = checked_history(history)?;
    }
    if let Some(timeout_ms) = wanted.timeout_ms {
        record.timeout_ms = checked_timeout(timeout_ms)?;
    }
    if let Some(headers) = wanted.headers {
        record.headers = delivery_headers::check(headers).map_err(Refusal::Invalid)?;
    }
    if let Some(format) = wanted.format {
        record.format = format;
    }
    if let Some(filter) = wanted.filter {
        record.filter = checked_filter(filter)?;
    }
    if let Some(batch) = wanted.batch {
        record.batch = checked_batch(batch)?;
    }
    check_format(record.format, record.batch)
}

/// Delete a subscription; its pending retries are dropped
#[utoipa::path(
    delete, path = "/v1/tenants/{tenant}/subscriptions/{id}", tag = "subscriptions",
    params(("tenant" = Uuid, Path), ("id" = Uuid, Path)),
    responses((status = 200, description = "Changed, and on the config topic", body = Changed<Deleted>), (status = 202, description = "Stored, and not on the config topic yet", body = Changed<Deleted>), Problems)
)]
pub(crate) async fn delete_subscription(
    State(api): State<Api>,
    Ids((tenant, id)): Ids<(TenantId, SubscriptionId)>,
) -> Result<Response, Refusal> {
    let deleted = api.change(async |write| {
        subscriptions::delete(write, tenant, id).await?;
        Ok(Deleted { deleted: true })
    });
    Ok(deleted.await?.into_response(StatusCode::OK))
}

fn checked_types(types: Vec<TypePattern>) -> Result<Vec<TypePattern>, Refusal> {
    if (1..=MAX_TYPES).contains(&types.len()) {
        Ok(types)
    } else {
        Err(Refusal::Invalid(format!("types has {} entries, 1 to {MAX_TYPES} are allowed", types.len())))
    }
}

fn checked_retry(retry: Option<Retry>) -> Result<RetryPolicy, Refusal> {
    retry.unwrap_or_default().try_into().map_err(|error: InvalidPolicy| Refusal::Invalid(error.to_string()))
}

fn checked_filter(filter: Option<String>) -> Result<Option<String>, Refusal> {
    if let Some(filter) = &filter {
        Filter::compile(filter).map_err(|error| Refusal::Invalid(format!("filter: {error}")))?;
    }
    Ok(filter)
}

fn checked_fallback(api: &Api, text: Option<&str>, url: &Url) -> Result<Option<Box<Url>>, Refusal> {
    text.map(|text| api.endpoints.check_fallback(text, url)).transpose().map_err(Refusal::Invalid)
}

fn checked_breaker(breaker: Option<Breaker>) -> Result<Option<BreakerPolicy>, Refusal> {
    let checked = breaker.map(BreakerPolicy::try_from).transpose();
    checked.map_err(|error| Refusal::Invalid(error.to_string()))
}

fn checked_rate(rate: Option<u32>) -> Result<Option<NonZeroU32>, Refusal> {
    match rate {
        Some(rate) if !REQUESTS_PER_SECOND.contains(&rate) => {
            let (least, most) = (REQUESTS_PER_SECOND.start(), REQUESTS_PER_SECOND.end());
            Err(Refusal::Invalid(format!("requests_per_second is {rate}, it must be from {least} to {most}")))
        }
        rate => Ok(rate.and_then(NonZeroU32::new)),
    }
}

fn checked_batch(batch: Option<Batch>) -> Result<Option<BatchPolicy>, Refusal> {
    let checked = batch.map(BatchPolicy::try_from).transpose();
    checked.map_err(|error| Refusal::Invalid(error.to_string()))
}

/// In a batch an event is its whole envelope: its attributes have no headers of their own.
fn check_format(format: Format, batch: Option<BatchPolicy>) -> Result<(), Refusal> {
    match (format, batch) {
        (Format::Data, Some(_)) => {
            Err(Refusal::Invalid("batch needs format \"cloudevents\", and format is \"data\"".to_owned()))
        }
        _ => Ok(()),
    }
}

fn checked_history(history: History) -> Result<History, Refusal> {
    match history {
        History::Sampled(one_in) if !SAMPLED.contains(&one_in.get()) => {
            let (least, most) = (SAMPLED.start(), SAMPLED.end());
            Err(Refusal::Invalid(format!("history: sampled is {one_in}, it must be from {least} to {most}")))
        }
        history => Ok(history),
    }
}

fn checked_timeout(timeout_ms: u32) -> Result<u32, Refusal> {
    if TIMEOUT_MS.contains(&timeout_ms) {
        Ok(timeout_ms)
    } else {
        Err(Refusal::Invalid(format!(
            "timeout_ms is {timeout_ms}, it must be from {} to {}",
            TIMEOUT_MS.start(),
            TIMEOUT_MS.end()
        )))
    }
}
