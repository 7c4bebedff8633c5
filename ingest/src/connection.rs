//! One connection: HTTP/1.1 or HTTP/2, told apart by its first bytes.

use crate::{
    accept::Server,
    aside::{self, Bell, Either},
};
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use std::{
    convert::Infallible,
    net::IpAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    sync::Notify,
    time::{Instant, interval_at, timeout},
};

/// Buffer of a connection, in bytes: bounds the header of a request, and what is read at once of its body.
const BUFFER_BYTES: usize = 64 * 1024;
/// Largest header list of an HTTP/2 request, in bytes.
const HTTP2_HEADER_BYTES: u32 = 16 * 1024;
/// Requests in flight on one HTTP/2 connection.
const HTTP2_STREAMS: u32 = 200;
/// For how long an idle connection is still listened to when the server ends. Its client may have sent a request that
/// has not been read yet, and closing it then would fail that request.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);
/// Streams that a client opened and took back before they were looked at; more of them end the connection. What a rapid
/// reset costs the server is bounded by it.
const HTTP2_PENDING_RESETS: usize = 20;
/// Streams that the server itself had to reset for a client's errors; more of them end the connection.
const HTTP2_ERROR_RESETS: usize = 256;
/// Looks at a connection in a row, half the patience apart, that find it idle before it counts as such.
const IDLE_LOOKS: u32 = 2;
/// For how long a connection that is to end may still send an answer.
const CLOSE_GRACE: Duration = Duration::from_secs(5);
/// HTTP/2 pings find peers that are gone without a word.
const HTTP2_PING: Duration = Duration::from_secs(20);

/// The protocols' settings; one builder per worker.
pub(crate) fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // No header timeout of its own, which would set a timer for each request: see `unheard`. An answer is one small write.
    builder.http1().header_read_timeout(None).writev(false).max_buf_size(BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HTTP2_PING)
        .max_header_list_size(HTTP2_HEADER_BYTES)
        .max_concurrent_streams(HTTP2_STREAMS)
        .max_pending_accept_reset_streams(HTTP2_PENDING_RESETS)
        .max_local_error_reset_streams(HTTP2_ERROR_RESETS);
    builder
}

/// Serves a connection, over TLS if the listener speaks it.
pub(crate) async fn open(stream: TcpStream, slot: ConnectionSlot, builder: auto::Builder<TokioExecutor>) {
    match &slot.server.tls {
        None => serve(stream, &slot.server, builder).await,
        // Boxed, so that plain connections do not carry the room for TLS.
        Some(tls) => {
            Box::pin(async {
                if let Some(stream) = tls.shake_hands(stream).await {
                    serve(stream, &slot.server, builder).await;
                }
            })
            .await;
        }
    }
}

/// Serves a connection until its client leaves, it is idle for too long, or the server ends.
async fn serve<S>(stream: S, server: &Arc<Server>, builder: auto::Builder<TokioExecutor>)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let activity = Activity::default();
    let service = service_fn(|request: Request<Incoming>| {
        let (server, activity) = (Arc::clone(server), activity.clone());
        async move {
            let _busy = activity.begin();
            Ok::<Response<Full<bytes::Bytes>>, Infallible>(server.handle(request).await)
        }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut watch = pin!(watch(server, activity.clone()));
    let bell = Bell::new();
    // Whatever ends a connection, a client's reset or a malformed request, concerns its client alone.
    if let Either::Main(_) = aside::either(connection.as_mut(), watch.as_mut(), &bell).await {
        return;
    }
    connection.as_mut().graceful_shutdown();
    // What runs is finished and answered. Half a header, or a client that does not take its answer, is not waited for.
    let mut ended = pin!(unheard(&activity, CLOSE_GRACE));
    let bell = Bell::new();
    aside::either(connection, ended.as_mut(), &bell).await;
}

/// Returns when the connection is to take no further requests: the server ends, or nothing was asked on it for too long.
/// That includes clients that never finish a header, never say what they speak, or do not take their answers.
async fn watch(server: &Server, activity: Activity) {
    tokio::select! {
        () = shutdown_begins(server, activity.clone()) => {}
        () = unheard(&activity, server.settings.header_timeout) => {}
    }
}

/// Returns once nothing has been asked for `patience`, or up to half as long again.
async fn unheard(activity: &Activity, patience: Duration) {
    let pause = patience / 2;
    let mut looks = interval_at(Instant::now() + pause, pause);
    let (mut seen, mut idle_looks) = (0, 0);
    while idle_looks < IDLE_LOOKS {
        looks.tick().await;
        match activity.idle_since(seen) {
            Ok(()) => idle_looks += 1,
            Err(now) => (seen, idle_looks) = (now, 0),
        }
    }
}

/// Returns when a connection is to end because the server does: at once when it is busy, which lets its requests finish;
/// with its next request, or after a moment, when it is idle.
async fn shutdown_begins(server: &Server, activity: Activity) {
    server.shutdown.cancelled().await;
    if !activity.is_busy() {
        let _ = timeout(SHUTDOWN_GRACE, activity.next_request()).await;
    }
}

/// A place among the open connections, given back when dropped.
#[derive(Debug)]
pub(crate) struct ConnectionSlot {
    server: Arc<Server>,
    address: IpAddr,
}

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoPlace {
    /// All are taken.
    Full,
    /// The client has its share.
    AddressFull,
}

impl ConnectionSlot {
    /// Takes a place for a client, if it may have one.
    pub(crate) fn take(server: &Arc<Server>, address: IpAddr) -> Result<Self, NoPlace> {
        if !server.addresses.enter(address) {
            return Err(NoPlace::AddressFull);
        }
        let slot = Self { server: Arc::clone(server), address };
        let open = server.connections.fetch_add(1, Ordering::Relaxed);
        server.metrics.connections.increment(1.0);
        // Dropping the slot gives back what was just taken.
        if open < server.settings.max_connections { Ok(slot) } else { Err(NoPlace::Full) }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.server.addresses.leave(self.address);
        self.server.connections.fetch_sub(1, Ordering::Relaxed);
        self.server.metrics.connections.decrement(1.0);
    }
}

/// Requests begun and requests running on a connection. Tells idleness without reading a clock per request.
#[derive(Debug, Clone, Default)]
struct Activity(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    begun: AtomicU64,
    ended: AtomicU64,
    running: AtomicUsize,
    /// Told of every request that begins.
    begins: Notify,
}

struct Busy(Activity);

impl Activity {
    fn begin(&self) -> Busy {
        self.0.begun.fetch_add(1, Ordering::Relaxed);
        self.0.running.fetch_add(1, Ordering::Relaxed);
        self.0.begins.notify_one();
        Busy(self.clone())
    }

    fn is_busy(&self) -> bool {
        self.0.running.load(Ordering::Relaxed) > 0
    }

    /// Waits for a request that has not begun yet.
    async fn next_request(&self) {
        let seen = self.0.begun.load(Ordering::Relaxed);
        // The first notice may be left over from an earlier request.
        while self.0.begun.load(Ordering::Relaxed) == seen {
            self.0.begins.notified().await;
        }
    }

    /// Whether no request ran since the look that saw `seen` of them begin and end; otherwise how many did by now.
    fn idle_since(&self, seen: u64) -> Result<(), u64> {
        let moves = self.0.begun.load(Ordering::Relaxed) + self.0.ended.load(Ordering::Relaxed);
        if moves == seen && !self.is_busy() { Ok(()) } else { Err(moves) }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.ended.fetch_add(1, Ordering::Relaxed);
        self.0.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}
