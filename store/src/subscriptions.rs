//! Subscriptions. Their secrets come here sealed and leave sealed.

use crate::{Error, outbox::ConfigurationWrite, rate, timestamp, word};
use floodway_schemas::{
    UnixMillis,
    config::{CONFIG_VERSION, ConfigChange, ConfigKey, History, Subscription, SubscriptionState},
    ids::{SubscriptionId, TenantId},
};
use std::num::NonZeroU32;
use tokio_postgres::{
    GenericClient, Row,
    types::{ToSql, Type},
};
use url::Url;

/// A subscription, and what only the control plane knows of it.
#[derive(Debug, Clone, PartialEq)]
pub struct SubscriptionRow {
    /// What is published.
    pub record: Subscription,
    /// For people.
    pub name: Option<String>,
    /// When it was created.
    pub created_at: UnixMillis,
    /// When it was last changed, by the control plane's clock.
    pub updated_at: UnixMillis,
}

/// Inserts a subscription and announces it.
pub async fn insert(write: &mut ConfigurationWrite<'_>, row: &SubscriptionRow) -> Result<(), Error> {
    let SubscriptionRow { record, name, created_at, updated_at } = row;
    let sql = "-- subscriptions::insert
        INSERT INTO subscription (id, tenant_id, name, url, types, state, active_from, secrets, retry, history,
            timeout_ms, headers, format, version, created_at, updated_at, filter, batch,
            history_sample, fallback_url, breaker, requests_per_second)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22)";
    let (history, history_sample) = history_columns(record.history)?;
    let parameters: [(&(dyn ToSql + Sync), Type); 22] = [
        (&record.id.0, Type::UUID),
        (&record.tenant.0, Type::UUID),
        (name, Type::TEXT),
        (&record.url.as_str(), Type::TEXT),
        (&word::to_json(&record.types)?, Type::JSONB),
        (&record.state.as_str(), Type::TEXT),
        (&timestamp::parameter(record.active_from), Type::TIMESTAMPTZ),
        (&word::to_json(&record.secrets)?, Type::JSONB),
        (&word::to_json(&record.retry)?, Type::JSONB),
        (&history, Type::TEXT),
        (&timeout_parameter(record.timeout_ms)?, Type::INT4),
        (&word::to_json(&record.headers)?, Type::JSONB),
        (&word::of(&record.format)?, Type::TEXT),
        (&word::version(record.version)?, Type::INT8),
        (&timestamp::parameter(*created_at), Type::TIMESTAMPTZ),
        (&timestamp::parameter(*updated_at), Type::TIMESTAMPTZ),
        (&record.filter, Type::TEXT),
        (&record.batch.as_ref().map(word::to_json).transpose()?, Type::JSONB),
        (&history_sample, Type::INT4),
        (&record.fallback_url.as_ref().map(|url| url.as_str()), Type::TEXT),
        (&record.breaker.as_ref().map(word::to_json).transpose()?, Type::JSONB),
        (&rate::parameter(record.requests_per_second)?, Type::INT4),
    ];
    write.reader().execute_typed(sql, &parameters).await?;
    write.append(&ConfigChange::Subscription(Box::new(record.clone()))).await
}

/// Writes a changed subscription with the next version and announces it.
pub async fn update(
    write: &mut ConfigurationWrite<'_>,
    row: &mut SubscriptionRow,
    now: UnixMillis,
) -> Result<(), Error> {
    row.record.version += 1;
    row.record.paused_since = (row.record.state == SubscriptionState::Paused).then_some(now);
    row.updated_at = now;
    let record = &row.record;
    let sql = "-- subscriptions::update
        UPDATE subscription SET name = $2, url = $3, types = $4, state = $5, secrets = $6, retry = $7, history = $8,
            timeout_ms = $9, headers = $10, format = $11, version = $12, updated_at = $13, filter = $14, batch = $15,
            history_sample = $16, fallback_url = $17, breaker = $18, requests_per_second = $19
        WHERE id = $1";
    let (history, history_sample) = history_columns(record.history)?;
    let parameters: [(&(dyn ToSql + Sync), Type); 19] = [
        (&record.id.0, Type::UUID),
        (&row.name, Type::TEXT),
        (&record.url.as_str(), Type::TEXT),
        (&word::to_json(&record.types)?, Type::JSONB),
        (&record.state.as_str(), Type::TEXT),
        (&word::to_json(&record.secrets)?, Type::JSONB),
        (&word::to_json(&record.retry)?, Type::JSONB),
        (&history, Type::TEXT),
        (&timeout_parameter(record.timeout_ms)?, Type::INT4),
        (&word::to_json(&record.headers)?, Type::JSONB),
        (&word::of(&record.format)?, Type::TEXT),
        (&word::version(record.version)?, Type::INT8),
        (&timestamp::parameter(row.updated_at), Type::TIMESTAMPTZ),
        (&record.filter, Type::TEXT),
        (&record.batch.as_ref().map(word::to_json).transpose()?, Type::JSONB),
        (&history_sample, Type::INT4),
        (&record.fallback_url.as_ref().map(|url| url.as_str()), Type::TEXT),
        (&record.breaker.as_ref().map(word::to_json).transpose()?, Type::JSONB),
        (&rate::parameter(record.requests_per_second)?, Type::INT4),
    ];
    if write.reader().execute_typed(sql, &parameters).await? == 0 {
        return Err(Error::NotFound("subscription"));
    }
    write.append(&ConfigChange::Subscription(Box::new(record.clone()))).await
}

