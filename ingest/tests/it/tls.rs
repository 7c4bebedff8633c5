//! The listener over TLS: versions, protocols, renewal, and clients that do not keep to it.

use crate::{
    harness::{PATIENCE, Reply, TestIngest, settings},
    limiting::exchange,
};
use bytes::Bytes;
use floodway_ingest::{Ingest, Settings, config::TlsVersion};
use floodway_runtime::testing::{context, kafka};
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore, SupportedProtocolVersion,
        crypto::ring,
        pki_types::{CertificateDer, ServerName},
        version::{TLS12, TLS13},
    },
};
use uuid::Uuid;

const GOOD: &str = r#"{"type":"a"}"#;

/// A secret as Kubernetes mounts it: links through `..data`, which is swapped as a whole.
struct Secret(PathBuf);

/// A self-signed certificate and its key.
struct Pair {
    certificate: rcgen::Certificate,
    key: rcgen::KeyPair,
}

impl Pair {
    fn make() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        Self { certificate, key }
    }

    fn der(&self) -> CertificateDer<'static> {
        self.certificate.der().clone()
    }
}

impl Secret {
    fn with(pair: &Pair) -> Self {
        let secret = Self(std::env::temp_dir().join(format!("floodway-tls-{}", Uuid::now_v7())));
        fs::create_dir(&secret.0).unwrap();
        secret.put(&pair.certificate.pem(), &pair.key.serialize_pem());
        for name in ["tls.crt", "tls.key"] {
            symlink(Path::new("..data").join(name), secret.0.join(name)).unwrap();
        }
        secret
    }

    fn put(&self, certificate: &str, key: &str) {
        let version = self.0.join(Uuid::now_v7().to_string());
        fs::create_dir(&version).unwrap();
        fs::write(version.join("tls.crt"), certificate).unwrap();
        fs::write(version.join("tls.key"), key).unwrap();
        symlink(&version, self.0.join("..next")).unwrap();
        fs::rename(self.0.join("..next"), self.0.join("..data")).unwrap();
    }

