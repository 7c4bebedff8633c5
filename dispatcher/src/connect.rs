//! Connecting to endpoints: resolve, check, connect to exactly a checked address, then TLS.

use crate::{config::Settings, resolve::Resolver};
use bytes::Bytes;
use floodway_schemas::{address, outcome::ErrorClass};
use http::Uri;
use http_body_util::Full;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use ipnet::IpNet;
use std::{
    error::Error,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::{Duration, Instant},
};
use tokio::net::TcpStream;

/// The client of all endpoints; it pools connections per host.
pub(crate) type EndpointClient = Client<TimedConnector, Full<Bytes>>;

/// Most bytes of a response's head.
const MAX_HEAD_BYTES: usize = 64 * 1024;
/// Most headers of a response.
const MAX_HEADERS: usize = 128;

/// How often an HTTP/2 connection with requests under way is probed, and how long the answer may take: a connection that died
/// silently would otherwise swallow every request to its host until the operating system gives it up.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Connecting, all of it, may take this many times what one address may: two addresses and the TLS handshake. The client goes on
/// connecting in the background when the attempt that asked for it has ended, so the attempt's timeout does not end it.
const WHOLE_CONNECT: u32 = 3;

/// Builds the client. It never follows redirects, and uses no proxy from the environment.
pub(crate) fn client(settings: &Settings) -> Result<EndpointClient, rustls::Error> {
    let connector = GuardedConnector {
        opened: settings.allowed_networks.clone().into(),
        connect_timeout: settings.connect_timeout,
        resolver: Resolver::default(),
    };
    let https = https(connector)?;
    let client = Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(settings.pool_idle_timeout)
        .pool_max_idle_per_host(settings.pool_max_idle_per_host)
        .http1_max_buf_size(MAX_HEAD_BYTES)
        .http1_max_headers(MAX_HEADERS)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .http2_keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .build(TimedConnector { https, timeout: settings.connect_timeout * WHOLE_CONNECT });
    Ok(client)
}

fn https(connector: GuardedConnector) -> Result<HttpsConnector<GuardedConnector>, rustls::Error> {
    let builder = HttpsConnectorBuilder::new()
        .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())?
        .https_or_http()
        .enable_all_versions();
    Ok(builder.wrap_connector(connector))
}

tokio::task_local! {
    /// Where the connector below TLS notes what it did: the layer between hands nothing through.
    static NOTES: Arc<Notes>;
}

/// What is known of a connection, as it comes to be known.
#[derive(Debug, Default)]
struct Notes {
    dns: OnceLock<Duration>,
    connect: OnceLock<Duration>,
    address: OnceLock<SocketAddr>,
}

/// How a connection came to be, or how far it came.
#[derive(Debug, Clone)]
pub(crate) struct Dial {
    /// When connecting began.
    pub(crate) began: Instant,
    /// Resolving the name.
    pub(crate) dns: Option<Duration>,
    /// Connecting.
    pub(crate) connect: Option<Duration>,
    /// The TLS handshake.
    pub(crate) tls: Option<Duration>,
    /// The address that was connected to, or tried last.
    pub(crate) address: Option<SocketAddr>,
}

impl Dial {
    fn new(began: Instant, notes: &Notes) -> Self {
        let (dns, connect, address) = (notes.dns.get(), notes.connect.get(), notes.address.get());
        Self { began, dns: dns.copied(), connect: connect.copied(), tls: None, address: address.copied() }
    }
}

/// Why there is no connection, and how far it came.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub(crate) struct DialError {
    /// How far it came.
    pub(crate) dial: Dial,
    source: Box<dyn Error + Send + Sync>,
}

/// A connection that knows how it came to be.
#[derive(Debug)]
pub(crate) struct Dialed {
    stream: MaybeHttpsStream<TokioIo<TcpStream>>,
    dial: Dial,
}

impl Connection for Dialed {
    fn connected(&self) -> Connected {
        self.stream.connected().extra(self.dial.clone())
    }
}

impl Read for Dialed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for Dialed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }
}

/// Bounds connecting as a whole, the TLS handshake included.
#[derive(Debug, Clone)]
pub(crate) struct TimedConnector {
    https: HttpsConnector<GuardedConnector>,
    timeout: Duration,
}

impl tower::Service<Uri> for TimedConnector {
    type Response = Dialed;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let failed = |source| DialError { dial: Dial::new(Instant::now(), &Notes::default()), source };
        self.https.poll_ready(context).map_err(failed)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let timeout = self.timeout;
        let (began, notes) = (Instant::now(), Arc::<Notes>::default());
        let connecting = NOTES.scope(Arc::clone(&notes), tokio::time::timeout(timeout, self.https.call(uri)));
        Box::pin(async move {
            let connected = connecting.await.unwrap_or_else(|_| Err(ConnectError::TimedOut(timeout).into()));
            let mut dial = Dial::new(began, &notes);
            match connected {
                Ok(stream) => {
                    if matches!(stream, MaybeHttpsStream::Https(_)) {
                        let before = dial.dns.unwrap_or_default() + dial.connect.unwrap_or_default();
                        dial.tls = Some(began.elapsed().saturating_sub(before));
                    }
                    Ok(Dialed { stream, dial })
                }
                Err(source) => Err(DialError { dial, source }),
            }
        })
    }
}

/// Opens TCP connections to addresses that deliveries may reach, and to no others.
#[derive(Debug, Clone)]
pub(crate) struct GuardedConnector {
    opened: Arc<[IpNet]>,
    connect_timeout: Duration,
    resolver: Resolver,
}

