//! History: what became of deliveries, and how many there were.

use crate::{
    error::Refusal,
    extract::{Ids, Parameters, Timestamp},
    openapi::Problems,
    page::{PageOf, history_part},
    routes::Api,
};
use axum::{Json, extract::State};
use floodway_schemas::{
    exchange::{Exchange, Header, Timings},
    ids::{SubscriptionId, TenantId, is_text_id},
    outcome::ErrorClass,
};
use floodway_store::{
    counts::{self, CountFilter, SubscriptionCounts},
    deliveries::{self, Delivery, DeliveryFilter},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Decisions by name: what the filter `status` takes.
const KINDS: [&str; 6] = ["delivered", "retry", "deferred", "dead", "disable", "cancelled"];

/// Which deliveries to list. Absent ones do not restrict.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct DeliveryQuery {
    /// To this subscription.
    #[param(value_type = Option<Uuid>)]
    subscription: Option<SubscriptionId>,
    /// With this result: `delivered`, `retry`, `deferred`, `dead`, `disable` or `cancelled`.
    status: Option<String>,
    /// Of the event with this id, alone or in a batch.
    event_id: Option<String>,
    /// Of events of exactly this type, alone or in a batch.
    #[serde(rename = "type")]
    event_type: Option<String>,
    /// Answered with this HTTP status.
    http_status: Option<u16>,
    /// Failed with this class of error, such as `timeout`.
    error: Option<String>,
    /// Recorded at this instant or later.
    #[param(value_type = Option<String>, format = DateTime)]
    from: Option<Timestamp>,
    /// Recorded before this instant.
    #[param(value_type = Option<String>, format = DateTime)]
    to: Option<Timestamp>,
    /// `next_cursor` of the page before; absent for the first.
    cursor: Option<String>,
    /// Most items to return, 1 to 500; default 100.
    limit: Option<u32>,
}

/// What became of one attempt.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DeliveryView {
    /// When the attempt ended.
    #[schema(value_type = String, format = DateTime)]
    at: Timestamp,
    /// Whom it was delivered to.
    #[schema(value_type = Uuid)]
    subscription: SubscriptionId,
    /// The event's id; of a batch, its `webhook-id`.
    event_id: String,
    /// Its type; of a batch with events of several types, `*`.
    event_type: String,
    /// Ids of the events of a batch; null: a single event.
    members: Option<Vec<String>>,
    /// Number of the attempt, from 1.
    attempt: i32,
    /// The result: `delivered`, `retry`, `deferred`, `dead` or `disable`.
    kind: String,
    /// Why it was given up.
    reason: Option<String>,
    /// Status of the response; null when none came.
    http_status: Option<i32>,
    /// Class of the failure, such as `timeout`.
    error: Option<String>,
    /// `fallback`: the attempt was made at `fallback_url`; null: at `url`, or none was made.
    via: Option<String>,
    /// What went wrong, for people.
    detail: Option<String>,
    /// Duration of the attempt, milliseconds.
    duration_ms: Option<i32>,
    /// When the next attempt is due.
    #[schema(value_type = Option<String>, format = DateTime)]
    next_at: Option<Timestamp>,
    /// Start of the response's body.
    response: Option<String>,
    /// What went over the wire; null when no attempt was made, or it is not known.
    exchange: Option<ExchangeView>,
}

/// What went over the wire in an attempt.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ExchangeView {
    /// The address and port connected to; null without a connection.
    address: Option<String>,
    /// Whether the connection was there before, so that nothing was resolved or connected.
    reused: bool,
    /// How long the parts took.
    timings: TimingsView,
    /// What was sent; values that may be credentials, and the signature, are left out.
    request_headers: Vec<HeaderView>,
    /// What came back.
    response_headers: Vec<HeaderView>,
}

/// How long the parts of an attempt took, microseconds; null: there was no such part, or it did not end.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TimingsView {
    /// Resolving the host's name.
    dns_us: Option<u32>,
    /// The TCP connection.
    connect_us: Option<u32>,
    /// The TLS handshake.
    tls_us: Option<u32>,
    /// From the start of the attempt to the head of the response.
    first_byte_us: Option<u32>,
    /// The whole attempt, the body included.
    total_us: Option<u32>,
}

/// A header.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct HeaderView {
    /// Its name, in lower case.
    name: String,
    /// Its value, cut off at 256 bytes.
    value: String,
}

impl From<Exchange> for ExchangeView {
    fn from(exchange: Exchange) -> Self {
        let Timings { dns_us, connect_us, tls_us, first_byte_us, total_us } = exchange.timings;
        let view = |headers: Vec<Header>| {
            headers.into_iter().map(|Header { name, value }| HeaderView { name, value }).collect()
        };
        Self {
            address: exchange.address,
            reused: exchange.reused,
            timings: TimingsView { dns_us, connect_us, tls_us, first_byte_us, total_us },
            request_headers: view(exchange.request_headers),
            response_headers: view(exchange.response_headers),
        }
    }
}

impl From<Delivery> for DeliveryView {
    fn from(delivery: Delivery) -> Self {
        Self {
            at: Timestamp(delivery.at),
            subscription: delivery.subscription,
            event_id: delivery.event_id,
            event_type: delivery.event_type,
            members: delivery.members,
            attempt: delivery.attempt,
            kind: delivery.kind,
            reason: delivery.reason,
            http_status: delivery.status,
            error: delivery.error,
            via: delivery.via,
            detail: delivery.detail,
            duration_ms: delivery.duration_ms,
            next_at: delivery.next_at.map(Timestamp),
            response: delivery.response,
            exchange: delivery.exchange.map(ExchangeView::from),
        }
    }
}

