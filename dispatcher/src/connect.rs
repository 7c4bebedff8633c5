//! Connecting to endpoints: resolve, check, connect to exactly a checked address, then TLS.
//!
//! Nothing follows redirects, and no proxy of the environment is used.

use crate::{
    config::Settings,
    connection::{Connection, Stream},
    error::Error,
    resolve::Resolver,
    session::Opened,
    target::Origin,
};
use floodway_schemas::{address, ids::TenantId, outcome::ErrorClass};
use ipnet::IpNet;
use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Connecting, all of it, may take this many times what one address may: two addresses and the TLS handshake.
const WHOLE_CONNECT: u32 = 3;
/// Servers whose TLS sessions are remembered, so that another connection costs neither a signature check nor a key's: of about 10 KiB
/// each.
const RESUMED_SERVERS: usize = 1024;
/// What the library keeps room for per server.
const TICKETS_PER_SERVER: usize = 8;
/// The names of the protocols.
const HTTP_2: &[u8] = b"h2";
const HTTP_1_1: &[u8] = b"http/1.1";

/// Opens connections to addresses that deliveries may reach, and to no others. Cheap to clone; clones share look-ups.
#[derive(Clone)]
pub(crate) struct Connector {
    opened: Arc<[IpNet]>,
    connect_timeout: Duration,
    resolver: Resolver,
    offers_http2: bool,
    tls: TlsConnector,
    /// The same without HTTP/2.
    http1_tls: TlsConnector,
}

/// What an endpoint may choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Offer {
    /// What the settings allow.
    All,
    /// HTTP/1.1.
    Http1,
}

/// A connection, by the protocol that the endpoint has chosen.
pub(crate) enum Established {
    /// For one request at a time.
    Http1(Connection),
    /// For many of them.
    Http2(Opened),
}

