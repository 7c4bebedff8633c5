//! Dead letters: list, show, deliver again.

use crate::{
    deliveries::{check_event, check_word, checked_error, checked_http_status},
    error::Refusal,
    extract::{Body, Ids, Parameters, Timestamp},
    metrics::ReplayKind,
    openapi::Problems,
    page::{PageOf, encode_cursor, history_part},
    replay::Delivery,
    routes::Api,
};
use axum::{Json, extract::State, http::StatusCode};
use floodway_runtime::clock;
use floodway_schemas::{
    UnixMillis,
    config::SubscriptionState,
    due::RetryKey,
    ids::{ReplayId, SubscriptionId, TenantId},
    outcome::DeadReason,
};
use floodway_store::{
    dead_letters::{self, DeadLetter, DeadLetterFilter, DeadLetterSummary, Place},
    replays, subscriptions, tenants,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::{HashMap, HashSet};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

/// Most dead letters of one request to replay.
const MAX_IDS: usize = 1_000;
/// Dead letters held in memory at once: each carries its event, up to 1 MiB.
const BATCH: usize = 16;

/// Most dead letters that a count goes up to: beyond it, it is known that they are many.
const MAX_COUNTED: usize = 10_000;

/// Which dead letters. Absent fields do not restrict.
#[derive(Debug, Deserialize, IntoParams, ToSchema)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DeadLetterQuery {
    /// Of this subscription.
    #[param(value_type = Option<Uuid>)]
    #[schema(value_type = Option<Uuid>)]
    subscription: Option<SubscriptionId>,
    /// Of the event with this id, alone or in a batch.
    event_id: Option<String>,
    /// Of events of exactly this type.
    #[serde(rename = "type")]
    event_type: Option<String>,
    /// Given up for this reason, such as `attempts_exhausted`.
    reason: Option<String>,
    /// Whose last answer had this HTTP status.
    http_status: Option<u16>,
    /// Whose last failure was of this class, such as `timeout`.
    error: Option<String>,
    /// Whether it was asked to be delivered again.
    replayed: Option<bool>,
    /// Recorded at this instant or later.
    #[param(value_type = Option<String>, format = DateTime)]
    #[schema(value_type = Option<String>, format = DateTime)]
    from: Option<Timestamp>,
    /// Recorded before this instant.
    #[param(value_type = Option<String>, format = DateTime)]
    #[schema(value_type = Option<String>, format = DateTime)]
    to: Option<Timestamp>,
    /// `next_cursor` of the page before; absent for the first.
    cursor: Option<String>,
    /// Most items to return, 1 to 500; default 100.
    limit: Option<u32>,
}

/// A delivery that was given up.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadLetterView {
    /// Identity: `<shard>-<offset>`.
    #[schema(value_type = String, example = "3-1742")]
    id: RetryKey,
    /// When it was given up.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// When its age began: acceptance of the event, or a request to replay.
    #[schema(value_type = String, format = DateTime)]
    since: Timestamp,
    /// Who did not get it.
    #[schema(value_type = Uuid)]
    subscription: SubscriptionId,
    /// The event's id; of a batch, its `webhook-id`.
    event_id: String,
    /// Its type; of a batch with events of several types, `*`.
    event_type: String,
    /// Ids of the events of a batch, which is delivered again as a whole; null: a single event.
    members: Option<Vec<String>>,
    /// Attempts made.
    attempts: i32,
    /// Why it was given up, such as `attempts_exhausted`.
    reason: String,
    /// Status of the last response; null when none came.
    http_status: Option<i32>,
    /// Class of the last failure, such as `timeout`.
    error: Option<String>,
    /// What went wrong, for people.
    detail: Option<String>,
    /// Start of the last response's body.
    response: Option<String>,
    /// How often it was asked to be delivered again.
    replays: i64,
    /// The last time; null: never.
    #[schema(value_type = Option<String>, format = DateTime)]
    replayed_at: Option<Timestamp>,
}

/// A delivery that was given up, with its event.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadLetterWithEvent {
    #[serde(flatten)]
    view: DeadLetterView,
    /// The event's envelope: CloudEvents JSON. Of a batch, the array of its events' envelopes.
    #[schema(value_type = serde_json::Value)]
    event: Box<RawValue>,
}

impl From<DeadLetterSummary> for DeadLetterView {
    fn from(letter: DeadLetterSummary) -> Self {
        Self {
            id: letter.id,
            at: Timestamp(letter.at),
            since: Timestamp(letter.since),
            subscription: letter.subscription,
            event_id: letter.event_id,
            event_type: letter.event_type,
            members: letter.members,
            attempts: letter.attempts,
            reason: letter.reason,
            http_status: letter.status,
            error: letter.error,
            detail: letter.detail,
            response: letter.response,
            replays: 0,
            replayed_at: None,
        }
    }
}