/// Deletes a subscription of a tenant and announces it.
pub async fn delete(
    write: &mut ConfigurationWrite<'_>,
    tenant: TenantId,
    id: SubscriptionId,
) -> Result<(), Error> {
    let sql = "-- subscriptions::delete\nDELETE FROM subscription WHERE id = $1 AND tenant_id = $2";
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&id.0, Type::UUID), (&tenant.0, Type::UUID)];
    if write.reader().execute_typed(sql, &parameters).await? == 0 {
        return Err(Error::NotFound("subscription"));
    }
    write.append(&ConfigChange::Deleted(ConfigKey::Subscription(id))).await
}

/// Deletes all subscriptions of a tenant and announces each deletion.
pub(crate) async fn delete_all(write: &mut ConfigurationWrite<'_>, tenant: TenantId) -> Result<(), Error> {
    let sql = "-- subscriptions::delete_all\nDELETE FROM subscription WHERE tenant_id = $1 RETURNING id";
    let rows = write.reader().query_typed(sql, &[(&tenant.0, Type::UUID)]).await?;
    let keys: Vec<ConfigKey> = rows
        .iter()
        .map(|row| Ok(ConfigKey::Subscription(SubscriptionId(row.try_get(0)?))))
        .collect::<Result<_, Error>>()?;
    write.append_deletions(&keys).await
}

/// One subscription of a tenant.
pub async fn get(
    client: &impl GenericClient,
    tenant: TenantId,
    id: SubscriptionId,
) -> Result<SubscriptionRow, Error> {
    let sql = "-- subscriptions::get\nSELECT * FROM subscription WHERE id = $1 AND tenant_id = $2";
    let parameters: [(&(dyn ToSql + Sync), Type); 2] = [(&id.0, Type::UUID), (&tenant.0, Type::UUID)];
    let row = client.query_typed_opt(sql, &parameters).await?.ok_or(Error::NotFound("subscription"))?;
    from_row(&row)
}

/// Subscriptions of a tenant after `after` in the order of their creation.
pub async fn list(
    client: &impl GenericClient,
    tenant: TenantId,
    after: Option<SubscriptionId>,
    limit: i64,
) -> Result<Vec<SubscriptionRow>, Error> {
    let sql = "-- subscriptions::list
        SELECT * FROM subscription WHERE tenant_id = $1 AND ($2::uuid IS NULL OR id > $2) ORDER BY id LIMIT $3";
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(&tenant.0, Type::UUID), (&after.map(|id| id.0), Type::UUID), (&limit, Type::INT8)];
    let rows = client.query_typed(sql, &parameters).await?;
    rows.iter().map(from_row).collect()
}

/// How many a tenant has.
pub async fn count(client: &impl GenericClient, tenant: TenantId) -> Result<i64, Error> {
    let sql = "-- subscriptions::count\nSELECT count(*) FROM subscription WHERE tenant_id = $1";
    Ok(client.query_typed_one(sql, &[(&tenant.0, Type::UUID)]).await?.try_get(0)?)
}

fn from_row(row: &Row) -> Result<SubscriptionRow, Error> {
    let url = read_url("url", row.try_get("url")?)?;
    let fallback_url: Option<&str> = row.try_get("fallback_url")?;
    let timeout_ms: i32 = row.try_get("timeout_ms")?;
    let (state, updated_at) = (word::read(row, "state")?, timestamp::column(row, "updated_at")?);
    let record = Subscription {
        v: CONFIG_VERSION,
        version: word::read_version(row)?,
        id: SubscriptionId(row.try_get("id")?),
        tenant: TenantId(row.try_get("tenant_id")?),
        url,
        types: word::read_json(row, "types")?,
        state,
        // Every change of a paused subscription is published with its own time.
        paused_since: (state == SubscriptionState::Paused).then_some(updated_at),
        active_from: timestamp::column(row, "active_from")?,
        secrets: word::read_json(row, "secrets")?,
        retry: word::read_json(row, "retry")?,
        history: history_from_row(row)?,
        timeout_ms: timeout_ms.unsigned_abs(),
        headers: word::read_json(row, "headers")?,
        format: word::read(row, "format")?,
        filter: row.try_get("filter")?,
        batch: word::read_optional_json(row, "batch")?,
        fallback_url: fallback_url.map(|url| read_url("fallback_url", url).map(Box::new)).transpose()?,
        breaker: word::read_optional_json(row, "breaker")?,
        requests_per_second: rate::read(row, "requests_per_second")?,
    };
    Ok(SubscriptionRow {
        record,
        name: row.try_get("name")?,
        created_at: timestamp::column(row, "created_at")?,
        updated_at,
    })
}

fn read_url(column: &str, text: &str) -> Result<Url, Error> {
    text.parse().map_err(|_| Error::Other(format!("column {column} holds no URL")))
}

/// The word, and one in how many.
fn history_columns(history: History) -> Result<(&'static str, Option<i32>), Error> {
    Ok(match history {
        History::Counters => ("counters", None),
        History::All => ("all", None),
        History::Sampled(one_in) => {
            let one_in = i32::try_from(one_in.get());
            (
                "sampled",
                Some(one_in.map_err(|_| Error::Other("history_sample does not fit an integer".to_owned()))?),
            )
        }
    })
}

fn history_from_row(row: &Row) -> Result<History, Error> {
    if row.try_get::<_, &str>("history")? != "sampled" {
        return word::read(row, "history");
    }
    let one_in: i32 = row.try_get("history_sample")?;
    let one_in = NonZeroU32::new(one_in.unsigned_abs());
    one_in.map(History::Sampled).ok_or_else(|| Error::Other("column history_sample holds 0".to_owned()))
}

fn timeout_parameter(timeout_ms: u32) -> Result<i32, Error> {
    i32::try_from(timeout_ms).map_err(|_| Error::Other("timeout_ms does not fit an integer".to_owned()))
}
