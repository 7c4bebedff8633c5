//! The webhook sink: an HTTP server (HTTP/1.1, and HTTP/2 without TLS) whose paths name how they answer, that
//! checks signatures and keeps a ledger of what arrived.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use floodway_loadtest::receive::{Receiver, ReceiverConfig};
//! let receiver = Receiver::bind("127.0.0.1:0", ReceiverConfig::default()).await?;
//! let url = receiver.url("/fail/2/orders"); // give this to a subscription,
//! receiver.set_secrets("/fail/2/orders", &["whsec_c2VjcmV0"])?; // and its secret to the receiver
//! assert_eq!(receiver.ledger().totals("/fail/2/orders").arrivals, 0);
//! receiver.stop().await;
//! # Ok(()) }
//! ```

mod answer_body;
pub mod behaviour;
pub mod ledger;
pub mod verify;

pub(crate) use self::answer_body::AnswerBody;
use self::{
    behaviour::{Answer, Behaviour, Route},
    ledger::{Arrival, Bounds, Ledger, Totals},
    verify::{InvalidSecret, Secrets, Verdict},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream, ToSocketAddrs},
    sync::{Semaphore, watch},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

/// Largest request body, in bytes: twice the largest event, so that the structured form of any event fits.
pub const MAX_BODY_BYTES: usize = 2 * 1024 * 1024;
/// The path of the summary in JSON.
pub const LEDGER_PATH: &str = "/_ledger";
/// How long open requests may take to end once the receiver stops.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);
/// Wait after an `accept` that failed, which is mostly for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const CE_ID: HeaderName = HeaderName::from_static("ce-id");

/// Bounds of a receiver.
#[derive(Debug, Clone, Copy)]
pub struct ReceiverConfig {
    /// What the ledger may remember.
    pub ledger: Bounds,
    /// Connections at a time; further ones wait to be accepted.
    pub connections: usize,
    /// Latest requests that are kept whole, see [`Receiver::captured`]. Each may hold [`MAX_BODY_BYTES`].
    pub captured: usize,
}

impl Default for ReceiverConfig {
    fn default() -> Self {
        Self { ledger: Bounds::default(), connections: 10_000, captured: 0 }
    }
}