/// How a connection came to be, or how far it came. Known also of an attempt that was cut short.
#[derive(Debug, Default)]
pub(crate) struct Dial {
    /// Whether the connection was there before.
    pub(crate) reused: bool,
    /// Resolving the name.
    pub(crate) dns: Option<Duration>,
    /// Connecting, all addresses that were tried included.
    pub(crate) connect: Option<Duration>,
    /// The TLS handshake.
    pub(crate) tls: Option<Duration>,
    /// The address that was connected to, or tried last.
    pub(crate) address: Option<SocketAddr>,
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
    /// The TLS handshake failed.
    #[error("{0}")]
    Tls(#[source] io::Error),
    /// Another failure.
    #[error("no connection: {0}")]
    Failed(#[source] io::Error),
}

impl ConnectError {
    /// The class in outcomes.
    pub(crate) fn class(&self) -> ErrorClass {
        match self {
            Self::Dns(_) => ErrorClass::Dns,
            Self::Forbidden(_) => ErrorClass::ForbiddenAddress,
            Self::Refused => ErrorClass::Refused,
            Self::Tls(error) => match io_class(error) {
                // Between the TCP connection and the first request there is only the handshake.
                Some(ErrorClass::Tls) | None => ErrorClass::Tls,
                Some(class) => class,
            },
            Self::TimedOut(_) | Self::Failed(_) => ErrorClass::Connect,
        }
    }
}

/// The class of a failure to read or write, if it tells one.
pub(crate) fn io_class(error: &io::Error) -> Option<ErrorClass> {
    if let Some(inner) = error.get_ref() {
        if inner.is::<rustls::Error>() {
            return Some(ErrorClass::Tls);
        }
        if let Some(inner) = inner.downcast_ref::<io::Error>() {
            return io_class(inner);
        }
    }
    match error.kind() {
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => Some(ErrorClass::Reset),
        io::ErrorKind::TimedOut => Some(ErrorClass::Timeout),
        // All that is left of an error of TLS after it went through the library for HTTP/2; sockets have no such error.
        io::ErrorKind::InvalidData => Some(ErrorClass::Tls),
        _ => None,
    }
}

impl Connector {
    /// By the settings: which networks are open, and whom to trust.
    ///
    /// # Errors
    /// When the file of further authorities cannot be used.
    pub(crate) fn new(settings: &Settings) -> Result<Self, Error> {
        let mut roots = RootCertStore::from_iter(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        if let Some(file) = &settings.ca_file {
            let unusable = |reason: String| {
                Error::Settings(format!("dispatcher.ca_file (FLOODWAY_DISPATCHER__CA_FILE): {reason}"))
            };
            for certificate in certificates(file).map_err(unusable)? {
                roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
            }
        }
        let mut tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let protocols = if settings.http2 { &[HTTP_2, HTTP_1_1][..] } else { &[HTTP_1_1] };
        tls.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        tls.resumption = Resumption::in_memory_sessions(RESUMED_SERVERS * TICKETS_PER_SERVER);
        let mut http1_tls = tls.clone();
        http1_tls.alpn_protocols = vec![HTTP_1_1.to_vec()];
        Ok(Self {
            opened: settings.allowed_networks.clone().into(),
            connect_timeout: settings.connect_timeout,
            resolver: Resolver::default(),
            offers_http2: settings.http2,
            tls: TlsConnector::from(Arc::new(tls)),
            http1_tls: TlsConnector::from(Arc::new(http1_tls)),
        })
    }

    /// Whether endpoints may choose HTTP/2.
    pub(crate) fn offers_http2(&self) -> bool {
        self.offers_http2
    }

    /// Connects, TLS handshake included, within a bound of its own.
    pub(crate) async fn connect(
        &self,
        origin: &Origin,
        tenant: TenantId,
        offer: Offer,
        dial: &mut Dial,
    ) -> Result<Established, ConnectError> {
        let timeout = self.connect_timeout * WHOLE_CONNECT;
        let establishing = self.establish(origin, tenant, offer, dial);
        tokio::time::timeout(timeout, establishing).await.map_err(|_| ConnectError::TimedOut(timeout))?
    }

    async fn establish(
        &self,
        origin: &Origin,
        tenant: TenantId,
        offer: Offer,
        dial: &mut Dial,
    ) -> Result<Established, ConnectError> {
        let began = Instant::now();
        let addresses =
            self.resolver.resolve(tenant, &origin.host, origin.port).await.map_err(ConnectError::Dns)?;
        let resolved = Instant::now();
        dial.dns = Some(resolved - began);
        let tried = self.try_each(&addresses, dial).await;
        let connected = Instant::now();
        if dial.address.is_some() {
            dial.connect = Some(connected - resolved);
        }
        let (stream, address) = tried?;
        if !origin.https {
            return Ok(Established::Http1(Connection::new(Stream::Plain(stream), address)));
        }
        let unusable = |error| ConnectError::Tls(io::Error::new(io::ErrorKind::InvalidInput, error));
        let name = ServerName::try_from(origin.host.to_string()).map_err(unusable)?;
        let tls = match offer {
            Offer::All => &self.tls,
            Offer::Http1 => &self.http1_tls,
        };
        let stream = tls.connect(name, stream).await.map_err(ConnectError::Tls)?;
        dial.tls = Some(connected.elapsed());
        let stream = Box::new(stream);
        if stream.get_ref().1.alpn_protocol() == Some(HTTP_2) {
            return Opened::new(stream, address).await.map(Established::Http2).map_err(ConnectError::Failed);
        }
        Ok(Established::Http1(Connection::new(Stream::Tls(stream), address)))
    }

    /// Connects to the first address that deliveries may reach and that answers.
    async fn try_each(
        &self,
        addresses: &[SocketAddr],
        dial: &mut Dial,
    ) -> Result<(TcpStream, SocketAddr), ConnectError> {
        let mut error = ConnectError::Dns(io::ErrorKind::NotFound.into());
        for &address in addresses {
            if address::refusal(address.ip(), &self.opened).is_some() {
                // An error of an address that was tried says more than this one.
                if matches!(error, ConnectError::Dns(_)) {
                    error = ConnectError::Forbidden(address.ip());
                }
                continue;
            }
            dial.address = Some(address);
            match self.open(address).await {
                Ok(stream) => return Ok((stream, address)),
                Err(failed) => error = failed,
            }
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

/// The certificates of a PEM file, of which there must be one.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if certificates.is_empty() => {
            Err(format!("{} holds no certificate", file.display()))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("{} cannot be read: {error}", file.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connection::Noted;
    use rustls::pki_types::PrivateKeyDer;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        task::JoinSet,
    };

    fn connector(opened: &[&str]) -> Connector {
        let allowed_networks = opened.iter().map(|network| network.parse().unwrap()).collect();
        Connector::new(&Settings { allowed_networks, ..Settings::default() }).unwrap()
    }

    fn origin(https: bool, host: &str, port: u16) -> Origin {
        Origin { https, host: host.into(), port }
    }

    async fn class(connector: &Connector, origin: &Origin) -> ErrorClass {
        match connector.connect(origin, TenantId(uuid::Uuid::nil()), Offer::All, &mut Dial::default()).await {
            Ok(_) => panic!("connected to {origin:?}"),
            Err(error) => error.class(),
        }
    }

    #[test]
    fn errors_of_sockets_are_classified_by_what_caused_them_however_deep_it_is() {
        let tls = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, rustls::Error::DecryptError));
        let table = [
            (tls, Some(ErrorClass::Tls)),
            (io::ErrorKind::ConnectionReset.into(), Some(ErrorClass::Reset)),
            (io::Error::other(io::Error::from(io::ErrorKind::BrokenPipe)), Some(ErrorClass::Reset)),
            (io::ErrorKind::TimedOut.into(), Some(ErrorClass::Timeout)),
            (io::Error::new(io::ErrorKind::InvalidData, "text"), Some(ErrorClass::Tls)),
            (io::Error::other("?"), None),
        ];
        for (error, class) in table {
            assert_eq!(io_class(&error), class, "{error:?}");
        }
        assert_eq!(ConnectError::Tls(io::Error::other("?")).class(), ErrorClass::Tls);
    }

    #[tokio::test]
    async fn a_tls_handshake_that_is_not_answered_ends() {
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut connector = connector(&["127.0.0.0/8"]);
        connector.connect_timeout = Duration::from_millis(50);
        let origin = origin(true, "127.0.0.1", silent.local_addr().unwrap().port());
        let class = tokio::time::timeout(Duration::from_secs(30), class(&connector, &origin)).await.unwrap();
        assert_eq!(class, ErrorClass::Connect);
    }

    #[tokio::test]
    async fn addresses_are_checked_whatever_form_the_host_has() {
        for host in ["127.0.0.1", "::1", "localhost", "::ffff:127.0.0.1"] {
            let class = class(&connector(&[]), &origin(false, host, 1)).await;
            assert_eq!(class, ErrorClass::ForbiddenAddress, "{host}");
        }
    }

    #[tokio::test]
    async fn failures_to_connect_are_told_apart() {
        let refused = class(&connector(&["127.0.0.0/8"]), &origin(false, "127.0.0.1", 1)).await;
        assert_eq!(refused, ErrorClass::Refused);
        assert_eq!(class(&connector(&[]), &origin(false, "no-such-host.invalid", 80)).await, ErrorClass::Dns);
    }

    /// An endpoint that speaks TLS and answers every request of one byte.
    async fn tls_endpoint(certificate: &rcgen::Certificate, key: &rcgen::KeyPair) -> (u16, JoinSet<()>) {
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let mut config =
            rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.der().clone()], key)
                .unwrap();
        config.alpn_protocols = vec![HTTP_2.to_vec(), HTTP_1_1.to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut served = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                served.spawn(async move {
                    while stream.read_exact(&mut [0]).await.is_ok() {
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                        if stream.write_all(answer).await.is_err() || stream.flush().await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        (port, tasks)
    }

    #[tokio::test]
    async fn a_certificate_of_a_configured_authority_is_trusted_and_no_other() {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        let (port, _tasks) = tls_endpoint(&certificate, &key).await;
        let file = std::env::temp_dir().join(format!("floodway-ca-{}.pem", uuid::Uuid::now_v7()));
        std::fs::write(&file, certificate.pem()).unwrap();
        let allowed_networks = vec!["127.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()];
        let strict = Settings { allowed_networks, http2: false, ..Settings::default() };
        let trusting = Settings { ca_file: Some(file.clone()), ..strict.clone() };
        let newer = Connector::new(&Settings { http2: true, ..trusting.clone() }).unwrap();
        let origin = origin(true, "localhost", port);
        assert_eq!(class(&Connector::new(&strict).unwrap(), &origin).await, ErrorClass::Tls);
        let trusting = Connector::new(&trusting).unwrap();
        std::fs::remove_file(&file).unwrap();
        let mut dial = Dial::default();
        let tenant = TenantId(uuid::Uuid::nil());
        let Established::Http1(mut connection) =
            trusting.connect(&origin, tenant, Offer::All, &mut dial).await.unwrap()
        else {
            panic!("HTTP/2 was switched off");
        };
        assert!(dial.dns.is_some() && dial.connect.is_some() && dial.tls.is_some() && !dial.reused);
        assert_eq!(dial.address.map(|address| address.port()), Some(port));
        let newer = newer.connect(&origin, tenant, Offer::All, &mut Dial::default()).await.unwrap();
        assert!(matches!(newer, Established::Http2(_)), "HTTP/2 is offered unless it is switched off");
        for _ in 0..2 {
            assert!(!connection.is_stale());
            let answer = connection.exchange(|out| out.push(b'?'), &[], &mut Noted::default()).await.unwrap();
            assert_eq!((answer.status, &*answer.body, answer.reusable), (200, &b"ok"[..], true));
        }
    }

    #[test]
    fn a_file_of_authorities_without_one_is_refused_by_name() {
        let settings = Settings { ca_file: Some("/dev/null".into()), ..Settings::default() };
        let error = Connector::new(&settings).err().unwrap().to_string();
        assert!(
            error.contains("FLOODWAY_DISPATCHER__CA_FILE") && error.contains("no certificate"),
            "{error}"
        );
    }
}
