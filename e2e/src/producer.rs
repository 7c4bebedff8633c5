//! A producer that keeps a ledger of what was acknowledged.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, interval, sleep, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Events in one request.
const BATCH: u64 = 10;
/// Pause before a failed request is sent again.
const RETRY_AFTER: Duration = Duration::from_millis(50);
/// Longest wait for one answer: above the publish deadline.
const ANSWER_DEADLINE: Duration = Duration::from_secs(15);
/// Longest time in which a request is sent again and again.
const GIVE_UP_AFTER: Duration = Duration::from_secs(120);

/// What to do with a request that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// Send the same events again until they are acknowledged, as a careful producer does.
    SendAgain,
    /// Note the events as failed and go on.
    Note,
}

/// What became of the events, by id; the value is the `data` sent.
#[derive(Debug, Default, Clone)]
pub struct Sent {
    /// Acknowledged with 202.
    pub accepted: BTreeMap<String, Bytes>,
    /// Not acknowledged, after a connection was made: the answer was an error, or none.
    pub failed: BTreeMap<String, Bytes>,
    /// Never sent, for there was nobody to connect to.
    pub refused: u64,
    /// Requests that were sent again.
    pub repeated_requests: u64,
}

/// Sends events at a steady rate until it is stopped.
pub struct Producer {
    sent: Arc<Mutex<Sent>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Clone)]
struct Sender {
    url: String,
    authorization: String,
    client: Client<HttpConnector, Full<Bytes>>,
    on_failure: OnFailure,
    sent: Arc<Mutex<Sent>>,
    stop: CancellationToken,
}

impl Producer {
    /// Starts sending `connections` × `requests_per_second` requests of ten events each.
    pub fn start(
        url: &str,
        key: &str,
        connections: u64,
        requests_per_second: u64,
        on_failure: OnFailure,
    ) -> Self {
        let (sent, stop, tasks) = (Arc::default(), CancellationToken::new(), TaskTracker::new());
        for connection in 0..connections {
            let sender = Sender::new(url, key, on_failure, Arc::clone(&sent), stop.clone());
            let pace = Duration::from_secs(1) / u32::try_from(requests_per_second).unwrap_or(1).max(1);
            tasks.spawn(async move {
                let mut pace = interval(pace);
                for request in 0u64.. {
                    tokio::select! { () = sender.stop.cancelled() => break, _ = pace.tick() => {} }
                    sender.send(batch(&format!("{connection}-{request}"), BATCH)).await;
                }
            });
        }
        tasks.close();
        Self { sent, stop, tasks }
    }

    /// How many events have been acknowledged so far.
    pub fn accepted(&self) -> usize {
        lock(&self.sent).accepted.len()
    }

    /// Waits until at least `count` more events have been acknowledged.
    ///
    /// # Errors
    /// When that takes longer than two minutes.
    pub async fn accepts_more(&self, count: usize) -> Result<()> {
        let (target, end) = (self.accepted() + count, Instant::now() + Duration::from_secs(120));
        while self.accepted() < target {
            ensure!(Instant::now() < end, "only {} of {target} events were accepted", self.accepted());
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    }

    /// Stops sending, waits for the answers that are under way, and returns the ledger.
    pub async fn stop(self) -> Sent {
        self.stop.cancel();
        self.tasks.wait().await;
        lock(&self.sent).clone()
    }
}

/// Sends `count` events named `<name>-<n>` and returns them when all are acknowledged.
///
/// # Errors
/// When one is not.
pub async fn send_events(url: &str, key: &str, name: &str, count: u64) -> Result<BTreeMap<String, Bytes>> {
    let sent = Arc::default();
    let sender = Sender::new(url, key, OnFailure::Note, Arc::clone(&sent), CancellationToken::new());
    let events = batch(name, count);
    for chunk in events.chunks(100) {
        sender.send(chunk.to_vec()).await;
    }
    let sent = lock(&sent).clone();
    ensure!(sent.accepted.len() == events.len(), "{} of {count} events were accepted", sent.accepted.len());
    Ok(sent.accepted)
}

/// Events with ids, and data whose spaces and number formats a re-serialisation would change.
fn batch(name: &str, count: u64) -> Vec<(String, Bytes)> {
    let run: u32 = rand::random();
    (0..count)
        .map(|n| {
            let id = format!("{run:08x}-{name}-{n}");
            let data = format!("{{ \"id\" : \"{id}\",\"amount\":1.50e2, \"note\":\"caf\\u00e9 é\" }}");
            (id, Bytes::from(data))
        })
        .collect()
}

impl Sender {
    fn new(
        url: &str,
        key: &str,
        on_failure: OnFailure,
        sent: Arc<Mutex<Sent>>,
        stop: CancellationToken,
    ) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { url: url.to_owned(), authorization: format!("Bearer {key}"), client, on_failure, sent, stop }
    }

    /// Sends one batch and notes what became of it.
    async fn send(&self, events: Vec<(String, Bytes)>) {
        let end = Instant::now() + GIVE_UP_AFTER;
        loop {
            match self.attempt(&events).await {
                Ok(StatusCode::ACCEPTED) => return lock(&self.sent).accepted.extend(events),
                Ok(_) | Err(Failure::NoAnswer)
                    if self.on_failure == OnFailure::Note || Instant::now() > end =>
                {
                    return lock(&self.sent).failed.extend(events);
                }
                Err(Failure::NoConnection) if self.on_failure == OnFailure::Note || Instant::now() > end => {
                    lock(&self.sent).refused += events.len() as u64;
                    return;
                }
                Ok(_) | Err(_) => {
                    lock(&self.sent).repeated_requests += 1;
                    sleep(RETRY_AFTER).await;
                }
            }
        }
    }

    async fn attempt(&self, events: &[(String, Bytes)]) -> Result<StatusCode, Failure> {
        let request = self.request(events).map_err(|_| Failure::NoConnection)?;
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| {
                if error.is_connect() { Failure::NoConnection } else { Failure::NoAnswer }
            })?;
            let status = response.status();
            response.into_body().collect().await.map_err(|_| Failure::NoAnswer)?;
            Ok(status)
        };
        timeout(ANSWER_DEADLINE, exchange).await.unwrap_or(Err(Failure::NoAnswer))
    }

    fn request(&self, events: &[(String, Bytes)]) -> Result<Request<Full<Bytes>>> {
        let mut body = Vec::with_capacity(events.len() * 200);
        for (index, (id, data)) in events.iter().enumerate() {
            body.push(if index == 0 { b'[' } else { b',' });
            body.extend_from_slice(
                format!("{{\"type\":\"order.created\",\"id\":\"{id}\",\"data\":").as_bytes(),
            );
            body.extend_from_slice(data);
            body.push(b'}');
        }
        body.push(b']');
        Request::post(&self.url)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::AUTHORIZATION, &self.authorization)
            .body(Full::from(body))
            .context("request")
    }
}

enum Failure {
    NoConnection,
    NoAnswer,
}

/// Each critical section is one insertion or read: a panic elsewhere cannot leave it half done.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
