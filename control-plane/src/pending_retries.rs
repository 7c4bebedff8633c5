//! Pending retries: what is to be delivered later, to be seen, made now, or cancelled.
//!
//! Nothing here changes a row: a command goes onto `outcomes`, where the owners of the shards read it in order with the outcomes whose
//! retries it is about. So the answer is that it was asked for; history tells what came of it.

use crate::{
    deliveries::check_event,
    error::Refusal,
    extract::{Ids, OptionalBody, Parameters, Timestamp},
    metrics,
    openapi::{ProblemDocument, Problems},
    page::{PageOf, checked_limit, decode_cursor, encode_cursor, invalid_cursor},
    routes::Api,
};
use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use floodway_runtime::clock;
use floodway_schemas::{
    due::RetryKey,
    ids::{RetryCommandId, SubscriptionId, TenantId},
    retry_command::{RETRY_COMMAND_VERSION, RetryAction, RetryCommand, RetryScope},
};
use floodway_store::{
    mark_bounds,
    pending_retries::{self, DuePlace, PendingDelivery, PendingFilter},
    subscriptions,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, IntoResponses, ToSchema};
use uuid::Uuid;

/// Most pending retries that a preview goes up to: beyond it, it is known that they are many.
const MAX_COUNTED: usize = 10_000;

type SubscriptionPath = Ids<(TenantId, SubscriptionId)>;

/// Which part of a subscription's pending retries. Absent fields do not restrict.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct PendingQuery {
    /// Of the event with this id; a batch goes by its own id, its `webhook-id`.
    event_id: Option<String>,
    /// `next_cursor` of the page before; absent for the first.
    cursor: Option<String>,
    /// Most items to return, 1 to 500; default 100.
    limit: Option<u32>,
}

/// A delivery to be made later.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PendingView {
    /// Identity: `<shard>-<offset>`.
    #[schema(value_type = String, example = "3-1742")]
    id: RetryKey,
    /// When it is due.
    #[schema(value_type = String, format = DateTime)]
    due_at: Timestamp,
    /// The event's id; of a batch, its `webhook-id`.
    event_id: String,
    /// Number of the attempt to make.
    attempt: i32,
}

impl From<PendingDelivery> for PendingView {
    fn from(pending: PendingDelivery) -> Self {
        Self {
            id: pending.place.key(),
            due_at: Timestamp(pending.place.due.to_millis()),
            event_id: pending.event_id,
            attempt: pending.attempt,
        }
    }
}

/// List a subscription's pending retries, soonest first
///
/// Those that were cancelled or asked for now are not among them, as far as the command has been read. Nor are deliveries that are under
/// way, which no command is about.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/subscriptions/{id}/retries", tag = "retries",
    params(("tenant" = Uuid, Path), ("id" = Uuid, Path), PendingQuery),
    responses((status = 200, description = "Found", body = PageOf<PendingView>), Problems)
)]
pub(crate) async fn list_pending_retries(
    State(api): State<Api>,
    Ids((tenant, id)): SubscriptionPath,
    Parameters(query): Parameters<PendingQuery>,
) -> Result<Json<PageOf<PendingView>>, Refusal> {
    let place = |cursor: &String| -> Result<DuePlace, Refusal> {
        let bytes = decode_cursor(cursor)?;
        std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok()).ok_or_else(invalid_cursor)
    };
    let (cursor, limit) = (query.cursor.as_ref().map(place).transpose()?, checked_limit(query.limit)?);
    check_event(query.event_id.as_deref(), None)?;
    check_subscription(&api, tenant, id).await?;
    let client = api.history.of_tenant(tenant).await?;
    let page = pending_retries::list(&client, &filter(tenant, id, query.event_id), cursor, limit).await?;
    Ok(Json(PageOf {
        items: page.items.into_iter().map(PendingView::from).collect(),
        next_cursor: page.next_cursor.map(|place| encode_cursor(place.as_bytes())),
    }))
}

/// Which of a subscription's pending retries a command is about.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RetrySelection {
    /// Only this one, by its id; absent: any.
    #[schema(value_type = Option<String>, example = "3-1742")]
    id: Option<RetryKey>,
    /// Only those of the event with this id; a batch goes by its own id, its `webhook-id`. Absent: any.
    event_id: Option<String>,
    /// Whether only to count them, and to change nothing.
    preview: bool,
}

/// What was asked for.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CommandRequested {
    /// The command, as history and logs name it.
    #[schema(value_type = Uuid)]
    command_id: RetryCommandId,
    /// `now` or `cancel`.
    #[schema(value_type = String)]
    action: RetryAction,
    /// Whose retries.
    #[schema(value_type = Uuid)]
    subscription: SubscriptionId,
    /// Of which event; null: of any.
    event_id: Option<String>,
}

/// How many pending retries a command would be about.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PendingCount {
    /// How many were found.
    count: usize,
    /// Whether these are all. Otherwise there are at least so many: more than 10,000, or finding them takes long.
    complete: bool,
}