/// List dead letters, newest first, without their events
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/dead-letters", tag = "dead letters",
    params(("tenant" = Uuid, Path), DeadLetterQuery),
    responses((status = 200, description = "Found", body = PageOf<DeadLetterView>), Problems)
)]
pub(crate) async fn list_dead_letters(
    State(api): State<Api>,
    Ids(tenant): Ids<TenantId>,
    Parameters(query): Parameters<DeadLetterQuery>,
) -> Result<Json<PageOf<DeadLetterView>>, Refusal> {
    let (cursor, limit) = history_part(query.cursor.as_deref(), query.limit)?;
    let filter = query.filter(tenant)?;
    let client = api.history.of_tenant(tenant).await?;
    let mut page: PageOf<DeadLetterView> = dead_letters::list(&client, &filter, cursor, limit).await?.into();
    add_marks(&client, &mut page.items).await?;
    Ok(Json(page))
}

impl DeadLetterQuery {
    fn filter(self, tenant: TenantId) -> Result<DeadLetterFilter, Refusal> {
        check_event(self.event_id.as_deref(), self.event_type.as_deref())?;
        check_word("reason", self.reason.as_deref(), &DeadReason::ALL.map(DeadReason::as_str))?;
        Ok(DeadLetterFilter {
            tenant,
            subscription: self.subscription,
            event_id: self.event_id,
            event_type: self.event_type,
            reason: self.reason,
            status: checked_http_status(self.http_status)?,
            error: checked_error(self.error)?,
            replayed: self.replayed,
            from: self.from.map(|at| at.0),
            to: self.to.map(|at| at.0),
        })
    }
}

/// How many dead letters there are.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeadLetterCount {
    /// How many were found.
    count: usize,
    /// Whether these are all. Otherwise there are more than 10,000, or finding them takes long.
    complete: bool,
}

/// Count dead letters, as a preview of a replay
///
/// Takes the same filters as the list. With `cursor`, what comes after it is counted; `limit` is not taken.
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/dead-letters/count", tag = "dead letters",
    params(("tenant" = Uuid, Path), DeadLetterQuery),
    responses((status = 200, description = "Counted", body = DeadLetterCount), Problems)
)]
pub(crate) async fn count_dead_letters(
    State(api): State<Api>,
    Ids(tenant): Ids<TenantId>,
    Parameters(query): Parameters<DeadLetterQuery>,
) -> Result<Json<DeadLetterCount>, Refusal> {
    if query.limit.is_some() {
        return Err(Refusal::Invalid(format!("limit is not taken here, a count goes up to {MAX_COUNTED}")));
    }
    let (cursor, _) = history_part(query.cursor.as_deref(), None)?;
    let filter = query.filter(tenant)?;
    let client = api.history.of_tenant(tenant).await?;
    let found = dead_letters::places(&client, &filter, cursor, MAX_COUNTED).await?;
    Ok(Json(DeadLetterCount { count: found.items.len(), complete: found.next_cursor.is_none() }))
}

/// Show a dead letter with its event
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/dead-letters/{id}", tag = "dead letters",
    params(("tenant" = Uuid, Path), ("id" = String, Path)),
    responses((status = 200, description = "Found", body = DeadLetterWithEvent), Problems)
)]
pub(crate) async fn get_dead_letter(
    State(api): State<Api>,
    Ids((tenant, id)): Ids<(TenantId, String)>,
) -> Result<Json<DeadLetterWithEvent>, Refusal> {
    let id = parse_id(&id)?;
    let client = api.pool.get().await?;
    let DeadLetter { summary, event } = dead_letters::get(&client, tenant, id).await?;
    let mut view = [DeadLetterView::from(summary)];
    add_marks(&client, &mut view).await?;
    let [view] = view;
    let event = String::from_utf8(event).ok().and_then(|json| RawValue::from_string(json).ok());
    Ok(Json(DeadLetterWithEvent { view, event: event.ok_or(Refusal::Internal)? }))
}

async fn add_marks(
    client: &floodway_store::pool::Client,
    letters: &mut [DeadLetterView],
) -> Result<(), Refusal> {
    let ids: Vec<RetryKey> = letters.iter().map(|letter| letter.id).collect();
    let marks: HashMap<RetryKey, replays::Marks> =
        replays::marks(&***client, &ids).await?.into_iter().map(|marks| (marks.letter, marks)).collect();
    for letter in letters {
        if let Some(marks) = marks.get(&letter.id) {
            letter.replays = marks.replays;
            letter.replayed_at = Some(Timestamp(marks.last_at));
        }
    }
    Ok(())
}

/// A dead letter on its way.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReplayRequested {
    /// The request, as deliveries name it.
    #[schema(value_type = Uuid)]
    replay_id: ReplayId,
}

