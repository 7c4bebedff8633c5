//! The floor of deliveries: a bare HTTP client that posts to a sink over connections that stay open, each request signed
//! as Floodway's are. It reads no Kafka, chooses no endpoint, and keeps no account of anything.

use crate::bench::{
    BenchError,
    process::{Recording, Sampler, Subject, Usage, Watched},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::{Request, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::net::TcpStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

/// Pause between two looks whether the time is over.
const PAUSE: Duration = Duration::from_millis(10);
/// Bytes of a signing secret.
const SECRET_BYTES: usize = 24;

/// What the floor does.
#[derive(Debug, Clone)]
pub struct ClientFloor {
    /// Where to: `http://host:port/path`.
    pub url: Url,
    /// Connections, each with one request at a time.
    pub connections: usize,
    /// Threads, each with its share of the connections.
    pub threads: usize,
    /// Bytes of a body.
    pub body_bytes: usize,
    /// Time at the start that no figure contains.
    pub warmup: Duration,
    /// Time measured.
    pub time: Duration,
}

/// What came of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ClientFigures {
    /// Seconds measured.
    pub seconds: f64,
    /// Requests answered 2xx in them.
    pub delivered: u64,
    /// Requests that failed, in the whole run.
    pub failed: u64,
    /// What this process used.
    pub usage: Usage,
}

impl ClientFigures {
    /// CPU microseconds of one request.
    pub fn micros_per_delivery(&self) -> Option<f64> {
        (self.delivered > 0).then(|| self.usage.cpu_micros() / self.delivered as f64)
    }
}

#[derive(Default)]
struct Shared {
    delivered: AtomicU64,
    failed: AtomicU64,
    over: AtomicBool,
}

impl ClientFloor {
    /// Runs; blocks.
    ///
    /// # Errors
    /// When the URL names no server, or the system gives no thread.
    pub fn run(&self, stop: &CancellationToken) -> Result<ClientFigures, BenchError> {
        let unusable = || BenchError::Setting(format!("{} names no server", self.url));
        let addresses = self.url.socket_addrs(|| None).map_err(|_| unusable())?;
        let address = addresses.first().copied().ok_or_else(unusable)?;
        let shared = Arc::new(Shared::default());
        let secret: [u8; SECRET_BYTES] = rand::random();
        let mut threads = Vec::new();
        let this = Watched { subject: Subject::Server, pid: std::process::id() };
        let sampler = Sampler::start(vec![this], None)?;
        for number in 0..self.threads.max(1) {
            let share = |number: usize| self.connections * number / self.threads.max(1);
            let poster = Poster {
                address,
                host: self.url.authority().to_owned(),
                path: self.url[url::Position::BeforePath..].to_owned(),
                secret,
                body: body(self.body_bytes),
                shared: Arc::clone(&shared),
            };
            let connections = share(number + 1) - share(number);
            let name = format!("client-{number}");
            threads.push(thread::Builder::new().name(name).spawn(move || post(&poster, connections))?);
        }
        let from = wait(Instant::now() + self.warmup, stop);
        let before = shared.delivered.load(Relaxed);
        let until = wait(from + self.time, stop);
        let delivered = shared.delivered.load(Relaxed) - before;
        let recording = sampler.stop();
        shared.over.store(true, Relaxed);
        for thread in threads {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread of the floor failed")))?;
        }
        Ok(figures(&recording, from, until, delivered, shared.failed.load(Relaxed)))
    }
}

fn figures(
    recording: &Recording,
    from: Instant,
    until: Instant,
    delivered: u64,
    failed: u64,
) -> ClientFigures {
    ClientFigures {
        seconds: (until - from).as_secs_f64(),
        delivered,
        failed,
        usage: recording.usage(Subject::Server, from, until).unwrap_or_default(),
    }
}

fn wait(until: Instant, stop: &CancellationToken) -> Instant {
    while Instant::now() < until && !stop.is_cancelled() {
        thread::sleep(PAUSE.min(until.saturating_duration_since(Instant::now())));
    }
    Instant::now()
}

/// JSON of so many bytes.
fn body(bytes: usize) -> Bytes {
    let frame = r#"{"note":""}"#.len();
    format!(r#"{{"note":"{}"}}"#, "x".repeat(bytes.saturating_sub(frame))).into()
}

/// What every connection of a thread needs.
#[derive(Clone)]
struct Poster {
    address: std::net::SocketAddr,
    host: String,
    path: String,
    secret: [u8; SECRET_BYTES],
    body: Bytes,
    shared: Arc<Shared>,
}

fn post(poster: &Poster, connections: usize) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let tasks = TaskTracker::new();
        for number in 0..connections {
            let (poster, driver) = (poster.clone(), tasks.clone());
            tasks.spawn(async move {
                if poster.connection(number, &driver).await.is_err() {
                    poster.shared.failed.fetch_add(1, Relaxed);
                }
            });
        }
        tasks.close();
        tasks.wait().await;
    });
    Ok(())
}

impl Poster {
    async fn connection(
        &self,
        number: usize,
        tasks: &TaskTracker,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Its end is seen by the request that fails.
        tasks.spawn(async move { drop(connection.await) });
        let mac = Hmac::<Sha256>::new_from_slice(&self.secret)?;
        let mut turn = 0u64;
        while !self.shared.over.load(Relaxed) {
            turn += 1;
            self.request(&mut sender, &mac, &format!("msg_{number:04}-{turn:020}")).await?;
            self.shared.delivered.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    async fn request(
        &self,
        sender: &mut SendRequest<Full<Bytes>>,
        mac: &Hmac<Sha256>,
        id: &str,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        // Any time will do: nobody looks at it here.
        let timestamp = "1763000000";
        let mut mac = mac.clone();
        for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", &self.body] {
            mac.update(part);
        }
        let signature = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
        let request = Request::post(&self.path)
            .header(header::HOST, &self.host)
            .header(header::USER_AGENT, "Floodway-floor")
            .header(header::CONTENT_TYPE, "application/json")
            .header("ce-specversion", "1.0")
            .header("ce-id", id)
            .header("ce-source", "01938f2e-0000-7000-8000-000000000004")
            .header("ce-type", "load.event")
            .header("ce-tenantid", "01938f2e-0000-7000-8000-000000000001")
            .header("ce-receivedat", "2026-11-21T00:00:00.000Z")
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature)
            .body(Full::new(self.body.clone()))?;
        let response = sender.send_request(request).await?;
        let status = response.status();
        response.into_body().collect().await?;
        // A connection whose last answer was read is ready at once.
        sender.ready().await?;
        if status.is_success() { Ok(()) } else { Err(format!("answered {status}").into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_json_of_the_size_asked_for() {
        for bytes in [11, 100, 500] {
            let body = body(bytes);
            assert_eq!(body.len(), bytes);
            assert!(serde_json::from_slice::<serde_json::Value>(&body).is_ok());
        }
    }
}
