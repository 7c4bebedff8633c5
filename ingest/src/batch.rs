//! From a request's events to records in the producer's queue, one by one.

use crate::{
    identify::RequestIds,
    parse::{Events, Rules, read_event},
    publish::Publication,
};
use floodway_schemas::{
    MAX_EVENT_BYTES, UnixMillis,
    event::{Defaults, Event, EventError, EventInput},
    ids::TenantId,
};
use std::{
    borrow::Cow,
    collections::{HashMap, hash_map},
};
use tokio::task::yield_now;
use uuid::Uuid;

/// Events that a request offers in one go: less than a millisecond's work, for which the worker's other requests wait.
const EVENTS_PER_TURN: usize = 256;
/// Room for a usual key: a tenant's id and a short name.
const KEY_BYTES: usize = 128;
/// Room for what is usually added to an event: tenant, time, id, source, trace context.
const ENVELOPE_BYTES: usize = 384;

/// What a request's events have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin<'a> {
    /// Owner of the key.
    pub(crate) tenant: TenantId,
    /// The key's id: the default `source`.
    pub(crate) source: &'a str,
    /// The request's trace context, for events without one.
    pub(crate) traceparent: Option<&'a str>,
    /// When the request was read.
    pub(crate) received_at: UnixMillis,
    /// Ids for events without one.
    pub(crate) ids: RequestIds,
}

/// One event of a request, after its turn.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    /// Its id; `None` when the event could not be read.
    pub(crate) id: Option<EventId<'a>>,
    /// What was decided about it.
    pub(crate) verdict: Verdict,
}

/// What is decided about an event before Kafka has its say.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Offered to the producer; the rest is in the request's completion slot.
    Offered,
    /// Not a valid event.
    Invalid(Box<EventError>),
    /// Its record would have this many bytes.
    TooLarge(usize),
    /// The same source and id as the event at this index, which stands for both.
    RepeatOf(usize),
}

/// An event's id.
#[derive(Debug, Clone)]
pub(crate) enum EventId<'a> {
    /// The producer's.
    Sent(Cow<'a, str>),
    /// Made here.
    Made(Uuid),
}

/// Offers every event to the producer, in input order. Lets the worker's other requests go on in between.
pub(crate) async fn publish<'a>(
    events: &Events<'a>,
    origin: Origin<'a>,
    publication: &mut Publication<'_>,
) -> Vec<Entry<'a>> {
    let mut batch = Batch {
        origin,
        publication,
        seen: HashMap::new(),
        alone: events.len() == 1,
        rules: events.rules(),
        record: Record::for_event(events.iter().next().map_or(0, <[u8]>::len)),
    };
    let mut entries = Vec::with_capacity(events.len());
    for (index, json) in events.iter().enumerate() {
        if index > 0 && index % EVENTS_PER_TURN == 0 {
            yield_now().await;
        }
        entries.push(batch.publish(index, json));
    }
    entries
}

struct Batch<'a, 'b, 'p> {
    origin: Origin<'a>,
    publication: &'b mut Publication<'p>,
    /// Source and id of the events that brought an id, with their index.
    seen: HashMap<(Cow<'a, str>, Cow<'a, str>), usize>,
    /// Whether there is only one event, which repeats nothing.
    alone: bool,
    /// What every event is held against.
    rules: Rules,
    record: Record,
}

/// Key and value of a record; the buffers are reused from event to event.
#[derive(Debug)]
struct Record {
    key: Vec<u8>,
    value: Vec<u8>,
}