/// Deliver a dead letter again
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/dead-letters/{id}/replay", tag = "dead letters",
    params(("tenant" = Uuid, Path), ("id" = String, Path)),
    responses((status = 202, description = "On its way", body = ReplayRequested), Problems)
)]
pub(crate) async fn replay_dead_letter(
    State(api): State<Api>,
    Ids((tenant, id)): Ids<(TenantId, String)>,
) -> Result<(StatusCode, Json<ReplayRequested>), Refusal> {
    let ids = [parse_id(&id)?];
    let replay_id = ReplayId(Uuid::now_v7());
    check_receivers(&api, tenant, &ids).await?;
    if replay_all(&api, tenant, replay_id, &ids).await?.is_empty() {
        return Err(Refusal::NotFound("dead letter".into()));
    }
    Ok((StatusCode::ACCEPTED, Json(ReplayRequested { replay_id })))
}

/// Dead letters to deliver again.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReplayMany {
    /// 1 to 1,000 ids; repeated ones count once.
    ids: Vec<String>,
}

/// Dead letters on their way.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReplayManyRequested {
    /// The request, as deliveries name it.
    #[schema(value_type = Uuid)]
    replay_id: ReplayId,
    /// How many are on their way.
    count: usize,
    /// Ids that no dead letter of this tenant has.
    not_found: Vec<String>,
}

/// Deliver several dead letters again
///
/// They are written in batches. When something fails in between, the answer is the error and says how many were
/// written; asking again delivers those twice.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/dead-letters/replay", tag = "dead letters",
    params(("tenant" = Uuid, Path)), request_body = ReplayMany,
    responses((status = 202, description = "On its way", body = ReplayManyRequested), Problems)
)]
pub(crate) async fn replay_dead_letters(
    State(api): State<Api>,
    Ids(tenant): Ids<TenantId>,
    Body(ReplayMany { ids }): Body<ReplayMany>,
) -> Result<(StatusCode, Json<ReplayManyRequested>), Refusal> {
    if !(1..=MAX_IDS).contains(&ids.len()) {
        return Err(Refusal::Invalid(format!("ids has {} entries, 1 to {MAX_IDS} are allowed", ids.len())));
    }
    let ids = distinct_ids(&ids)?;
    let replay_id = ReplayId(Uuid::now_v7());
    check_receivers(&api, tenant, &ids).await?;
    let found = replay_all(&api, tenant, replay_id, &ids).await?;
    if found.is_empty() {
        return Err(Refusal::NotFound("dead letter".into()));
    }
    let not_found = ids.iter().filter(|id| !found.contains(id)).map(ToString::to_string).collect();
    Ok((StatusCode::ACCEPTED, Json(ReplayManyRequested { replay_id, count: found.len(), not_found })))
}

/// Dead letters on their way, and where to go on.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ReplayMatchingRequested {
    /// The request, as deliveries name it.
    #[schema(value_type = Uuid)]
    replay_id: ReplayId,
    /// How many are on their way.
    count: usize,
    /// How many were passed over because their subscription is disabled or was deleted.
    skipped: usize,
    /// What to send as `cursor` to go on with the next ones, which are older; null: there are none.
    next_cursor: Option<String>,
}

/// Deliver the dead letters that a filter matches again
///
/// The newest come first, at most `limit` of them; asking again with `next_cursor` goes on. Dead letters that come into being
/// meanwhile are newer than that, so going on ends. `replayed: false` leaves out what was asked for before.
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/dead-letters/replay-matching", tag = "dead letters",
    params(("tenant" = Uuid, Path)), request_body = DeadLetterQuery,
    responses((status = 202, description = "On its way", body = ReplayMatchingRequested), Problems)
)]
pub(crate) async fn replay_matching_dead_letters(
    State(api): State<Api>,
    Ids(tenant): Ids<TenantId>,
    Body(query): Body<DeadLetterQuery>,
) -> Result<(StatusCode, Json<ReplayMatchingRequested>), Refusal> {
    let (cursor, limit) = history_part(query.cursor.as_deref(), query.limit)?;
    let filter = query.filter(tenant)?;
    let replay_id = ReplayId(Uuid::now_v7());
    // From the primary: a replica may not have the marks of a moment ago.
    let client = api.pool.get().await?;
    tenants::get(&**client, tenant).await?;
    let found = dead_letters::places(&client, &filter, cursor, limit).await?;
    let ids = deliverable(&client, tenant, &found.items).await?;
    drop(client);
    let written = replay_all(&api, tenant, replay_id, &ids).await?;
    let skipped = found.items.len() - ids.len();
    let next_cursor = found.next_cursor.map(|place| encode_cursor(place.as_bytes()));
    let answer = ReplayMatchingRequested { replay_id, count: written.len(), skipped, next_cursor };
    Ok((StatusCode::ACCEPTED, Json(answer)))
}

