//! API keys: shown once, stored as hashes.

use crate::{
    changed::Changed,
    error::Refusal,
    extract::{Body, Ids, Name, Parameters, Timestamp},
    openapi::Problems,
    page::{PageOf, PageQuery, rows_for},
    routes::Api,
    tenants::Rate,
};
use axum::{Json, extract::State, http::StatusCode, response::Response};
use floodway_runtime::clock;
use floodway_schemas::{
    api_key,
    config::{ApiKeyRecord, ApiKeyState, CONFIG_VERSION},
    ids::{ApiKeyId, TenantId},
};
use floodway_store::{
    api_keys::{self, ApiKeyRow},
    tenants,
};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use std::num::NonZeroU32;
use utoipa::ToSchema;
use uuid::Uuid;

/// Most keys of one tenant, revoked ones included. Bounds the transaction that deletes a tenant.
const MAX_KEYS: i64 = 1_000;

/// A key to create.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewApiKey {
    /// For people: 1 to 200 characters.
    #[schema(value_type = String)]
    name: Name,
    /// Label in the key's text, 1 to 16 lower-case letters and digits; default `live`.
    #[serde(default = "live")]
    #[schema(default = "live")]
    environment: String,
    /// When the key stops being accepted; absent: never.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    /// Sustained events per second of this key alone, within its tenant's; absent: no limit of its own.
    #[schema(value_type = Option<u32>, minimum = 1)]
    events_per_second: Option<Rate>,
    /// Sustained requests per second of this key alone, within its tenant's; absent: no limit of its own.
    #[schema(value_type = Option<u32>, minimum = 1)]
    requests_per_second: Option<Rate>,
}

fn live() -> String {
    "live".to_owned()
}

/// A key that producers authenticate with.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ApiKeyView {
    /// The public part of the key.
    #[schema(value_type = Uuid)]
    id: ApiKeyId,
    /// Owner.
    #[schema(value_type = Uuid)]
    tenant: TenantId,
    /// For people.
    name: String,
    /// Label in the key's text.
    environment: String,
    /// `active` or `revoked`.
    #[schema(value_type = String, example = "active")]
    state: ApiKeyState,
    /// When it stops being accepted; null: never.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    /// Sustained events per second of this key alone; null: no limit of its own.
    #[schema(value_type = Option<u32>)]
    events_per_second: Option<NonZeroU32>,
    /// Sustained requests per second of this key alone; null: no limit of its own.
    #[schema(value_type = Option<u32>)]
    requests_per_second: Option<NonZeroU32>,
    /// Grows with each change.
    version: u64,
    /// When it was created.
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
}

/// A new key. The only time that the key itself is shown.
#[derive(Serialize, ToSchema)]
pub(crate) struct CreatedApiKey {
    #[serde(flatten)]
    view: ApiKeyView,
    /// The key. It is not stored and cannot be shown again.
    key: String,
}

impl From<ApiKeyRow> for ApiKeyView {
    fn from(row: ApiKeyRow) -> Self {
        Self {
            id: row.record.id,
            tenant: row.record.tenant,
            name: row.name,
            environment: row.environment,
            state: row.record.state,
            expires_at: row.record.expires_at.map(Timestamp),
            events_per_second: row.record.events_per_second,
            requests_per_second: row.record.requests_per_second,
            version: row.record.version,
            created_at: Timestamp(row.created_at),
        }
    }
}

/// Create an API key
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/api-keys", tag = "api keys", params(("tenant" = Uuid, Path)),
    request_body = NewApiKey,
    responses((status = 201, description = "Created, and on the config topic", body = Changed<CreatedApiKey>), (status = 202, description = "Stored, and not on the config topic yet", body = Changed<CreatedApiKey>), Problems)
)]
pub(crate) async fn create_api_key(
    State(api): State<Api>,
    Ids(tenant): Ids<TenantId>,
    Body(new): Body<NewApiKey>,
) -> Result<Response, Refusal> {
    let now = clock::now();
    if new.expires_at.is_some_and(|at| at.0 <= now) {
        return Err(Refusal::Invalid("expires_at must be in the future".to_owned()));
    }
    let id = ApiKeyId(Uuid::now_v7());
    let (key, hash) = api_key::compose(&new.environment, id, &rand::random()).map_err(|_| {
        Refusal::Invalid("environment must be 1 to 16 lower-case letters and digits".to_owned())
    })?;
    let row = ApiKeyRow {
        record: ApiKeyRecord {
            v: CONFIG_VERSION,
            version: 1,
            id,
            tenant,
            hash,
            state: ApiKeyState::Active,
            expires_at: new.expires_at.map(|at| at.0),
            events_per_second: new.events_per_second.map(|rate| rate.0),
            requests_per_second: new.requests_per_second.map(|rate| rate.0),
        },
        name: new.name.0,
        environment: new.environment,
        created_at: now,
    };
    let created = api.change(async |write| {
        tenants::get(write.reader(), tenant).await?;
        if api_keys::count(write.reader(), tenant).await? >= MAX_KEYS {
            return Err(Refusal::Conflict(format!("the tenant has {MAX_KEYS} API keys, which is the most")));
        }
        api_keys::insert(write, &row).await?;
        Ok(CreatedApiKey { view: row.into(), key: key.expose_secret().to_owned() })
    });
    Ok(created.await?.into_response(StatusCode::CREATED))
}

/// List a tenant's API keys
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/api-keys", tag = "api keys", params(("tenant" = Uuid, Path), PageQuery),
    responses((status = 200, description = "Found", body = PageOf<ApiKeyView>), Problems)
)]
pub(crate) async fn list_api_keys(
    State(api): State<Api>,
    Ids(tenant): Ids<TenantId>,
    Parameters(query): Parameters<PageQuery>,
) -> Result<Json<PageOf<ApiKeyView>>, Refusal> {
    let (after, limit) = (query.after()?.map(ApiKeyId), query.limit()?);
    let client = api.pool.get().await?;
    tenants::get(&**client, tenant).await?;
    let rows = api_keys::list(&**client, tenant, after, rows_for(limit)).await?;
    Ok(Json(PageOf::of(rows, limit, |row| row.record.id.0, ApiKeyView::from)))
}

/// Revoke an API key
#[utoipa::path(
    delete, path = "/v1/tenants/{tenant}/api-keys/{id}", tag = "api keys",
    params(("tenant" = Uuid, Path), ("id" = Uuid, Path)),
    responses((status = 200, description = "Changed, and on the config topic", body = Changed<ApiKeyView>), (status = 202, description = "Stored, and not on the config topic yet", body = Changed<ApiKeyView>), Problems)
)]
pub(crate) async fn revoke_api_key(
    State(api): State<Api>,
    Ids((tenant, id)): Ids<(TenantId, ApiKeyId)>,
) -> Result<Response, Refusal> {
    let revoked = api.change(async |write| {
        let mut row = api_keys::get(write.reader(), tenant, id).await?;
        row.record.state = ApiKeyState::Revoked;
        api_keys::update(write, &mut row).await?;
        Ok(ApiKeyView::from(row))
    });
    Ok(revoked.await?.into_response(StatusCode::OK))
}
