//! `POST /v1/events`: authenticate, read, parse, limit, publish, answer. The rate is taken once the events are counted.

use crate::{
    addresses::OpenByAddress,
    authenticate::KeyTable,
    batch::{self, Origin},
    budget::BodyBudget,
    config::Settings,
    error::Refusal,
    identify::RequestIds,
    limit::Standing,
    metrics::Metrics,
    parse,
    publish::Publisher,
    read::{self, Media},
    respond::{self, Answer},
    target,
    tls::Tls,
};
use floodway_runtime::clock;
use http::{
    HeaderMap, HeaderValue, Request, Version,
    header::{CONNECTION, EXPECT},
    request::Parts,
};
use hyper::body::Incoming;
use metrics::Gauge;
use std::{
    cell::Cell,
    sync::{Arc, atomic::AtomicUsize},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Length of a W3C `traceparent` of version 00.
const TRACEPARENT_BYTES: usize = 55;

/// What every connection of every worker shares.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) settings: Settings,
    pub(crate) keys: KeyTable,
    pub(crate) publisher: Arc<Publisher>,
    pub(crate) metrics: Arc<Metrics>,
    /// What request bodies may take in memory.
    pub(crate) bodies: BodyBudget,
    /// Open connections.
    pub(crate) connections: AtomicUsize,
    /// The same by client.
    pub(crate) addresses: OpenByAddress,
    /// `None` when the listener speaks plain HTTP.
    pub(crate) tls: Option<Tls>,
    /// Requests in progress on one worker.
    pub(crate) requests_per_worker: usize,
    pub(crate) shutdown: CancellationToken,
}

impl Server {
    /// Answers one request.
    pub(crate) async fn handle(&self, request: Request<Incoming>) -> Answer {
        let began = Instant::now();
        let (head, mut body) = request.into_parts();
        let mut standing = Standing::default();
        let accepted = {
            // Given back before a refused body is read off: else refusals alone could take every place.
            let in_flight = InFlight::enter(&self.metrics.requests_in_flight);
            match in_flight.nth <= self.requests_per_worker {
                true => self.accept(&head, &mut body, &mut standing).await,
                false => Err(Refusal::Busy),
            }
        };
        let mut answer = match accepted {
            Ok(answer) => answer,
            Err(refusal) => {
                self.metrics.refused(refusal.reason());
                // Over HTTP/2 the answer needs no such care: its stream is reset, and the others go on.
                if head.version <= Version::HTTP_11 {
                    read::discard(&head.headers, &mut body, self.settings.max_body_bytes).await;
                }
                let mut answer = respond::refused(&refusal);
                if head.headers.contains_key(EXPECT) && head.version <= Version::HTTP_11 {
                    // The client may send its body or not, and what comes next may be either: no more of this connection.
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                answer
            }
        };
        standing.write(answer.headers_mut());
        self.metrics.answered(answer.status().as_u16());
        self.metrics.request_seconds.record(began.elapsed());
        answer
    }

    /// Accepts a request's events.
    async fn accept(
        &self,
        head: &Parts,
        body: &mut Incoming,
        standing: &mut Standing,
    ) -> Result<Answer, Refusal> {
        let Settings { max_body_bytes, body_timeout, max_batch_events, .. } = self.settings;
        let received_at = clock::now();
        target::check(head)?;
        let caller = self.keys.authenticate(&head.headers, received_at)?;
        caller.take_request(standing)?;
        let media = Media::of(&head.headers)?;
        self.publisher.check_reachable()?;
        let mut share = self.bodies.share(&caller.tenant.body_bytes);
        let body = read::read_body(body, &mut share, max_body_bytes, body_timeout).await?;
        self.metrics.body_bytes.record(body.len() as f64);
        let body = media.unpack(&head.headers, body, &mut share, &self.settings).await?;
        let events = parse::split(&body, media.format, max_batch_events)?;
        self.metrics.batch_events.record(events.len() as f64);
        caller.take_events(events.len(), standing).inspect_err(|_| self.count_limited(events.len()))?;

        let mut source = Uuid::encode_buffer();
        let origin = Origin {
            tenant: caller.tenant.id,
            source: caller.key.0.as_hyphenated().encode_lower(&mut source),
            traceparent: traceparent(&head.headers),
            received_at,
            ids: RequestIds::new(received_at, rand::random()),
        };
        let offering = Instant::now();
        let mut publication = self.publisher.begin(events.len())?;
        let entries = batch::publish(&events, origin, &mut publication).await;
        let (completion, deadline) = publication.finish();
        let offered = Instant::now();
        self.metrics.enqueue_seconds.record(offered - offering);
        completion.wait(deadline).await;
        self.metrics.ack_seconds.record(offered.elapsed());
        Ok(respond::settled(&entries, &completion, &self.metrics))
    }

    fn count_limited(&self, events: usize) {
        self.metrics.events_rate_limited.increment(events as u64);
    }
}

/// The request's trace context; one that is not well-formed is left alone, as W3C asks.
fn traceparent(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get("traceparent")?.to_str().ok()?;
    let well_formed = text.len() == TRACEPARENT_BYTES
        && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    well_formed.then_some(text)
}

/// Counts a request in flight for as long as it lives, also when its client goes away.
struct InFlight<'g> {
    gauge: &'g Gauge,
    /// How many there are on this worker with this one.
    nth: usize,
}

thread_local! {
    /// Requests in progress on this worker. A request never changes its thread.
    static IN_FLIGHT: Cell<usize> = const { Cell::new(0) };
}

impl<'g> InFlight<'g> {
    fn enter(gauge: &'g Gauge) -> Self {
        gauge.increment(1.0);
        let nth = IN_FLIGHT.get() + 1;
        IN_FLIGHT.set(nth);
        Self { gauge, nth }
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        IN_FLIGHT.set(IN_FLIGHT.get().saturating_sub(1));
        self.gauge.decrement(1.0);
    }
}