/// Those of some dead letters whose subscription can take them.
async fn deliverable(
    client: &floodway_store::pool::Client,
    tenant: TenantId,
    places: &[Place],
) -> Result<Vec<RetryKey>, Refusal> {
    let mut receivers: HashMap<SubscriptionId, bool> = HashMap::new();
    let mut ids = Vec::with_capacity(places.len());
    for place in places {
        let can_take = match receivers.get(&place.subscription) {
            Some(known) => *known,
            None => match check_receiver(client, tenant, place.subscription).await {
                Ok(()) => true,
                Err(Refusal::Conflict(_)) => false,
                Err(refusal) => return Err(refusal),
            },
        };
        receivers.insert(place.subscription, can_take);
        if can_take {
            ids.push(place.id());
        }
    }
    Ok(ids)
}

/// Writes those of some dead letters that exist to `replays`, a few at a time, and answers which.
async fn replay_all(
    api: &Api,
    tenant: TenantId,
    replay: ReplayId,
    ids: &[RetryKey],
) -> Result<HashSet<RetryKey>, Refusal> {
    let now = clock::now();
    let mut written = HashSet::with_capacity(ids.len());
    for batch in ids.chunks(BATCH) {
        if let Err(refusal) = replay_batch(api, tenant, replay, batch, now, &mut written).await {
            return Err(interrupted(refusal, written.len(), ids.len(), replay));
        }
    }
    Ok(written)
}

/// The refusal, and what was done before it: those are delivered, whatever the answer's status.
fn interrupted(refusal: Refusal, written: usize, all: usize, replay_id: ReplayId) -> Refusal {
    if written == 0 {
        return refusal;
    }
    let done = format!("at least {written} of {all} were written as replay {replay_id}");
    Refusal::Interrupted(Box::new(refusal), done)
}

/// Writes those of some dead letters that exist to `replays`, then their marks. Adds them to `written` as soon as Kafka has
/// them, for from then on they are delivered.
async fn replay_batch(
    api: &Api,
    tenant: TenantId,
    replay: ReplayId,
    ids: &[RetryKey],
    now: UnixMillis,
    written: &mut HashSet<RetryKey>,
) -> Result<(), Refusal> {
    let client = api.pool.get().await?;
    let letters = dead_letters::by_ids(&client, tenant, ids).await?;
    // The connection is not kept while Kafka is waited for.
    drop(client);
    let deliveries: Vec<Delivery<'_>> = letters
        .iter()
        .map(|DeadLetter { summary, event }| Delivery {
            replay,
            tenant,
            subscription: summary.subscription,
            record_key: &summary.record_key,
            event,
        })
        .collect();
    api.replays.request(ReplayKind::Replay, &deliveries, now).await?;
    let ids: Vec<RetryKey> = letters.iter().map(|letter| letter.summary.id).collect();
    written.extend(&ids);
    let client = api.pool.get().await?;
    replays::mark(&**client, tenant, replay, &ids).await?;
    Ok(())
}

/// Refuses before anything is written if any of the letters could not be delivered.
async fn check_receivers(api: &Api, tenant: TenantId, ids: &[RetryKey]) -> Result<(), Refusal> {
    let client = api.pool.get().await?;
    for subscription in dead_letters::receivers(&client, tenant, ids).await? {
        check_receiver(&client, tenant, subscription).await?;
    }
    Ok(())
}

/// A replay to a subscription that cannot take it would only make another dead letter.
async fn check_receiver(
    client: &floodway_store::pool::Client,
    tenant: TenantId,
    id: SubscriptionId,
) -> Result<(), Refusal> {
    match subscriptions::get(&***client, tenant, id).await {
        Ok(row) if row.record.state == SubscriptionState::Disabled => {
            Err(Refusal::Conflict(format!("subscription {id} is disabled: enable it first")))
        }
        Ok(_) => Ok(()),
        Err(floodway_store::Error::NotFound(_)) => {
            Err(Refusal::Conflict(format!("subscription {id} was deleted")))
        }
        Err(error) => Err(error.into()),
    }
}

fn parse_id(text: &str) -> Result<RetryKey, Refusal> {
    text.parse().map_err(|_| Refusal::NotFound("dead letter".into()))
}

fn distinct_ids(texts: &[String]) -> Result<Vec<RetryKey>, Refusal> {
    let mut seen = HashSet::with_capacity(texts.len());
    let mut ids = Vec::with_capacity(texts.len());
    for text in texts {
        let id: RetryKey = text.parse().map_err(|_| {
            let shown: String = text.chars().take(40).collect();
            Refusal::Invalid(format!("ids holds {shown:?}, which is not the id of a dead letter"))
        })?;
        if seen.insert(id) {
            ids.push(id);
        }
    }
    Ok(ids)
}
