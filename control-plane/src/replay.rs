//! Deliveries asked for by hand: records on the `replays` topic, for test events and for dead letters.

use crate::{
    error::Refusal,
    metrics::{self, ReplayKind},
    records::{InFlight, Records},
};
use floodway_schemas::{
    UnixMillis,
    due::{DUE_VERSION, Due, Origin},
    ids::{ReplayId, SubscriptionId, TenantId},
};
use rdkafka::error::KafkaError;
use serde_json::value::RawValue;

/// Writes to the `replays` topic. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Replays {
    records: Records,
    topic: String,
}

/// One delivery to make.
pub(crate) struct Delivery<'a> {
    /// The request that it belongs to.
    pub(crate) replay: ReplayId,
    /// Owner of the event.
    pub(crate) tenant: TenantId,
    /// Whom to deliver to.
    pub(crate) subscription: SubscriptionId,
    /// Kafka key: `subscription/key`.
    pub(crate) record_key: &'a str,
    /// The event's envelope.
    pub(crate) event: &'a [u8],
}

impl Replays {
    pub(crate) fn new(records: Records, topic: String) -> Self {
        Self { records, topic }
    }

    /// Writes the deliveries in order and waits until all are acknowledged.
    pub(crate) async fn request(
        &self,
        kind: ReplayKind,
        deliveries: &[Delivery<'_>],
        now: UnixMillis,
    ) -> Result<(), Refusal> {
        let mut in_flight = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            in_flight.push(self.send(delivery, now)?);
        }
        for record in in_flight {
            record.acknowledged().await.map_err(unavailable)?;
        }
        metrics::replayed(kind, deliveries.len() as u64);
        Ok(())
    }

    fn send(&self, delivery: &Delivery<'_>, now: UnixMillis) -> Result<InFlight, Refusal> {
        let event: &RawValue = serde_json::from_slice(delivery.event).map_err(broken_event)?;
        let due = Due {
            v: DUE_VERSION,
            origin: Origin::ReplayId(delivery.replay),
            tenant: delivery.tenant,
            subscription: delivery.subscription,
            attempt: 1,
            since: now,
            lease: false,
            event,
        };
        let value = due.encode().map_err(broken_event)?;
        self.records.send(&self.topic, delivery.record_key, Some(&value)).map_err(unavailable)
    }
}

fn unavailable(error: KafkaError) -> Refusal {
    tracing::warn!(%error, "replays topic");
    Refusal::Unavailable("Kafka does not take the record".into())
}

fn broken_event(error: serde_json::Error) -> Refusal {
    // The error may quote the payload, so only its kind is told.
    tracing::error!(kind = ?error.classify(), "a stored event is not JSON");
    Refusal::Internal
}
