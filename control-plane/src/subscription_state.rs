//! A subscription's state: active, paused, disabled; and the rotation of its secret.
//!
//! Each action leads to one state from some of them, and is refused from the others. Where it changes nothing it is
//! published again all the same, so that its answer tells as much as that of any change.

use crate::{
    changed::Changed,
    error::Refusal,
    extract::{Ids, OptionalBody, Timestamp},
    openapi::{ProblemDocument, Problems},
    pending_retries,
    routes::Api,
    secrets::{MAX_OVERLAP, NewSecret, rotated},
    subscriptions::SubscriptionView,
};
use axum::{extract::State, http::StatusCode, response::Response};
use floodway_runtime::clock;
use floodway_schemas::{
    config::{
        SignatureScheme, SigningSecret,
        SubscriptionState::{self, Active, Disabled, Paused},
    },
    ids::{SubscriptionId, TenantId},
    retry_command::{RetryAction, RetryScope},
};
use floodway_store::subscriptions;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use utoipa::ToSchema;

/// How long a replaced secret goes on signing unless the request says otherwise, in seconds.
const DEFAULT_OVERLAP_SECONDS: u64 = 86_400;

type SubscriptionPath = Ids<(TenantId, SubscriptionId)>;

/// Pause: events are kept and delivered once resumed
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/subscriptions/{id}/pause", tag = "subscriptions",
    params(("tenant" = Uuid, Path), ("id" = Uuid, Path)),
    responses((status = 200, description = "Changed, and on the config topic", body = Changed<SubscriptionView>), (status = 202, description = "Stored, and not on the config topic yet", body = Changed<SubscriptionView>), Problems)
)]
pub(crate) async fn pause_subscription(
    State(api): State<Api>,
    path: SubscriptionPath,
) -> Result<Response, Refusal> {
    lead_to(&api, path, &[Active, Paused], Paused).await
}

/// Resume a paused subscription
///
/// What was kept meanwhile is delivered in the order in which it came, at the rate that the installation allows.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/subscriptions/{id}/resume", tag = "subscriptions",
    params(("tenant" = Uuid, Path), ("id" = Uuid, Path)),
    responses((status = 200, description = "Changed, and on the config topic", body = Changed<SubscriptionView>), (status = 202, description = "Stored, and not on the config topic yet", body = Changed<SubscriptionView>), (status = 429, description = "Resumed, and its backlog was not asked for: so many commands to pending retries are kept already", body = ProblemDocument, content_type = "application/problem+json"), Problems)
)]
pub(crate) async fn resume_subscription(
    State(api): State<Api>,
    path: SubscriptionPath,
) -> Result<Response, Refusal> {
    let Ids((tenant, id)) = path;
    let resumed = lead_to(&api, path, &[Paused, Active], Active).await?;
    // After the publication. Who has not heard of it defers shortly for a while, see the retry scheduler's marks.
    let backlog = RetryScope::of_subscription(id);
    match pending_retries::send(&api, tenant, RetryAction::Now, backlog).await {
        Ok(_) => Ok(resumed),
        Err(refusal) => {
            let done = "the subscription is resumed, and its backlog was not asked for: resume it again";
            Err(Refusal::Interrupted(Box::new(refusal), done.to_owned()))
        }
    }
}

/// Disable: events are not matched, pending retries become dead letters
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/subscriptions/{id}/disable", tag = "subscriptions",
    params(("tenant" = Uuid, Path), ("id" = Uuid, Path)),
    responses((status = 200, description = "Changed, and on the config topic", body = Changed<SubscriptionView>), (status = 202, description = "Stored, and not on the config topic yet", body = Changed<SubscriptionView>), Problems)
)]
pub(crate) async fn disable_subscription(
    State(api): State<Api>,
    path: SubscriptionPath,
) -> Result<Response, Refusal> {
    lead_to(&api, path, &[Active, Paused, Disabled], Disabled).await
}

