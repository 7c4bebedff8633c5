//! TLS of the listener: the certificate, its replacement while the server runs, and the handshake.
//!
//! The files are looked at every few seconds, by content: a renewed secret in Kubernetes is a swapped link, and a pair that
//! another program writes is complete only after its second file. A pair that does not work is logged and counted once,
//! and the one in use stays.

use crate::{
    certificate_end,
    config::{Settings, TlsVersion},
    error::Error,
    metrics::Metrics,
};
use arc_swap::ArcSwap;
use std::{
    convert::Infallible,
    fs::File,
    hash::{BuildHasher, RandomState},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    net::TcpStream,
    time::{sleep, timeout},
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        ServerConfig,
        crypto::{CryptoProvider, ring},
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
        version::{TLS12, TLS13},
    },
    server::TlsStream,
};
use zeroize::Zeroizing;

/// How often the files are looked at.
const RELOAD_EVERY: Duration = Duration::from_secs(2);
/// Largest file, in bytes: many times a chain of certificates.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// What a TLS listener needs, shared by all workers.
pub(crate) struct Tls {
    acceptor: TlsAcceptor,
    certificate: Arc<InUse>,
    files: Files,
    handshake_timeout: Duration,
    metrics: Arc<Metrics>,
}

/// Where the pair is.
#[derive(Debug, Clone)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// The pair that new connections get.
#[derive(Debug)]
struct InUse(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for InUse {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the pair that the settings name; `None` when they name none.
    pub(crate) fn new(settings: &Settings, metrics: &Arc<Metrics>) -> Result<Option<Self>, Error> {
        let (Some(certificate), Some(key)) = (&settings.tls_certificate, &settings.tls_key) else {
            return Ok(None);
        };
        let files = Files { certificate: certificate.clone(), key: key.clone() };
        let pair = files.read()?.parse()?;
        show_end(&pair, metrics);
        let certificate = Arc::new(InUse(ArcSwap::new(pair)));
        let acceptor = acceptor(settings.tls_min_version, Arc::clone(&certificate))?;
        let metrics = Arc::clone(metrics);
        Ok(Some(Self {
            acceptor,
            certificate,
            files,
            handshake_timeout: settings.tls_handshake_timeout,
            metrics,
        }))
    }

    /// The stream once client and server agree; `None` when they do not in time.
    pub(crate) async fn shake_hands(&self, stream: TcpStream) -> Option<TlsStream<TcpStream>> {
        match timeout(self.handshake_timeout, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => {
                self.metrics.handshakes_done.increment(1);
                Some(stream)
            }
            // Scanners and clients that trust another authority are none of the operator's business, one by one.
            Ok(Err(_)) => {
                self.metrics.handshakes_failed.increment(1);
                None
            }
            Err(_elapsed) => {
                self.metrics.handshakes_slow.increment(1);
                None
            }
        }
    }

    /// Takes over new pairs; never returns.
    pub(crate) async fn follow_files(&self) -> Infallible {
        let hashes = RandomState::new();
        let mut seen = None;
        loop {
            let files = self.files.clone();
            let read = tokio::task::spawn_blocking(move || files.read()).await;
            let read = read.unwrap_or_else(|_| Err(setting("CERTIFICATE", "reading it panicked")));
            let now = match &read {
                Ok(pem) => hashes.hash_one((&pem.certificate, pem.key.as_slice())),
                Err(error) => hashes.hash_one(error.to_string()),
            };
            // The first look finds what the server started with, or what came since.
            if seen != Some(now) {
                seen = Some(now);
                self.take_over(read.and_then(|pem| pem.parse()));
            }
            sleep(RELOAD_EVERY).await;
        }
    }

    fn take_over(&self, pair: Result<Arc<CertifiedKey>, Error>) {
        match pair {
            Ok(pair) if pair.cert == self.certificate.0.load().cert => {}
            Ok(pair) => {
                show_end(&pair, &self.metrics);
                self.certificate.0.store(pair);
                self.metrics.certificates_replaced.increment(1);
                tracing::info!(certificate = %self.files.certificate.display(), "new connections get the new certificate");
            }
            Err(error) => {
                self.metrics.certificates_refused.increment(1);
                tracing::error!(%error, "the new certificate cannot be used; the one in use stays");
            }
        }
    }
}

fn acceptor(min_version: TlsVersion, certificate: Arc<InUse>) -> Result<TlsAcceptor, Error> {
    let versions = match min_version {
        TlsVersion::V1_2 => &[&TLS13, &TLS12][..],
        TlsVersion::V1_3 => &[&TLS13],
    };
    let failed = |error| setting("CERTIFICATE", format!("TLS cannot be set up: {error}"));
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
        .with_protocol_versions(versions)
        .map_err(failed)?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // Clients that come back skip the costly part; tickets need no memory here, and no lock between workers.
    config.ticketer = ring::Ticketer::new().map_err(failed)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn provider() -> CryptoProvider {
    ring::default_provider()
}

/// Tells operators when the certificate ends.
fn show_end(pair: &CertifiedKey, metrics: &Metrics) {
    let end = pair.cert.first().and_then(|certificate| certificate_end::unix_seconds(certificate));
    // A gauge is a float; seconds since 1970 are far below 2^53.
    metrics.certificate_end.set(end.map_or(f64::NAN, |seconds| seconds as f64));
}

/// The files' contents.
struct Pem {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
}

impl Files {
    fn read(&self) -> Result<Pem, Error> {
        let read = |name, path: &Path| {
            read_file(path).map_err(|error| setting(name, format!("cannot read {}: {error}", path.display())))
        };
        Ok(Pem { certificate: read("CERTIFICATE", &self.certificate)?, key: read("KEY", &self.key)?.into() })
    }
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(io::Error::other(format!("it has more than {MAX_FILE_BYTES} bytes")));
    }
    Ok(bytes)
}

impl Pem {
    fn parse(&self) -> Result<Arc<CertifiedKey>, Error> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<_, _>>()
            .map_err(|error| setting("CERTIFICATE", format!("not PEM: {error}")))?;
        if chain.is_empty() {
            return Err(setting("CERTIFICATE", "the file has no certificate in PEM form"));
        }
        // The error may quote the file.
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| setting("KEY", "the file has no private key in PEM form"))?;
        let pair = CertifiedKey::from_der(chain, key, &provider())
            .map_err(|error| setting("KEY", format!("certificate and key do not go together: {error}")))?;
        Ok(Arc::new(pair))
    }
}

fn setting(name: &str, reason: impl Into<String>) -> Error {
    Error::Setting { setting: format!("FLOODWAY_INGEST__TLS_{name}"), reason: reason.into() }
}