/// The receiver's address cannot be used.
#[derive(Debug, Error)]
#[error("the receiver cannot listen: {0}")]
pub struct BindError(#[from] std::io::Error);

/// A running receiver. It stops when dropped; [`Receiver::stop`] also waits for its connections.
pub struct Receiver {
    address: SocketAddr,
    state: Arc<State>,
    tasks: TaskTracker,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

/// One request, whole.
#[derive(Debug, Clone)]
pub struct Captured {
    /// Path of the URL.
    pub path: String,
    /// Headers as received.
    pub headers: HeaderMap,
    /// Body as received.
    pub body: Bytes,
    /// What the check of its signature said.
    pub verdict: Verdict,
    /// When it had been read.
    pub at: Instant,
}

/// The summary that `GET /_ledger` answers.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Sums per path.
    pub paths: BTreeMap<String, Totals>,
    /// Requests on paths that name no behaviour.
    pub unrouted: u64,
    /// Requests whose body did not arrive, or was too large.
    pub unread: u64,
    /// Arrivals beyond the ledger's bounds.
    pub untracked: u64,
    /// Connections that could not be accepted.
    pub accept_failures: u64,
}

struct State {
    ledger: Ledger,
    secrets: Secrets,
    behaviours: RwLock<HashMap<String, Behaviour>>,
    captured: Mutex<VecDeque<Captured>>,
    capture: usize,
    changes: watch::Sender<u64>,
    unrouted: AtomicU64,
    unread: AtomicU64,
    accept_failures: AtomicU64,
    stop: CancellationToken,
}

/// Ends a connection without an answer.
#[derive(Debug, Error)]
#[error("the path asks for a reset")]
pub(crate) struct Reset;

impl Receiver {
    /// Listens and serves until stopped or dropped. Port 0 takes a free one.
    pub async fn bind(address: impl ToSocketAddrs, config: ReceiverConfig) -> Result<Self, BindError> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        let state = Arc::new(State {
            ledger: Ledger::new(config.ledger),
            secrets: Secrets::default(),
            behaviours: RwLock::default(),
            captured: Mutex::default(),
            capture: config.captured,
            changes: watch::Sender::new(0),
            unrouted: AtomicU64::new(0),
            unread: AtomicU64::new(0),
            accept_failures: AtomicU64::new(0),
            stop: stop.clone(),
        });
        let tasks = TaskTracker::new();
        tasks.spawn(accept(listener, Arc::clone(&state), tasks.clone(), config.connections));
        Ok(Self { address, state, tasks, stop: stop.clone(), _stop_on_drop: stop.drop_guard() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of one of its paths.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What arrived so far.
    pub fn ledger(&self) -> &Ledger {
        &self.state.ledger
    }

    /// Requires signatures on a path from now on, see [`Secrets::set`].
    pub fn set_secrets<S: AsRef<str>>(&self, path: &str, secrets: &[S]) -> Result<(), InvalidSecret> {
        self.state.secrets.set(path, secrets)
    }

    /// Makes a path behave so from now on, whatever its name says: an endpoint that breaks, or heals.
    pub fn set_behaviour(&self, path: &str, behaviour: Behaviour) {
        let mut behaviours = self.state.behaviours.write().unwrap_or_else(PoisonError::into_inner);
        behaviours.insert(path.to_owned(), behaviour);
    }

    /// The latest requests, oldest first, as many as [`ReceiverConfig::captured`] allows.
    pub fn captured(&self) -> Vec<Captured> {
        self.state.captured.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// The summary that `GET /_ledger` answers.
    pub fn summary(&self) -> Summary {
        self.state.summary()
    }

    /// Waits until the ledger satisfies a condition, looking after every arrival; `false` if it does not in time.
    pub async fn wait_until(&self, deadline: Duration, mut condition: impl FnMut(&Ledger) -> bool) -> bool {
        let mut changes = self.state.changes.subscribe();
        let met = async {
            while !condition(&self.state.ledger) {
                if changes.changed().await.is_err() {
                    // The sender lives in the state, which this borrows: it cannot be gone.
                    return std::future::pending().await;
                }
            }
        };
        tokio::time::timeout(deadline, met).await.is_ok()
    }

    /// Stops accepting, lets open requests end for a moment, and waits for that.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Returns when the receiver has been told to stop.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }
}

impl State {
    fn summary(&self) -> Summary {
        Summary {
            paths: self.ledger.totals_by_path(),
            unrouted: self.unrouted.load(Relaxed),
            unread: self.unread.load(Relaxed),
            untracked: self.ledger.untracked(),
            accept_failures: self.accept_failures.load(Relaxed),
        }
    }

    fn route(&self, path: &str, query: Option<&str>) -> Option<Route> {
        let set = self.behaviours.read().unwrap_or_else(PoisonError::into_inner).get(path).copied();
        match set {
            Some(behaviour) => Some(Route { behaviour, retry_after: behaviour::retry_after(query) }),
            None => Route::of(path, query),
        }
    }

    fn capture(&self, captured: impl FnOnce() -> Captured) {
        if self.capture == 0 {
            return;
        }
        let mut kept = self.captured.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == self.capture {
            kept.pop_front();
        }
        kept.push_back(captured());
    }
}

async fn accept(listener: TcpListener, state: Arc<State>, tasks: TaskTracker, connections: usize) {
    let permits = Arc::new(Semaphore::new(connections));
    let serve = async {
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let connection = serve_connection(stream, Arc::clone(&state), tasks.clone());
                    tasks.spawn(async move {
                        connection.await;
                        drop(permit);
                    });
                }
                Err(_) => {
                    state.accept_failures.fetch_add(1, Relaxed);
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    let _ = state.stop.run_until_cancelled(serve).await;
}

async fn serve_connection(stream: TcpStream, state: Arc<State>, tasks: TaskTracker) {
    // Without it small answers may wait for an acknowledgement; a failure costs only that.
    let _ = stream.set_nodelay(true);
    let stop = state.stop.clone();
    let service = service_fn(move |request| answer(Arc::clone(&state), request));
    let mut builder = auto::Builder::new(Tracked(tasks));
    builder.http1().timer(TokioTimer::new());
    builder.http2().timer(TokioTimer::new());
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // An error here is a sender that went away, or a reset that was asked for: the ledger has what matters.
        _ = connection.as_mut() => {}
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(DRAIN_DEADLINE, connection).await;
        }
    }
}

/// Runs the streams of HTTP/2 connections as tasks that the receiver waits for.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Response<AnswerBody>, Reset> {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    if path == LEDGER_PATH {
        return Ok(summary_response(&state));
    }
    let Some(route) = state.route(path, head.uri.query()) else {
        state.unrouted.fetch_add(1, Relaxed);
        return Ok(plain(StatusCode::NOT_FOUND, "this path names no behaviour\n"));
    };
    let body = match Limited::new(body, MAX_BODY_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            state.unread.fetch_add(1, Relaxed);
            let too_large = error.is::<LengthLimitError>();
            let status = if too_large { StatusCode::PAYLOAD_TOO_LARGE } else { StatusCode::BAD_REQUEST };
            return Ok(plain(status, "the body did not arrive whole\n"));
        }
    };
    let verdict = state.secrets.verify(path, &head.headers, &body);
    let arrival = Arrival {
        path,
        webhook_id: text(&head.headers, &WEBHOOK_ID).unwrap_or_default(),
        event_id: text(&head.headers, &CE_ID),
        body: &body,
        at: Instant::now(),
        verdict,
    };
    let number = state.ledger.arrive(&arrival, |number| route.behaviour.answer(number).is_success());
    state.capture(|| Captured {
        path: path.to_owned(),
        headers: head.headers.clone(),
        body: body.clone(),
        verdict,
        at: arrival.at,
    });
    state.changes.send_modify(|changes| *changes += 1);
    if let Verdict::Invalid(_) = verdict {
        return Ok(plain(StatusCode::UNAUTHORIZED, "the signature was refused\n"));
    }
    respond(route.behaviour.answer(number), route.retry_after, &state.stop).await
}