    fn settings(&self) -> Settings {
        Settings {
            tls_certificate: Some(self.0.join("tls.crt")),
            tls_key: Some(self.0.join("tls.key")),
            ..settings()
        }
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A client that trusts these certificates, speaks these versions, and asks for these protocols.
fn client(trusted: &[&Pair], versions: &[&'static SupportedProtocolVersion], alpn: &[&str]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    trusted.iter().for_each(|pair| roots.add(pair.der()).unwrap());
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

async fn connect(ingest: &TestIngest, client: &TlsConnector) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(ingest.address).await?;
    client.connect(ServerName::try_from("localhost").unwrap(), stream).await
}

/// Posts an event over HTTP/1.1 and leaves the connection open.
async fn post(ingest: &TestIngest, stream: &mut TlsStream<TcpStream>) -> u16 {
    let request = format!(
        "POST /v1/events HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{GOOD}",
        ingest.sender.key,
        GOOD.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // Answers of one event end with its id in the list.
    while !answer.ends_with(b"]}") {
        assert!(tokio::time::timeout(PATIENCE, stream.read_buf(&mut answer)).await.unwrap().unwrap() > 0);
    }
    std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap()
}

fn shown(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

#[tokio::test]
async fn http1_and_http2_are_spoken_over_tls_as_the_client_asks() {
    let pair = Pair::make();
    let secret = Secret::with(&pair);
    let ingest = TestIngest::start(secret.settings()).await;
    let mut stream = connect(&ingest, &client(&[&pair], &[&TLS13], &["http/1.1"])).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    assert_eq!(post(&ingest, &mut stream).await, 202);

    let stream = connect(&ingest, &client(&[&pair], &[&TLS13], &["h2", "http/1.1"])).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut http2, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = ingest.request().body(Full::new(Bytes::from(GOOD))).unwrap();
    assert_eq!(Reply::read(http2.send_request(request).await.unwrap()).await.status, 202);
    drop(http2);
    ingest.stored(2).await;
    ingest.finish().await;
}

#[tokio::test]
async fn tls_1_2_is_refused_unless_it_was_opted_into() {
    let pair = Pair::make();
    let secret = Secret::with(&pair);
    let old = client(&[&pair], &[&TLS12], &[]);
    let ingest = TestIngest::start(secret.settings()).await;
    connect(&ingest, &old).await.unwrap_err();
    let mut stream = connect(&ingest, &client(&[&pair], &[&TLS12, &TLS13], &[])).await.unwrap();
    assert_eq!(post(&ingest, &mut stream).await, 202);
    drop(stream);
    ingest.finish().await;

    let both = Settings { tls_min_version: TlsVersion::V1_2, ..secret.settings() };
    let ingest = TestIngest::start(both).await;
    let mut stream = connect(&ingest, &old).await.unwrap();
    assert_eq!(post(&ingest, &mut stream).await, 202);
    drop(stream);
    ingest.finish().await;
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_new_connections_while_old_ones_go_on() {
    let (first, second) = (Pair::make(), Pair::make());
    let secret = Secret::with(&first);
    let ingest = TestIngest::start(secret.settings()).await;
    // A client of its own for each connection: a session that is resumed shows no certificate.
    let trusting = || client(&[&first, &second], &[&TLS13], &[]);
    let mut old = connect(&ingest, &trusting()).await.unwrap();
    assert_eq!((post(&ingest, &mut old).await, shown(&old)), (202, first.der()));

    // A certificate with another's key, and no certificate at all, change nothing.
    secret.put(&second.certificate.pem(), &first.key.serialize_pem());
    assert_eq!(shown(&connect(&ingest, &trusting()).await.unwrap()), first.der());
    secret.put("nothing", "nothing");
    assert_eq!(shown(&connect(&ingest, &trusting()).await.unwrap()), first.der());

    secret.put(&second.certificate.pem(), &second.key.serialize_pem());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut new = connect(&ingest, &trusting()).await.unwrap();
        if shown(&new) == second.der() {
            assert_eq!(post(&ingest, &mut new).await, 202);
            break;
        }
        assert!(Instant::now() < deadline, "the new certificate was not taken over");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(post(&ingest, &mut old).await, 202);
    drop(old);
    ingest.finish().await;
}

#[tokio::test]
async fn a_client_that_speaks_no_tls_or_nothing_is_closed_and_the_others_are_served() {
    let pair = Pair::make();
    let secret = Secret::with(&pair);
    let settings = Settings {
        tls_handshake_timeout: Duration::from_millis(300),
        max_connections: 1,
        ..secret.settings()
    };
    let ingest = TestIngest::start(settings).await;
    // Plain HTTP, nothing, and the beginning of a handshake's record. Each has the only place until it is closed.
    for sent in [&b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"[..], b"", b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = TcpStream::connect(ingest.address).await.unwrap();
        let _ = stream.write_all(sent).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("not closed");
        assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    }
    let trusting = client(&[&pair], &[&TLS13], &[]);
    let deadline = Instant::now() + PATIENCE;
    let mut stream = loop {
        match connect(&ingest, &trusting).await {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    assert_eq!(post(&ingest, &mut stream).await, 202);
    // No place beside it, and over TLS no words about it.
    let refused = TcpStream::connect(ingest.address).await.unwrap();
    assert_eq!(exchange(refused, b"").await, "");
    drop(stream);
    ingest.finish().await;
}

#[tokio::test]
async fn a_pair_that_cannot_be_used_keeps_the_server_from_starting() {
    let (pair, other) = (Pair::make(), Pair::make());
    let (certificate, key) = (pair.certificate.pem(), pair.key.serialize_pem());
    let secret = Secret::with(&pair);
    let error =
        async |settings: Settings| Ingest::bind(settings, context(kafka())).await.unwrap_err().to_string();
    let cases = [
        (certificate.as_str(), "nothing", "TLS_KEY: the file has no private key in PEM form"),
        ("nothing", &key, "TLS_CERTIFICATE: the file has no certificate in PEM form"),
        (&certificate, &other.key.serialize_pem(), "TLS_KEY: certificate and key do not go together: "),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            &key,
            "TLS_KEY: certificate and key do not go together: ",
        ),
    ];
    for (certificate, key, expected) in cases {
        secret.put(certificate, key);
        let error = error(secret.settings()).await;
        assert!(error.starts_with(&format!("setting FLOODWAY_INGEST__{expected}")), "{error}");
        assert!(!error.contains('\n') && !error.contains("nothing"), "{error}");
    }
    let absent = Settings { tls_key: Some("/nowhere/tls.key".into()), ..secret.settings() };
    let error = error(absent).await;
    assert!(error.starts_with("setting FLOODWAY_INGEST__TLS_KEY: cannot read /nowhere/tls.key: "), "{error}");
}