/// Enable a disabled subscription
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/subscriptions/{id}/enable", tag = "subscriptions",
    params(("tenant" = Uuid, Path), ("id" = Uuid, Path)),
    responses((status = 200, description = "Changed, and on the config topic", body = Changed<SubscriptionView>), (status = 202, description = "Stored, and not on the config topic yet", body = Changed<SubscriptionView>), Problems)
)]
pub(crate) async fn enable_subscription(
    State(api): State<Api>,
    path: SubscriptionPath,
) -> Result<Response, Refusal> {
    lead_to(&api, path, &[Disabled, Active], Active).await
}

async fn lead_to(
    api: &Api,
    Ids((tenant, id)): SubscriptionPath,
    from: &[SubscriptionState],
    to: SubscriptionState,
) -> Result<Response, Refusal> {
    let changed = api.change(async |write| {
        let mut row = subscriptions::get(write.reader(), tenant, id).await?;
        if !from.contains(&row.record.state) {
            return Err(Refusal::Conflict(format!("the subscription is {}", row.record.state.as_str())));
        }
        row.record.state = to;
        subscriptions::update(write, &mut row, clock::now()).await?;
        Ok(SubscriptionView::from(row))
    });
    Ok(changed.await?.into_response(StatusCode::OK))
}

/// How to rotate.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Rotation {
    /// Seconds that the replaced secret goes on signing beside the new one, 0 to 604,800; default 86,400.
    overlap_seconds: u64,
    /// Scheme of the new secret: `v1` (HMAC-SHA256) or `v1a` (Ed25519); absent: that of the replaced one.
    #[schema(value_type = Option<String>, example = "v1")]
    signature: Option<SignatureScheme>,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { overlap_seconds: DEFAULT_OVERLAP_SECONDS, signature: None }
    }
}

/// A new secret. The only time that it is shown.
#[derive(Serialize, ToSchema)]
pub(crate) struct RotatedSecret {
    /// Verifies deliveries from now on. It is stored sealed and cannot be shown again; for `v1a` it is the public key.
    secret: String,
    /// When the replaced secret signs no more.
    #[schema(value_type = String, format = DateTime)]
    previous_expires_at: Timestamp,
    /// Version of the subscription.
    version: u64,
}

/// Replace the signing secret
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/subscriptions/{id}/rotate-secret", tag = "subscriptions",
    params(("tenant" = Uuid, Path), ("id" = Uuid, Path)), request_body = Option<Rotation>,
    responses((status = 200, description = "Changed, and on the config topic", body = Changed<RotatedSecret>), (status = 202, description = "Stored, and not on the config topic yet", body = Changed<RotatedSecret>), Problems)
)]
pub(crate) async fn rotate_secret(
    State(api): State<Api>,
    Ids((tenant, id)): SubscriptionPath,
    OptionalBody(rotation): OptionalBody<Rotation>,
) -> Result<Response, Refusal> {
    let overlap = Duration::from_secs(rotation.overlap_seconds);
    if overlap > MAX_OVERLAP {
        return Err(Refusal::Invalid(format!("overlap_seconds must be at most {}", MAX_OVERLAP.as_secs())));
    }
    let rotated = api.change(async |write| {
        let mut row = subscriptions::get(write.reader(), tenant, id).await?;
        let now = clock::now();
        let current = row.record.secrets.first().map(SigningSecret::scheme).unwrap_or_default();
        let scheme = rotation.signature.unwrap_or(current);
        let (secret, sealed) = NewSecret::make(&api.sealing, id, scheme)?.into_parts();
        row.record.secrets = rotated(sealed, std::mem::take(&mut row.record.secrets), now, overlap);
        subscriptions::update(write, &mut row, now).await?;
        Ok(RotatedSecret {
            secret,
            previous_expires_at: Timestamp(now.plus(overlap)),
            version: row.record.version,
        })
    });
    Ok(rotated.await?.into_response(StatusCode::OK))
}
