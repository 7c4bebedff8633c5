//! Tenants.

use crate::{
    changed::{Changed, Deleted},
    error::Refusal,
    extract::{Body, Ids, Name, Parameters, Timestamp, present},
    openapi::Problems,
    page::{PageOf, PageQuery, rows_for},
    routes::Api,
};
use axum::{Json, extract::State, http::StatusCode, response::Response};
use floodway_runtime::clock;
use floodway_schemas::{
    config::{CONFIG_VERSION, Tenant, TenantState},
    ids::TenantId,
};
use floodway_store::tenants::{self, TenantRow};
use serde::{Deserialize, Serialize};
use std::num::NonZeroU32;
use utoipa::ToSchema;
use uuid::Uuid;

/// A tenant to create.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewTenant {
    /// For people: 1 to 200 characters.
    #[schema(value_type = String)]
    name: Name,
    /// Sustained events per second; absent leaves it to the installation's default.
    #[schema(value_type = Option<u32>, minimum = 1)]
    events_per_second: Option<Rate>,
    /// Sustained requests per second; absent leaves it to the installation's default.
    #[schema(value_type = Option<u32>, minimum = 1)]
    requests_per_second: Option<Rate>,
}

/// Fields of a tenant to change; absent ones stay.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TenantChange {
    /// For people: 1 to 200 characters.
    #[schema(value_type = Option<String>)]
    name: Option<Name>,
    /// `active`, or `suspended`: every request of its producers is refused.
    #[schema(value_type = Option<String>, example = "suspended")]
    state: Option<TenantState>,
    /// Sustained events per second; null leaves it to the installation's default.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    events_per_second: Option<Option<Rate>>,
    /// Sustained requests per second; null leaves it to the installation's default.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    requests_per_second: Option<Option<Rate>>,
}

/// A rate per second that a column of integers can hold.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "u32")]
pub(crate) struct Rate(pub(crate) NonZeroU32);

impl TryFrom<u32> for Rate {
    type Error = &'static str;

    fn try_from(rate: u32) -> Result<Self, Self::Error> {
        NonZeroU32::new(rate)
            .filter(|rate| i32::try_from(rate.get()).is_ok())
            .map(Self)
            .ok_or("events_per_second and requests_per_second must be from 1 to 2147483647")
    }
}

/// A customer of the installation.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TenantView {
    /// Identity.
    #[schema(value_type = Uuid)]
    id: TenantId,
    /// For people.
    name: String,
    /// `active` or `suspended`.
    #[schema(value_type = String, example = "active")]
    state: TenantState,
    /// Sustained events per second; null: the installation's default.
    #[schema(value_type = Option<u32>)]
    events_per_second: Option<NonZeroU32>,
    /// Sustained requests per second; null: the installation's default.
    #[schema(value_type = Option<u32>)]
    requests_per_second: Option<NonZeroU32>,
    /// Grows with each change.
    version: u64,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

impl From<TenantRow> for TenantView {
    fn from(row: TenantRow) -> Self {
        let TenantRow { record, created_at } = row;
        Self {
            id: record.id,
            name: record.name,
            state: record.state,
            events_per_second: record.events_per_second,
            requests_per_second: record.requests_per_second,
            version: record.version,
            created_at: Timestamp(created_at),
        }
    }
}

/// Create a tenant
#[utoipa::path(
    post, path = "/v1/tenants", tag = "tenants", request_body = NewTenant,
    responses((status = 201, description = "Created, and on the config topic", body = Changed<TenantView>), (status = 202, description = "Stored, and not on the config topic yet", body = Changed<TenantView>), Problems)
)]
pub(crate) async fn create_tenant(
    State(api): State<Api>,
    Body(new): Body<NewTenant>,
) -> Result<Response, Refusal> {
    let row = TenantRow {
        record: Tenant {
            v: CONFIG_VERSION,
            version: 1,
            id: TenantId(Uuid::now_v7()),
            name: new.name.0,
            state: TenantState::Active,
            events_per_second: new.events_per_second.map(|rate| rate.0),
            requests_per_second: new.requests_per_second.map(|rate| rate.0),
        },
        created_at: clock::now(),
    };
    let created = api.change(async |write| {
        tenants::insert(write, &row).await?;
        Ok(TenantView::from(row))
    });
    Ok(created.await?.into_response(StatusCode::CREATED))
}

/// List tenants
#[utoipa::path(
    get, path = "/v1/tenants", tag = "tenants", params(PageQuery),
    responses((status = 200, description = "Found", body = PageOf<TenantView>), Problems)
)]
pub(crate) async fn list_tenants(
    State(api): State<Api>,
    Parameters(query): Parameters<PageQuery>,
) -> Result<Json<PageOf<TenantView>>, Refusal> {
    let (after, limit) = (query.after()?.map(TenantId), query.limit()?);
    let client = api.pool.get().await?;
    let rows = tenants::list(&**client, after, rows_for(limit)).await?;
    Ok(Json(PageOf::of(rows, limit, |row| row.record.id.0, TenantView::from)))
}

/// Show a tenant
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}", tag = "tenants", params(("tenant" = Uuid, Path)),
    responses((status = 200, description = "Found", body = TenantView), Problems)
)]
pub(crate) async fn get_tenant(
    State(api): State<Api>,
    Ids(tenant): Ids<TenantId>,
) -> Result<Json<TenantView>, Refusal> {
    let client = api.pool.get().await?;
    Ok(Json(tenants::get(&**client, tenant).await?.into()))
}

/// Change a tenant
#[utoipa::path(
    patch, path = "/v1/tenants/{tenant}", tag = "tenants", params(("tenant" = Uuid, Path)),
    request_body = TenantChange,
    responses((status = 200, description = "Changed, and on the config topic", body = Changed<TenantView>), (status = 202, description = "Stored, and not on the config topic yet", body = Changed<TenantView>), Problems)
)]
pub(crate) async fn change_tenant(
    State(api): State<Api>,
    Ids(tenant): Ids<TenantId>,
    Body(wanted): Body<TenantChange>,
) -> Result<Response, Refusal> {
    let changed = api.change(async |write| {
        let mut row = tenants::get(write.reader(), tenant).await?;
        apply(&mut row, wanted);
        tenants::update(write, &mut row).await?;
        Ok(TenantView::from(row))
    });
    Ok(changed.await?.into_response(StatusCode::OK))
}

fn apply(row: &mut TenantRow, wanted: TenantChange) {
    if let Some(name) = wanted.name {
        row.record.name = name.0;
    }
    if let Some(state) = wanted.state {
        row.record.state = state;
    }
    if let Some(rate) = wanted.events_per_second {
        row.record.events_per_second = rate.map(|rate| rate.0);
    }
    if let Some(rate) = wanted.requests_per_second {
        row.record.requests_per_second = rate.map(|rate| rate.0);
    }
}

/// Delete a tenant with its keys and subscriptions
#[utoipa::path(
    delete, path = "/v1/tenants/{tenant}", tag = "tenants", params(("tenant" = Uuid, Path)),
    responses((status = 200, description = "Changed, and on the config topic", body = Changed<Deleted>), (status = 202, description = "Stored, and not on the config topic yet", body = Changed<Deleted>), Problems)
)]
pub(crate) async fn delete_tenant(
    State(api): State<Api>,
    Ids(tenant): Ids<TenantId>,
) -> Result<Response, Refusal> {
    let deleted = api.change(async |write| {
        tenants::delete(write, tenant).await?;
        Ok(Deleted { deleted: true })
    });
    Ok(deleted.await?.into_response(StatusCode::OK))
}
