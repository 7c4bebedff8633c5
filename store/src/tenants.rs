//! Tenants.

use crate::{Error, api_keys, outbox::ConfigurationWrite, rate, subscriptions, timestamp, word};
use floodway_schemas::{
    UnixMillis,
    config::{CONFIG_VERSION, ConfigChange, ConfigKey, Tenant},
    ids::TenantId,
};
use tokio_postgres::{
    GenericClient, Row,
    types::{ToSql, Type},
};

/// A tenant, and what only the control plane knows of it.
#[derive(Debug, Clone, PartialEq)]
pub struct TenantRow {
    /// What is published.
    pub record: Tenant,
    /// When it was created.
    pub created_at: UnixMillis,
}

/// Inserts a tenant and announces it.
pub async fn insert(write: &mut ConfigurationWrite<'_>, row: &TenantRow) -> Result<(), Error> {
    let TenantRow { record, created_at } = row;
    let sql = "-- tenants::insert
        INSERT INTO tenant (id, name, state, events_per_second, version, created_at, requests_per_second)
        VALUES ($1, $2, $3, $4, $5, $6, $7)";
    let parameters: [(&(dyn ToSql + Sync), Type); 7] = [
        (&record.id.0, Type::UUID),
        (&record.name, Type::TEXT),
        (&word::of(&record.state)?, Type::TEXT),
        (&rate::parameter(record.events_per_second)?, Type::INT4),
        (&word::version(record.version)?, Type::INT8),
        (&timestamp::parameter(*created_at), Type::TIMESTAMPTZ),
        (&rate::parameter(record.requests_per_second)?, Type::INT4),
    ];
    write.reader().execute_typed(sql, &parameters).await?;
    write.append(&ConfigChange::Tenant(record.clone())).await
}

/// Writes a changed tenant with the next version and announces it.
pub async fn update(write: &mut ConfigurationWrite<'_>, row: &mut TenantRow) -> Result<(), Error> {
    row.record.version += 1;
    let record = &row.record;
    let sql = "-- tenants::update
        UPDATE tenant SET name = $2, state = $3, events_per_second = $4, version = $5, requests_per_second = $6
        WHERE id = $1";
    let parameters: [(&(dyn ToSql + Sync), Type); 6] = [
        (&record.id.0, Type::UUID),
        (&record.name, Type::TEXT),
        (&word::of(&record.state)?, Type::TEXT),
        (&rate::parameter(record.events_per_second)?, Type::INT4),
        (&word::version(record.version)?, Type::INT8),
        (&rate::parameter(record.requests_per_second)?, Type::INT4),
    ];
    if write.reader().execute_typed(sql, &parameters).await? == 0 {
        return Err(Error::NotFound("tenant"));
    }
    write.append(&ConfigChange::Tenant(record.clone())).await
}

/// Deletes a tenant with its keys and subscriptions, and announces each deletion, the tenant's own last.
pub async fn delete(write: &mut ConfigurationWrite<'_>, id: TenantId) -> Result<(), Error> {
    api_keys::delete_all(write, id).await?;
    subscriptions::delete_all(write, id).await?;
    let sql = "-- tenants::delete\nDELETE FROM tenant WHERE id = $1";
    if write.reader().execute_typed(sql, &[(&id.0, Type::UUID)]).await? == 0 {
        return Err(Error::NotFound("tenant"));
    }
    write.append(&ConfigChange::Deleted(ConfigKey::Tenant(id))).await
}

/// One tenant.
pub async fn get(client: &impl GenericClient, id: TenantId) -> Result<TenantRow, Error> {
    let sql = "-- tenants::get\nSELECT * FROM tenant WHERE id = $1";
    let row = client.query_typed_opt(sql, &[(&id.0, Type::UUID)]).await?.ok_or(Error::NotFound("tenant"))?;
    from_row(&row)
}

/// Tenants after `after` in the order of their creation.
pub async fn list(
    client: &impl GenericClient,
    after: Option<TenantId>,
    limit: i64,
) -> Result<Vec<TenantRow>, Error> {
    let sql = "-- tenants::list
        SELECT * FROM tenant WHERE $1::uuid IS NULL OR id > $1 ORDER BY id LIMIT $2";
    let rows = client.query_typed(sql, &[(&after.map(|id| id.0), Type::UUID), (&limit, Type::INT8)]).await?;
    rows.iter().map(from_row).collect()
}

fn from_row(row: &Row) -> Result<TenantRow, Error> {
    let record = Tenant {
        v: CONFIG_VERSION,
        version: word::read_version(row)?,
        id: TenantId(row.try_get("id")?),
        name: row.try_get("name")?,
        state: word::read(row, "state")?,
        events_per_second: rate::read(row, "events_per_second")?,
        requests_per_second: rate::read(row, "requests_per_second")?,
    };
    Ok(TenantRow { record, created_at: timestamp::column(row, "created_at")? })
}
