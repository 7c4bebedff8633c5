//! Test events: one delivery to one subscription, on request.

use crate::{
    error::Refusal, extract::Ids, metrics::ReplayKind, openapi::Problems, replay::Delivery, routes::Api,
};
use axum::{Json, extract::State, http::StatusCode};
use floodway_runtime::clock;
use floodway_schemas::{
    UnixMillis,
    config::SubscriptionState,
    event::{Data, Event},
    ids::{ReplayId, SubscriptionId, TenantId},
    outcome::record_key,
};
use floodway_store::subscriptions;
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use std::borrow::Cow;
use utoipa::ToSchema;
use uuid::Uuid;

/// Type and source of test events. Patterns do not matter to them.
const TEST_TYPE: &str = "floodway.test";
const TEST_SOURCE: &str = "floodway";

/// A test event on its way.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TestRequested {
    /// Id of the event.
    event_id: String,
    /// The request, as deliveries name it.
    #[schema(value_type = Uuid)]
    replay_id: ReplayId,
}

/// Send a test event of type `floodway.test` to a subscription
#[utoipa::path(
    post, path = "/v1/tenants/{tenant}/subscriptions/{id}/test", tag = "subscriptions",
    params(("tenant" = Uuid, Path), ("id" = Uuid, Path)),
    responses((status = 202, description = "On its way", body = TestRequested), Problems)
)]
pub(crate) async fn send_test_event(
    State(api): State<Api>,
    Ids((tenant, id)): Ids<(TenantId, SubscriptionId)>,
) -> Result<(StatusCode, Json<TestRequested>), Refusal> {
    let client = api.pool.get().await?;
    let state = subscriptions::get(&**client, tenant, id).await?.record.state;
    drop(client);
    if state != SubscriptionState::Active {
        return Err(Refusal::Conflict(format!(
            "the subscription is {}, a test needs it active",
            state.as_str()
        )));
    }
    let (event_id, replay) = (Uuid::now_v7().to_string(), ReplayId(Uuid::now_v7()));
    let now = clock::now();
    let event = test_event(tenant, id, &event_id, now)?;
    let delivery =
        Delivery { replay, tenant, subscription: id, record_key: &record_key(id, &event_id), event: &event };
    api.replays.request(ReplayKind::Test, &[delivery], now).await?;
    Ok((StatusCode::ACCEPTED, Json(TestRequested { event_id, replay_id: replay })))
}

/// The envelope of a test event.
fn test_event(
    tenant: TenantId,
    subscription: SubscriptionId,
    id: &str,
    now: UnixMillis,
) -> Result<Vec<u8>, Refusal> {
    let data = serde_json::json!({
        "message": "This is a test event from Floodway.",
        "subscription": subscription,
    });
    let data: Box<RawValue> = to_raw_value(&data).map_err(|_| Refusal::Internal)?;
    let event = Event {
        tenant,
        received_at: now,
        id: Cow::Borrowed(id),
        source: Cow::Borrowed(TEST_SOURCE),
        event_type: Cow::Borrowed(TEST_TYPE),
        time: Some(now.to_rfc3339().into()),
        subject: None,
        datacontenttype: Some(Cow::Borrowed("application/json")),
        dataschema: None,
        partitionkey: None,
        traceparent: None,
        extensions: Vec::new(),
        data: Data::Json(&data),
    };
    let mut envelope = Vec::new();
    event.encode(&mut envelope);
    Ok(envelope)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_event_reads_as_an_event() {
        let (tenant, subscription) = (TenantId(Uuid::from_u128(1)), SubscriptionId(Uuid::from_u128(2)));
        let envelope = test_event(tenant, subscription, "e-1", UnixMillis(1_795_275_240_123)).unwrap();
        let event = Event::decode(&envelope).unwrap();
        assert_eq!((event.event_type.as_ref(), event.id.as_ref(), event.tenant), (TEST_TYPE, "e-1", tenant));
        assert_eq!(event.ordering_key(), "e-1");
    }
}
