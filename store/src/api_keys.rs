//! API keys: hashes and states. The keys themselves are nowhere stored.

use crate::{Error, outbox::ConfigurationWrite, rate, timestamp, word};
use floodway_schemas::{
    UnixMillis,
    api_key::SecretHash,
    config::{ApiKeyRecord, CONFIG_VERSION, ConfigChange, ConfigKey},
    ids::{ApiKeyId, TenantId},
};
use tokio_postgres::{
    GenericClient, Row,
    types::{ToSql, Type},
};

/// An API key, and what only the control plane knows of it.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiKeyRow {
    /// What is published.
    pub record: ApiKeyRecord,
    /// For people.
    pub name: String,
    /// Label in the key's text, such as `live`.
    pub environment: String,
    /// When it was created.
    pub created_at: UnixMillis,
}

/// Inserts a key and announces it.
pub async fn insert(write: &mut ConfigurationWrite<'_>, row: &ApiKeyRow) -> Result<(), Error> {
    let ApiKeyRow { record, name, environment, created_at } = row;
    let sql = "-- api_keys::insert
        INSERT INTO api_key (id, tenant_id, name, environment, secret_hash, state, expires_at, version, created_at,
            events_per_second, requests_per_second)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
    let parameters: [(&(dyn ToSql + Sync), Type); 11] = [
        (&record.id.0, Type::UUID),
        (&record.tenant.0, Type::UUID),
        (name, Type::TEXT),
        (environment, Type::TEXT),
        (&record.hash.0.as_slice(), Type::BYTEA),
        (&word::of(&record.state)?, Type::TEXT),
        (&record.expires_at.map(timestamp::parameter), Type::TIMESTAMPTZ),
        (&word::version(record.version)?, Type::INT8),
        (&timestamp::parameter(*created_at), Type::TIMESTAMPTZ),
        (&rate::parameter(record.events_per_second)?, Type::INT4),
        (&rate::parameter(record.requests_per_second)?, Type::INT4),
    ];
    write.reader().execute_typed(sql, &parameters).await?;
    write.append(&ConfigChange::ApiKey(record.clone())).await
}

/// Writes a key's changed state with the next version and announces it.
pub async fn update(write: &mut ConfigurationWrite<'_>, row: &mut ApiKeyRow) -> Result<(), Error> {
    row.record.version += 1;
    let record = &row.record;
    let sql = "-- api_keys::update\nUPDATE api_key SET state = $2, version = $3 WHERE id = $1";
    let (state, version) = (word::of(&record.state)?, word::version(record.version)?);
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(&record.id.0, Type::UUID), (&state, Type::TEXT), (&version, Type::INT8)];
    if write.reader().execute_typed(sql, &parameters).await? == 0 {
        return Err(Error::NotFound("API key"));
    }
    write.append(&ConfigChange::ApiKey(record.clone())).await
}

/// Deletes all keys of a tenant and announces each deletion.
pub(crate) async fn delete_all(write: &mut ConfigurationWrite<'_>, tenant: TenantId) -> Result<(), Error> {
    let sql = "-- api_keys::delete_all\nDELETE FROM api_key WHERE tenant_id = $1 RETURNING id";
    let rows = write.reader().query_typed(sql, &[(&tenant.0, Type::UUID)]).await?;
    let keys: Vec<ConfigKey> = rows
        .iter()
        .map(|row| Ok(ConfigKey::ApiKey(ApiKeyId(row.try_get(0)?))))
        .collect::<Result<_, Error>>()?;
    write.append_deletions(&keys).await
}

/// One key of a tenant.
pub async fn get(client: &impl GenericClient, tenant: TenantId, id: ApiKeyId) -> Result<ApiKeyRow, Error> {
    let sql = "-- api_keys::get\nSELECT * FROM api_key WHERE id = $1 AND tenant_id = $2";
    let row = client
        .query_typed_opt(sql, &[(&id.0, Type::UUID), (&tenant.0, Type::UUID)])
        .await?
        .ok_or(Error::NotFound("API key"))?;
    from_row(&row)
}

/// Keys of a tenant after `after` in the order of their creation.
pub async fn list(
    client: &impl GenericClient,
    tenant: TenantId,
    after: Option<ApiKeyId>,
    limit: i64,
) -> Result<Vec<ApiKeyRow>, Error> {
    let sql = "-- api_keys::list
        SELECT * FROM api_key WHERE tenant_id = $1 AND ($2::uuid IS NULL OR id > $2) ORDER BY id LIMIT $3";
    let parameters: [(&(dyn ToSql + Sync), Type); 3] =
        [(&tenant.0, Type::UUID), (&after.map(|id| id.0), Type::UUID), (&limit, Type::INT8)];
    let rows = client.query_typed(sql, &parameters).await?;
    rows.iter().map(from_row).collect()
}

/// How many a tenant has.
pub async fn count(client: &impl GenericClient, tenant: TenantId) -> Result<i64, Error> {
    let sql = "-- api_keys::count\nSELECT count(*) FROM api_key WHERE tenant_id = $1";
    Ok(client.query_typed_one(sql, &[(&tenant.0, Type::UUID)]).await?.try_get(0)?)
}

fn from_row(row: &Row) -> Result<ApiKeyRow, Error> {
    let hash: &[u8] = row.try_get("secret_hash")?;
    let hash = hash.try_into().map_err(|_| Error::Other("a key's hash is not of 32 bytes".to_owned()))?;
    let record = ApiKeyRecord {
        v: CONFIG_VERSION,
        version: word::read_version(row)?,
        id: ApiKeyId(row.try_get("id")?),
        tenant: TenantId(row.try_get("tenant_id")?),
        hash: SecretHash(hash),
        state: word::read(row, "state")?,
        expires_at: timestamp::optional_column(row, "expires_at")?,
        events_per_second: rate::read(row, "events_per_second")?,
        requests_per_second: rate::read(row, "requests_per_second")?,
    };
    Ok(ApiKeyRow {
        record,
        name: row.try_get("name")?,
        environment: row.try_get("environment")?,
        created_at: timestamp::column(row, "created_at")?,
    })
}
