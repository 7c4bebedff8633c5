//! What a pending retry is about, read from the record that it will be: only for those that a command may cover.

use floodway_schemas::{
    batch::{self, MIXED_TYPES, Member},
    due::Due,
    event::Event,
};
use floodway_store::{DbInstant, deliveries::NewDelivery, retry::PendingRetry};
use serde_json::value::RawValue;
use std::borrow::Cow;
use uuid::Uuid;

/// Name of the decision, in history and counts.
pub(crate) const CANCELLED: &str = "cancelled";

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject<'r> {
    pub(crate) tenant: Uuid,
    pub(crate) subscription: Uuid,
    /// The event's id, or a batch's.
    pub(crate) event_id: Cow<'r, str>,
    /// The event's type, or that of a batch.
    event_type: Cow<'r, str>,
    attempt: u32,
    /// A lease, which no command covers: its delivery is under way.
    pub(crate) is_lease: bool,
    members: Option<Vec<Member<'r>>>,
}

impl<'r> Subject<'r> {
    /// `None` for a record that this version cannot read: no command covers it.
    pub(crate) fn of(record: &'r [u8]) -> Option<Self> {
        let due = Due::decode(record).ok()?;
        let Named { event_id, event_type, members } = Named::of(due.event)?;
        Some(Self {
            tenant: due.tenant.0,
            subscription: due.subscription.0,
            event_id,
            event_type,
            attempt: due.attempt,
            is_lease: due.lease,
            members,
        })
    }

    /// How many events it is about.
    pub(crate) fn events(&self) -> i64 {
        self.members.as_ref().map_or(1, |members| i64::try_from(members.len()).unwrap_or(i64::MAX))
    }

    /// The row of history that says that it was cancelled.
    pub(crate) fn cancelled(self, row: &PendingRetry, at: DbInstant, command: Uuid) -> NewDelivery {
        let (ids, types) = self
            .members
            .map(|members| {
                let mut types: Vec<String> =
                    members.iter().map(|member| member.event_type.to_string()).collect();
                types.sort_unstable();
                types.dedup();
                (members.into_iter().map(|member| member.id.into_owned()).collect(), types)
            })
            .unzip();
        NewDelivery {
            id: row.position.id,
            at,
            tenant: self.tenant,
            subscription: self.subscription,
            event_id: self.event_id.into_owned(),
            event_type: self.event_type.into_owned(),
            attempt: i32::try_from(self.attempt).unwrap_or(i32::MAX),
            kind: CANCELLED,
            reason: None,
            status: None,
            error: None,
            detail: Some(format!("cancelled by command {command}")),
            duration_ms: None,
            next_at: None,
            response: None,
            exchange: None,
            members: ids,
            member_types: types,
            via: None,
        }
    }
}

/// How an event is named, or a batch.
struct Named<'r> {
    event_id: Cow<'r, str>,
    event_type: Cow<'r, str>,
    members: Option<Vec<Member<'r>>>,
}

impl<'r> Named<'r> {
    fn of(event: &'r RawValue) -> Option<Self> {
        if !batch::is_batch(event.get().as_bytes()) {
            let Member { id, event_type } = serde_json::from_str(event.get()).ok()?;
            return Some(Self { event_id: id, event_type, members: None });
        }
        let elements: Vec<&RawValue> = serde_json::from_str(event.get()).ok()?;
        let ids: Option<Vec<String>> = elements
            .iter()
            .map(|element| Event::decode(element.get().as_bytes()).ok().map(|event| event.message_id()))
            .collect();
        let members = Member::all(event).ok()?;
        let first = members.first()?.event_type.clone();
        let is_one_type = members.iter().all(|member| member.event_type == first);
        Some(Self {
            event_id: batch::batch_id(ids?.iter().map(String::as_str)).into(),
            event_type: if is_one_type { first } else { MIXED_TYPES.into() },
            members: Some(members),
        })
    }
}