/// What a command is answered with, whichever it is, besides [`Problems`].
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only describes responses")]
pub(crate) enum CommandAnswers {
    /// Counted
    #[response(status = 200)]
    Counted(PendingCount),
    /// Asked for
    #[response(status = 202)]
    AskedFor(CommandRequested),
    /// As many of the tenant's commands, or of all, are kept as may be: this one would be passed over.
    #[response(status = 429, content_type = "application/problem+json")]
    TooMany(ProblemDocument),
}

/// Make pending retries now
///
/// They are delivered in the order in which they came, at the rate that the installation allows, instead of when they are due. What
/// becomes pending later is not affected, nor are deliveries that are under way. With `preview` they are counted only, which is
/// answered with 200.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/subscriptions/{id}/retries/now", tag = "retries",
    params(("tenant" = Uuid, Path), ("id" = Uuid, Path)), request_body = Option<RetrySelection>,
    responses(CommandAnswers, Problems)
)]
pub(crate) async fn make_retries_now(
    State(api): State<Api>,
    path: SubscriptionPath,
    OptionalBody(selection): OptionalBody<RetrySelection>,
) -> Result<Response, Refusal> {
    command(&api, path, RetryAction::Now, selection).await
}

/// Cancel pending retries
///
/// They are never delivered. History says so when their time comes, with the result `cancelled`. What becomes pending later is not
/// affected, nor are deliveries that are under way. With `preview` they are counted only, which is answered with 200.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/subscriptions/{id}/retries/cancel", tag = "retries",
    params(("tenant" = Uuid, Path), ("id" = Uuid, Path)), request_body = Option<RetrySelection>,
    responses(CommandAnswers, Problems)
)]
pub(crate) async fn cancel_retries(
    State(api): State<Api>,
    path: SubscriptionPath,
    OptionalBody(selection): OptionalBody<RetrySelection>,
) -> Result<Response, Refusal> {
    command(&api, path, RetryAction::Cancel, selection).await
}

async fn command(
    api: &Api,
    Ids((tenant, id)): SubscriptionPath,
    action: RetryAction,
    selection: RetrySelection,
) -> Result<Response, Refusal> {
    let RetrySelection { id: retry, event_id, preview } = selection;
    check_event(event_id.as_deref(), None)?;
    check_subscription(api, tenant, id).await?;
    if preview {
        if retry.is_some() {
            return Err(Refusal::Invalid(
                "preview counts those of a subscription or an event, id names one".into(),
            ));
        }
        let client = api.history.of_tenant(tenant).await?;
        let found = pending_retries::list(&client, &filter(tenant, id, event_id), None, MAX_COUNTED).await?;
        let count = PendingCount { count: found.items.len(), complete: found.next_cursor.is_none() };
        return Ok((StatusCode::OK, Json(count)).into_response());
    }
    let scope = RetryScope { event_id: event_id.clone(), retry, ..RetryScope::of_subscription(id) };
    let command_id = send(api, tenant, action, scope).await?;
    let asked = CommandRequested { command_id, action, subscription: id, event_id };
    Ok((StatusCode::ACCEPTED, Json(asked)).into_response())
}

/// Writes a command about a tenant's retries, unless its readers would pass it over.
pub(crate) async fn send(
    api: &Api,
    tenant: TenantId,
    action: RetryAction,
    scope: RetryScope,
) -> Result<RetryCommandId, Refusal> {
    let id = RetryCommandId(Uuid::now_v7());
    let command =
        RetryCommand { v: RETRY_COMMAND_VERSION, command: id, action, tenant, scope, at: clock::now() };
    refuse_beyond_bounds(api, &command).await?;
    match api.retry_commands.send(&command).await {
        // A shard that there is none of has no retries.
        Ok(0) => Err(Refusal::NotFound("retry".into())),
        Ok(records) => {
            metrics::commanded(action, records as u64);
            Ok(id)
        }
        Err(error) => {
            tracing::warn!(%error, "outcomes topic");
            Err(Refusal::Unavailable("Kafka does not take the command; asking again is harmless".into()))
        }
    }
}

/// What is on its way to be read does not count yet: it may pass the bounds, and is passed over there.
async fn refuse_beyond_bounds(api: &Api, command: &RetryCommand) -> Result<(), Refusal> {
    let client = api.pool.get().await?;
    let full = mark_bounds::full_for(&client, command).await?;
    full.map_or(Ok(()), |full| Err(Refusal::TooMany(full.to_string())))
}

fn filter(tenant: TenantId, subscription: SubscriptionId, event_id: Option<String>) -> PendingFilter {
    PendingFilter { tenant: Some(tenant), subscription: Some(subscription), event_id }
}

/// A command for what does not exist is a mistake.
async fn check_subscription(api: &Api, tenant: TenantId, id: SubscriptionId) -> Result<(), Refusal> {
    let client = api.pool.get().await?;
    subscriptions::get(&**client, tenant, id).await?;
    Ok(())
}
