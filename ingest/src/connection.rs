//! One connection: HTTP/1.1 or HTTP/2, told apart by its first bytes.

use crate::accept::Server;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use std::{
    convert::Infallible,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::TcpStream,
    time::{Instant, interval_at},
};

/// Buffer of a connection, in bytes: bounds the header of a request, and what is read at once of its body.
const BUFFER_BYTES: usize = 64 * 1024;
/// Largest header list of an HTTP/2 request, in bytes.
const HTTP2_HEADER_BYTES: u32 = 16 * 1024;
/// Requests in flight on one HTTP/2 connection.
const HTTP2_STREAMS: u32 = 200;
/// HTTP/2 pings find peers that are gone without a word.
const HTTP2_PING: Duration = Duration::from_secs(20);

/// The protocols' settings; one builder per worker.
pub(crate) fn builder(header_timeout: Duration) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(header_timeout).max_buf_size(BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HTTP2_PING)
        .max_header_list_size(HTTP2_HEADER_BYTES)
        .max_concurrent_streams(HTTP2_STREAMS);
    builder
}

/// Serves a connection until its client leaves, it is idle for too long, or the server ends.
pub(crate) async fn serve(stream: TcpStream, slot: ConnectionSlot, builder: auto::Builder<TokioExecutor>) {
    let server = &slot.0;
    let activity = Activity::default();
    let service = service_fn(|request: Request<Incoming>| {
        let (server, activity) = (Arc::clone(server), activity.clone());
        async move {
            let _busy = activity.begin();
            Ok::<Response<Full<bytes::Bytes>>, Infallible>(server.handle(request).await)
        }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut idle_check =
        interval_at(Instant::now() + server.settings.header_timeout, server.settings.header_timeout);
    let mut seen = 0;
    let mut closing = false;
    loop {
        tokio::select! {
            // Whatever ends a connection, a client's reset or a malformed request, concerns its client alone.
            _ = connection.as_mut() => return,
            () = server.shutdown.cancelled(), if !closing => {
                closing = true;
                connection.as_mut().graceful_shutdown();
            }
            // HTTP/1.1 has its own header timeout. This finds connections that never say what they speak, HTTP/2 ones
            // without requests, and clients that do not take their answers.
            _ = idle_check.tick() => match activity.idle_since(seen) {
                Ok(()) if closing => return,
                Ok(()) => {
                    closing = true;
                    connection.as_mut().graceful_shutdown();
                }
                Err(now) => seen = now,
            },
        }
    }
}

/// A place among the open connections, given back when dropped.
#[derive(Debug)]
pub(crate) struct ConnectionSlot(Arc<Server>);

impl ConnectionSlot {
    /// Takes a place, if one is free.
    pub(crate) fn take(server: &Arc<Server>) -> Option<Self> {
        let slot = Self(Arc::clone(server));
        let open = server.connections.fetch_add(1, Ordering::Relaxed);
        server.metrics.connections.increment(1.0);
        // Dropping the slot gives back what was just taken.
        (open < server.settings.max_connections).then_some(slot)
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
        self.0.metrics.connections.decrement(1.0);
    }
}

/// Requests begun and requests running on a connection. Tells idleness without reading a clock per request.
#[derive(Debug, Clone, Default)]
struct Activity(Arc<(AtomicU64, AtomicUsize)>);

struct Busy(Activity);

impl Activity {
    fn begin(&self) -> Busy {
        self.0.0.fetch_add(1, Ordering::Relaxed);
        self.0.1.fetch_add(1, Ordering::Relaxed);
        Busy(self.clone())
    }

    /// Whether nothing ran since the look that saw `seen` requests; otherwise how many there are now.
    fn idle_since(&self, seen: u64) -> Result<(), u64> {
        let (begun, running) = (self.0.0.load(Ordering::Relaxed), self.0.1.load(Ordering::Relaxed));
        if begun == seen && running == 0 { Ok(()) } else { Err(begun) }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.1.fetch_sub(1, Ordering::Relaxed);
    }
}
