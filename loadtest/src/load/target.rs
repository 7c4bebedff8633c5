//! Where requests go.

use super::{error::LoadError, workload::Encoding};
use crate::send::InvalidTarget;
use http::{HeaderValue, Uri};
use std::{net::SocketAddr, time::Duration};
use tokio::net::TcpStream;

/// Longest wait for a connection.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where requests go, and with which key.
#[derive(Clone)]
pub(super) struct Target {
    /// `host:port`, to connect to and for the `host` header.
    address: String,
    path: String,
    key: String,
}

impl Target {
    pub(super) fn new(url: &str, key: &str) -> Result<Self, InvalidTarget> {
        let invalid = || InvalidTarget::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| invalid())?;
        let (Some("http"), Some(authority), None) = (uri.scheme_str(), uri.authority(), uri.query()) else {
            return Err(invalid());
        };
        HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| InvalidTarget::Key)?;
        Ok(Self {
            address: format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80)),
            path: format!("{}/v1/events", uri.path().trim_end_matches('/')),
            key: key.to_owned(),
        })
    }

    /// Everything before the body.
    pub(super) fn head(&self, encoding: Encoding, body_bytes: usize) -> Vec<u8> {
        let encoding = match encoding {
            Encoding::Identity => "",
            Encoding::Gzip => "content-encoding: gzip\r\n",
            Encoding::Zstd => "content-encoding: zstd\r\n",
        };
        format!(
            "POST {} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n{encoding}\
             content-length: {body_bytes}\r\n\r\n",
            self.path, self.address, self.key,
        )
        .into_bytes()
    }

    /// The first of the host's addresses that can be connected to. Addresses of other machines only if allowed.
    pub(super) async fn resolve(&self, allow_remote: bool) -> Result<SocketAddr, LoadError> {
        let failed = |error| LoadError::Connect { address: self.address.clone(), error };
        let addresses: Vec<_> = tokio::net::lookup_host(&self.address).await.map_err(failed)?.collect();
        if !allow_remote && let Some(remote) = addresses.iter().find(|address| !is_loopback(address)) {
            return Err(LoadError::Plan(format!(
                "{} ({remote}) is not this machine: a load test of another one has to be allowed",
                self.address
            )));
        }
        let mut last = std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address");
        for address in addresses {
            match connect(address).await {
                Ok(_) => return Ok(address),
                Err(error) => last = error,
            }
        }
        Err(failed(last))
    }
}

fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// A connection whose small writes leave at once.
pub(super) async fn connect(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(address))
        .await
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_plain_http_url_and_a_key_for_a_header() {
        for url in ["https://127.0.0.1", "127.0.0.1:8080", "http://", "http://127.0.0.1/?a=b", "http://a b"] {
            assert!(matches!(Target::new(url, "k"), Err(InvalidTarget::Url(_))), "{url}");
        }
        assert!(matches!(Target::new("http://127.0.0.1", "k\r\nx: y"), Err(InvalidTarget::Key)));
        assert_eq!(Target::new("http://[::1]", "k").unwrap().address, "[::1]:80");
    }

    #[tokio::test]
    async fn another_machine_is_no_target_unless_that_is_allowed() {
        let target = Target::new("http://192.0.2.1:9", "k").unwrap();
        let error = target.resolve(false).await.unwrap_err();
        assert!(error.is_usage() && error.to_string().contains("192.0.2.1:9"), "{error}");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let local = Target::new(&format!("http://{address}"), "k").unwrap();
        assert_eq!(local.resolve(false).await.unwrap(), address);
    }
}