/// List deliveries, newest first
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/deliveries", tag = "history", params(("tenant" = Uuid, Path), DeliveryQuery),
    responses((status = 200, description = "Found", body = PageOf<DeliveryView>), Problems)
)]
pub(crate) async fn list_deliveries(
    State(api): State<Api>,
    Ids(tenant): Ids<TenantId>,
    Parameters(query): Parameters<DeliveryQuery>,
) -> Result<Json<PageOf<DeliveryView>>, Refusal> {
    let (cursor, limit) = history_part(query.cursor.as_deref(), query.limit)?;
    check_word("status", query.status.as_deref(), &KINDS)?;
    check_event(query.event_id.as_deref(), query.event_type.as_deref())?;
    let filter = DeliveryFilter {
        tenant,
        subscription: query.subscription,
        kind: query.status,
        event_id: query.event_id,
        event_type: query.event_type,
        status: checked_http_status(query.http_status)?,
        error: checked_error(query.error)?,
        from: query.from.map(|at| at.0),
        to: query.to.map(|at| at.0),
    };
    let client = api.history.of_tenant(tenant).await?;
    Ok(Json(deliveries::list(&client, &filter, cursor, limit).await?.into()))
}

/// Refuses a word that is none of `words`.
pub(crate) fn check_word(name: &str, word: Option<&str>, words: &[&str]) -> Result<(), Refusal> {
    match word.filter(|word| !words.contains(word)) {
        None => Ok(()),
        Some(word) => {
            let shown: String = word.chars().take(32).collect();
            Err(Refusal::Invalid(format!("{name} is {shown:?}, it must be one of {}", words.join(", "))))
        }
    }
}

/// Refuses an id or a type that no event has.
pub(crate) fn check_event(id: Option<&str>, event_type: Option<&str>) -> Result<(), Refusal> {
    for (name, value) in [("event_id", id), ("type", event_type)] {
        if value.is_some_and(|text| !is_text_id(text)) {
            return Err(Refusal::Invalid(format!("{name} is nothing that an event could have")));
        }
    }
    Ok(())
}

/// An HTTP status to look for.
pub(crate) fn checked_http_status(status: Option<u16>) -> Result<Option<i32>, Refusal> {
    match status {
        Some(status) if !(100..600).contains(&status) => {
            Err(Refusal::Invalid(format!("http_status is {status}, it must be from 100 to 599")))
        }
        status => Ok(status.map(i32::from)),
    }
}

/// A class of failure to look for.
pub(crate) fn checked_error(error: Option<String>) -> Result<Option<String>, Refusal> {
    check_word("error", error.as_deref(), &ErrorClass::ALL.map(ErrorClass::as_str))?;
    Ok(error)
}

/// Which outcomes to count. Absent ones do not restrict.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct CountQuery {
    /// To this subscription.
    #[param(value_type = Option<Uuid>)]
    subscription: Option<SubscriptionId>,
    /// Recorded in the minute of this instant or later.
    #[param(value_type = Option<String>, format = DateTime)]
    from: Option<Timestamp>,
    /// Recorded in a minute that starts before this instant.
    #[param(value_type = Option<String>, format = DateTime)]
    to: Option<Timestamp>,
}

/// Numbers of outcomes by subscription.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Counts {
    /// From when on they were counted: `from`, moved back to a whole minute, hour or day. Minutes can be told apart for two
    /// days, hours for thirty. Null: from the first.
    #[schema(value_type = Option<String>, format = DateTime)]
    from: Option<Timestamp>,
    /// Until when, exclusive: `to`, moved forward in the same way. Null: until now.
    #[schema(value_type = Option<String>, format = DateTime)]
    to: Option<Timestamp>,
    /// One for each subscription that had an outcome.
    items: Vec<CountView>,
}

/// Numbers of events that one subscription had an outcome of. An event counts each time that it has one.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CountView {
    /// The subscription.
    #[schema(value_type = Uuid)]
    subscription: SubscriptionId,
    /// Answered 2xx.
    delivered: i64,
    /// Failed, to be tried again.
    retry: i64,
    /// Not attempted, to be tried later.
    deferred: i64,
    /// Given up.
    dead: i64,
    /// Given up for 410 Gone.
    disable: i64,
    /// Cancelled while pending.
    cancelled: i64,
}

impl From<SubscriptionCounts> for CountView {
    fn from(counts: SubscriptionCounts) -> Self {
        let of = |kind: &str| counts.by_kind.get(kind).copied().unwrap_or(0);
        Self {
            subscription: counts.subscription,
            delivered: of("delivered"),
            retry: of("retry"),
            deferred: of("deferred"),
            dead: of("dead"),
            disable: of("disable"),
            cancelled: of("cancelled"),
        }
    }
}

/// Count outcomes by subscription
#[utoipa::path(
    get, path = "/v1/tenants/{tenant}/counts", tag = "history", params(("tenant" = Uuid, Path), CountQuery),
    responses((status = 200, description = "Found", body = Counts), Problems)
)]
pub(crate) async fn count_deliveries(
    State(api): State<Api>,
    Ids(tenant): Ids<TenantId>,
    Parameters(query): Parameters<CountQuery>,
) -> Result<Json<Counts>, Refusal> {
    let filter = CountFilter {
        tenant,
        subscription: query.subscription,
        from: query.from.map(|at| at.0),
        to: query.to.map(|at| at.0),
    };
    let mut client = api.history.of_tenant(tenant).await?;
    let counts = counts::count(&mut client, &filter).await?;
    Ok(Json(Counts {
        from: counts.from.map(Timestamp),
        to: counts.to.map(Timestamp),
        items: counts.subscriptions.into_iter().map(CountView::from).collect(),
    }))
}