/// Why no connection was made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// The host's name did not resolve.
    #[error("the host name does not resolve")]
    Dns(#[source] io::Error),
    /// The name resolves to addresses that deliveries must not reach, or is one.
    #[error("the address {0} is not public")]
    Forbidden(IpAddr),
    /// The host refused the connection.
    #[error("connection refused")]
    Refused,
    /// The host did not answer in time.
    #[error("no connection within {0:?}")]
    TimedOut(Duration),
    /// Another failure.
    #[error("no connection: {0}")]
    Failed(#[source] io::Error),
    /// The URL names no host.
    #[error("the URL names no host")]
    NoHost,
}

impl ConnectError {
    /// The class in outcomes.
    pub(crate) fn class(&self) -> ErrorClass {
        match self {
            Self::Dns(_) | Self::NoHost => ErrorClass::Dns,
            Self::Forbidden(_) => ErrorClass::ForbiddenAddress,
            Self::Refused => ErrorClass::Refused,
            Self::TimedOut(_) | Self::Failed(_) => ErrorClass::Connect,
        }
    }
}

/// Notes something, if anybody asked for notes.
fn note(write: impl FnOnce(&Notes) -> bool) {
    let _ = NOTES.try_with(|notes| write(notes));
}

impl GuardedConnector {
    async fn connect(self, uri: Uri) -> Result<TokioIo<TcpStream>, ConnectError> {
        let host = uri.host().ok_or(ConnectError::NoHost)?;
        let default_port = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let port = uri.port_u16().unwrap_or(default_port);
        let mut error = ConnectError::Dns(io::ErrorKind::NotFound.into());
        let began = Instant::now();
        let addresses = self.resolver.resolve(host, port).await.map_err(ConnectError::Dns)?;
        let resolved = Instant::now();
        note(|notes| notes.dns.set(resolved - began).is_ok());
        let mut last_tried = None;
        for &address in addresses.iter() {
            if address::refusal(address.ip(), &self.opened).is_some() {
                // An error of an address that was tried says more than this one.
                if matches!(error, ConnectError::Dns(_)) {
                    error = ConnectError::Forbidden(address.ip());
                }
                continue;
            }
            match self.open(address).await {
                Ok(stream) => {
                    note(|notes| {
                        notes.connect.set(resolved.elapsed()).is_ok() && notes.address.set(address).is_ok()
                    });
                    return Ok(TokioIo::new(stream));
                }
                Err(failed) => {
                    error = failed;
                    last_tried = Some(address);
                }
            }
        }
        if let Some(address) = last_tried {
            note(|notes| notes.connect.set(resolved.elapsed()).is_ok() && notes.address.set(address).is_ok());
        }
        Err(error)
    }

    async fn open(&self, address: SocketAddr) -> Result<TcpStream, ConnectError> {
        let connecting = tokio::time::timeout(self.connect_timeout, TcpStream::connect(address));
        let stream =
            connecting.await.map_err(|_| ConnectError::TimedOut(self.connect_timeout))?.map_err(|error| {
                match error.kind() {
                    io::ErrorKind::ConnectionRefused => ConnectError::Refused,
                    _ => ConnectError::Failed(error),
                }
            })?;
        // Requests are written whole: waiting for more to send only adds latency.
        stream.set_nodelay(true).map_err(ConnectError::Failed)?;
        Ok(stream)
    }
}

impl tower::Service<Uri> for GuardedConnector {
    type Response = TokioIo<TcpStream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connector(opened: &[&str]) -> GuardedConnector {
        GuardedConnector {
            opened: opened.iter().map(|network| network.parse().unwrap()).collect(),
            connect_timeout: Duration::from_secs(5),
            resolver: Resolver::default(),
        }
    }

    #[tokio::test]
    async fn a_tls_handshake_that_is_not_answered_ends() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("https://{}/", silent.local_addr().unwrap()).parse().unwrap();
        let https = https(connector(&["127.0.0.0/8"])).unwrap();
        let mut timed = TimedConnector { https, timeout: Duration::from_millis(50) };
        let connecting = tokio::time::timeout(Duration::from_secs(30), tower::Service::call(&mut timed, uri));
        let error = connecting.await.unwrap().unwrap_err();
        assert!(error.dial.address.is_some() && error.dial.connect.is_some() && error.dial.tls.is_none());
        let class = error.source.downcast_ref::<ConnectError>().map(ConnectError::class);
        assert_eq!(class, Some(ErrorClass::Connect), "{error}");
    }

    async fn class(uri: &'static str, opened: &[&str]) -> ErrorClass {
        connector(opened).connect(Uri::from_static(uri)).await.unwrap_err().class()
    }

    #[tokio::test]
    async fn addresses_are_checked_whatever_form_the_host_has() {
        for uri in
            ["http://127.0.0.1:1/", "http://[::1]:1/", "http://localhost:1/", "http://[::ffff:127.0.0.1]:1/"]
        {
            assert_eq!(class(uri, &[]).await, ErrorClass::ForbiddenAddress, "{uri}");
        }
    }

    #[tokio::test]
    async fn failures_to_connect_are_told_apart() {
        assert_eq!(class("http://127.0.0.1:1/", &["127.0.0.0/8"]).await, ErrorClass::Refused);
        assert_eq!(class("http://no-such-host.invalid/", &[]).await, ErrorClass::Dns);
    }
}