impl<'a> Batch<'a, '_, '_> {
    fn publish(&mut self, index: usize, json: &'a [u8]) -> Entry<'a> {
        match read_event(json, self.rules) {
            Ok(input) => self.publish_input(index, input),
            Err(error) => Entry { id: None, verdict: Verdict::Invalid(Box::new(error)) },
        }
    }

    fn publish_input(&mut self, index: usize, mut input: EventInput<'a>) -> Entry<'a> {
        if input.traceparent.is_none() {
            input.traceparent = self.origin.traceparent.map(Cow::Borrowed);
        }
        let Some(id) = input.id.clone() else {
            let made = self.origin.ids.nth(index);
            return Entry { id: Some(EventId::Made(made)), verdict: self.offer(index, input, made) };
        };
        let verdict = if self.alone {
            self.offer(index, input, Uuid::nil())
        } else {
            let source = input.source.clone().unwrap_or(Cow::Borrowed(self.origin.source));
            self.offer_once(index, input, (source, id.clone()))
        };
        Entry { id: Some(EventId::Sent(id)), verdict }
    }

    /// Offers an event with an id of its own, unless the batch had it already.
    fn offer_once(
        &mut self,
        index: usize,
        input: EventInput<'a>,
        name: (Cow<'a, str>, Cow<'a, str>),
    ) -> Verdict {
        match self.seen.entry(name) {
            hash_map::Entry::Occupied(first) => return Verdict::RepeatOf(*first.get()),
            hash_map::Entry::Vacant(slot) => {
                // Only a first event that fits stands for its repeats.
                self.record.encode(input, &self.origin, Uuid::nil());
                if self.record.fits() {
                    slot.insert(index);
                }
            }
        }
        self.send(index)
    }

    fn offer(&mut self, index: usize, input: EventInput<'a>, made_id: Uuid) -> Verdict {
        self.record.encode(input, &self.origin, made_id);
        self.send(index)
    }

    fn send(&mut self, index: usize) -> Verdict {
        if !self.record.fits() {
            return Verdict::TooLarge(self.record.value.len());
        }
        self.publication.send(index, &self.record.key, &self.record.value);
        Verdict::Offered
    }
}

impl Record {
    /// Buffers with room for an event of `bytes` bytes: growing them step by step would copy it several times.
    fn for_event(bytes: usize) -> Self {
        Self { key: Vec::with_capacity(KEY_BYTES), value: Vec::with_capacity(bytes + ENVELOPE_BYTES) }
    }

    /// Writes the event's record; `made_id` is used when it has no id.
    fn encode(&mut self, input: EventInput<'_>, origin: &Origin<'_>, made_id: Uuid) {
        let mut text = Uuid::encode_buffer();
        let event: Event<'_> = input.complete(Defaults {
            tenant: origin.tenant,
            id: made_id.as_hyphenated().encode_lower(&mut text),
            source: origin.source,
            received_at: origin.received_at,
        });
        self.key.clear();
        event.encode_key(&mut self.key);
        self.value.clear();
        event.encode(&mut self.value);
    }

    fn fits(&self) -> bool {
        self.value.len() <= MAX_EVENT_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{config::Settings, media::Format, metrics::Metrics, parse, publish::Publisher};
    use floodway_runtime::kafka::KafkaSettings;
    use std::{
        pin::pin,
        sync::Arc,
        task::{Context, Poll, Waker},
    };

    #[tokio::test]
    async fn a_large_batch_gives_way_to_other_requests_of_its_worker() {
        let kafka = KafkaSettings { brokers: "127.0.0.1:1".to_owned(), ..KafkaSettings::default() };
        let publisher =
            Publisher::new(&kafka, &Settings::default(), Some(4), Arc::new(Metrics::new())).unwrap();
        let count = 4 * EVENTS_PER_TURN;
        let body = format!("[{}]", vec![r#"{"type":"a"}"#; count].join(","));
        let events = parse::split(body.as_bytes(), Format::Json, count).unwrap();
        let origin = Origin {
            tenant: TenantId(Uuid::nil()),
            source: "key",
            traceparent: None,
            received_at: UnixMillis(0),
            ids: RequestIds::new(UnixMillis(0), 0),
        };
        let mut publication = publisher.begin(count).unwrap();
        let mut publishing = pin!(publish(&events, origin, &mut publication));
        let mut gave_way = 0;
        let mut context = Context::from_waker(Waker::noop());
        let entries = loop {
            match publishing.as_mut().poll(&mut context) {
                Poll::Ready(entries) => break entries,
                Poll::Pending => gave_way += 1,
            }
        };
        assert_eq!((entries.len(), gave_way), (count, 3));
    }
}