pub(crate) async fn respond(
    answer: Answer,
    retry_after: Option<u32>,
    stop: &CancellationToken,
) -> Result<Response<AnswerBody>, Reset> {
    let mut response = match answer {
        Answer::Status(status) if status.is_success() => plain(status, "ok\n"),
        Answer::Status(status) => plain(status, "failing as asked\n"),
        Answer::OkAfter(wait) => {
            // `None`: the receiver stops, so the wait ends early and the connection with it.
            let waited = stop.run_until_cancelled(tokio::time::sleep(wait)).await;
            waited.map(|()| plain(StatusCode::OK, "ok\n")).ok_or(Reset)?
        }
        Answer::Redirect => {
            let mut response = plain(StatusCode::FOUND, "elsewhere\n");
            response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/ok/redirected"));
            response
        }
        Answer::Hang => {
            stop.cancelled().await;
            return Err(Reset);
        }
        Answer::Drip => Response::new(AnswerBody::drip(stop.clone())),
        Answer::Big => Response::new(AnswerBody::big(stop.clone())),
        Answer::Reset => return Err(Reset),
    };
    if let Some(seconds) = retry_after.filter(|_| !response.status().is_success()) {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    Ok(response)
}

fn summary_response(state: &State) -> Response<AnswerBody> {
    // Maps of strings to integers: always serialisable.
    let json = serde_json::to_vec_pretty(&state.summary()).unwrap_or_default();
    let mut response = Response::new(AnswerBody::fixed(json));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(crate) fn plain(status: StatusCode, text: &'static str) -> Response<AnswerBody> {
    // Statuses without a body must not get one.
    let text = if status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED { "" } else { text };
    let mut response = Response::new(AnswerBody::fixed(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response
}

fn text<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}
