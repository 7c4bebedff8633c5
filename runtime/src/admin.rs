//! The admin listener: health and metrics, on a port of its own that is never exposed to producers.

use crate::{disk::Disk, health::Health, tally};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use serde::Deserialize;
use serde_json::json;
use std::{convert::Infallible, io, net::SocketAddr, path::Path, sync::Arc, time::Duration};
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Buckets of every duration, in seconds: from a fast acknowledgement to a long attempt.
const SECONDS_BUCKETS: [f64; 16] =
    [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];
/// How often histograms are folded, so that they stay small when nobody scrapes.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);
/// Longest wait for a request's header on this listener.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Open connections: many times what probes and scrapers need, and few of the process's file descriptors.
pub const MAX_CONNECTIONS: usize = 256;
/// Pause after the system refused a connection, usually for want of file descriptors: trying at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The section `[admin]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminSettings {
    /// `FLOODWAY_ADMIN__LISTEN`: address of the admin listener; default `127.0.0.1:8082`.
    pub listen: SocketAddr,
}

impl Default for AdminSettings {
    fn default() -> Self {
        Self { listen: SocketAddr::from(([127, 0, 0, 1], 8082)) }
    }
}

/// The admin listener could not be set up.
#[derive(Debug, Error)]
pub enum AdminError {
    /// The address is taken or not this machine's.
    #[error("setting admin.listen (FLOODWAY_ADMIN__LISTEN): cannot listen on {address}: {reason}")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// The system's reason.
        reason: io::Error,
    },
    /// Metrics were already started in this process.
    #[error("metrics: {0}")]
    Metrics(#[from] BuildError),
}

/// A bound admin listener.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    health: Health,
    metrics: PrometheusHandle,
}

/// Installs the process's metrics recorder. Call once, before any metric handle is made.
///
/// # Errors
/// [`AdminError::Metrics`] when a recorder is already installed.
pub fn install_metrics() -> Result<PrometheusHandle, AdminError> {
    use metrics_exporter_prometheus::Matcher::Suffix;
    Ok(PrometheusBuilder::new()
        .set_buckets_for_metric(Suffix("_seconds".to_owned()), &SECONDS_BUCKETS)?
        .set_buckets_for_metric(Suffix("_bytes".to_owned()), &tally::BYTES)?
        .set_buckets(&tally::COUNTS)?
        .install_recorder()?)
}

impl Admin {
    /// Binds the listener.
    pub async fn bind(
        settings: &AdminSettings,
        health: Health,
        metrics: PrometheusHandle,
    ) -> Result<Self, AdminError> {
        let address = settings.listen;
        let listener =
            TcpListener::bind(address).await.map_err(|reason| AdminError::Bind { address, reason })?;
        Ok(Self { listener, health, metrics })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `stopped` is cancelled. That is later than the shutdown token, so that health and metrics can
    /// be read while the roles drain.
    pub async fn run(self, stopped: CancellationToken) {
        let (connections, places) = (TaskTracker::new(), Arc::new(Semaphore::new(MAX_CONNECTIONS)));
        let mut upkeep = tokio::time::interval(UPKEEP_EVERY);
        loop {
            tokio::select! {
                () = stopped.cancelled() => break,
                _ = upkeep.tick() => self.metrics.run_upkeep(),
                accepted = self.accept(&places) => match accepted {
                    Ok((stream, place)) => {
                        drop(connections.spawn(self.serve(stream, place, stopped.clone())));
                    }
                    // Out of file descriptors, or a client that left: neither ends the listener.
                    Err(error) => {
                        tracing::warn!(%error, "an admin connection could not be accepted");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        connections.close();
        connections.wait().await;
    }

    /// The next connection, once there is a place for it; until then it waits in the system's queue.
    async fn accept(&self, places: &Arc<Semaphore>) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
        let place = Arc::clone(places).acquire_owned().await.map_err(io::Error::other)?;
        Ok((self.listener.accept().await?.0, place))
    }

    fn serve(
        &self,
        stream: TcpStream,
        place: OwnedSemaphorePermit,
        stopped: CancellationToken,
    ) -> impl Future<Output = ()> + use<> {
        let (health, metrics) = (self.health.clone(), self.metrics.clone());
        let service = service_fn(move |request: Request<Incoming>| {
            let response = answer(&request, &health, &metrics);
            async move { Ok::<_, Infallible>(response) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        async move {
            tokio::select! { _ = connection => {}, () = stopped.cancelled() => {} }
            drop(place);
        }
    }
}

fn answer(request: &Request<Incoming>, health: &Health, metrics: &PrometheusHandle) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "only GET\n".into());
    }
    match request.uri().path() {
        "/health/live" => reply(StatusCode::OK, "text/plain", "live\n".into()),
        "/health/ready" if health.is_ready() => reply(StatusCode::OK, "text/plain", "ready\n".into()),
        "/health/ready" => reply(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "not ready\n".into()),
        "/health/detailed" => {
            let ready = health.is_ready();
            let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            let report = json!({
                "ready": ready,
                "version": env!("CARGO_PKG_VERSION"),
                "components": health.reports(),
                // No answer of the system is no reason to fail the report.
                "disk": Disk::of(Path::new(".")).ok(),
            });
            reply(status, "application/json", format!("{report:#}\n"))
        }
        "/metrics" => {
            let text = metrics.render() + &tally::render();
            reply(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
        }
        _ => reply(
            StatusCode::NOT_FOUND,
            "text/plain",
            "try /health/live, /health/ready, /health/detailed or /metrics\n".into(),
        ),
    }
}

fn reply(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        task::JoinSet,
        time::timeout,
    };

    const PATIENCE: Duration = Duration::from_secs(40);

    /// A connection that has asked whether the process lives, and is kept open.
    async fn asking(address: SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /health/live HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        stream
    }

    async fn answered(stream: &mut TcpStream) -> bool {
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.is_ok() && &first == b"HTTP/1.1 200"
    }

    #[tokio::test]
    async fn connections_over_the_bound_wait_for_a_place() {
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let settings = AdminSettings { listen: SocketAddr::from(([127, 0, 0, 1], 0)) };
        let admin = Admin::bind(&settings, Health::default(), metrics).await.unwrap();
        let (address, stopped) = (admin.address().unwrap(), CancellationToken::new());
        let mut running = JoinSet::new();
        running.spawn(admin.run(stopped.clone()));

        let mut kept = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            let mut stream = asking(address).await;
            assert!(timeout(PATIENCE, answered(&mut stream)).await.unwrap());
            kept.push(stream);
        }
        let mut waiting = asking(address).await;
        assert!(timeout(Duration::from_millis(200), answered(&mut waiting)).await.is_err());
        drop(kept);
        assert!(timeout(PATIENCE, answered(&mut waiting)).await.unwrap());
        stopped.cancel();
        timeout(PATIENCE, running.join_next()).await.unwrap();
    }
}
