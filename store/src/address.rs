//! A database's URL: one or several servers, and how connections to them are protected.

use crate::{
    Error,
    tls::{Mode, Tls, TlsSettings},
};
use deadpool_postgres::{ConfigConnectImpl, Connect};
use secrecy::{ExposeSecret, SecretString};
use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config};

/// A parsed URL.
pub(crate) struct Address {
    /// For each server, in the order of the URL.
    pub(crate) servers: Vec<Config>,
    pub(crate) tls: Tls,
    /// A statement for every new connection, after the server was found to be the right one.
    pub(crate) on_connect: Option<&'static str>,
}

impl Address {
    /// # Errors
    /// [`Error::Other`] saying what is wrong, without quoting the URL, which holds a password.
    pub(crate) fn parse(url: &SecretString) -> Result<Self, Error> {
        let url = url.expose_secret();
        // The form of words, `host=a sslmode=require`, would have to be read twice to be understood once.
        if !url.contains("://") {
            return Err(malformed());
        }
        let (address, query) = url.split_once('?').unwrap_or((url, ""));
        let mut settings = TlsSettings { mode: Mode::Prefer, roots: None };
        let mut others = Vec::new();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            match parameter.split_once('=') {
                Some(("sslmode", mode)) => settings.mode = Mode::parse(mode)?,
                Some(("sslrootcert", file)) => {
                    let file = percent_encoding::percent_decode_str(file).decode_utf8_lossy();
                    settings.roots = Some(file.into_owned());
                }
                _ => others.push(parameter),
            }
        }
        let tls = Tls::new(&settings)?;
        let query = match others.as_slice() {
            [] => String::new(),
            others => format!("?{}", others.join("&")),
        };
        let servers = one_by_one(address)
            .iter()
            .map(|address| {
                let mut config: Config = format!("{address}{query}").parse().map_err(|_| malformed())?;
                if config.get_hosts().is_empty() {
                    return Err(malformed());
                }
                config.ssl_mode(settings.mode.negotiation());
                Ok(config)
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self { servers, tls, on_connect: None })
    }
}

/// The parser's own message may quote the URL, password included.
fn malformed() -> Error {
    Error::Other("the database URL is not of the form postgres://user:password@host:port/database".to_owned())
}

/// The same address for each of its hosts alone: `a://b@h1:1,h2:2/d` is `a://b@h1:1/d` and `a://b@h2:2/d`.
fn one_by_one(address: &str) -> Vec<String> {
    let start = address.find("://").map_or(0, |at| at + 3);
    let start = address[start..].rfind('@').map_or(start, |at| start + at + 1);
    let end = address[start..].find('/').map_or(address.len(), |at| start + at);
    let (before, after) = (&address[..start], &address[end..]);
    address[start..end].split(',').map(|host| format!("{before}{host}{after}")).collect()
}

/// Connects to the first server that takes us, beginning with the last that did. Each has its own time: one that hangs does
/// not use up the others'.
pub(crate) struct InTurn {
    servers: Arc<Vec<Config>>,
    tls: Tls,
    on_connect: Option<&'static str>,
    /// Place of the server that last took us.
    last: Arc<AtomicUsize>,
    patience: Duration,
}

impl InTurn {
    pub(crate) fn new(address: Address, patience: Duration) -> Self {
        let Address { servers, tls, on_connect } = address;
        Self { servers: Arc::new(servers), tls, on_connect, last: Arc::default(), patience }
    }

    async fn connect_to(&self, server: &Config) -> Connected {
        let connected = ConfigConnectImpl { tls: self.tls.clone() }.connect(server).await?;
        if let Some(statement) = self.on_connect {
            connected.0.batch_execute(statement).await?;
        }
        Ok(connected)
    }
}

type Connected = Result<(Client, JoinHandle<()>), tokio_postgres::Error>;

impl Connect for InTurn {
    fn connect(&self, _: &Config) -> Pin<Box<dyn Future<Output = Connected> + Send + '_>> {
        Box::pin(async move {
            // Relaxed: the number stands for itself.
            let first = self.last.load(Ordering::Relaxed);
            let mut refused = None;
            for n in 0..self.servers.len() {
                let place = (first + n) % self.servers.len();
                match tokio::time::timeout(self.patience, self.connect_to(&self.servers[place])).await {
                    Ok(Ok(connected)) => {
                        self.last.store(place, Ordering::Relaxed);
                        return Ok(connected);
                    }
                    Ok(Err(error)) => refused = Some(error),
                    Err(_) => tracing::debug!(place, "a database server does not answer in time"),
                }
            }
            match refused {
                Some(error) => Err(error),
                // None answered at all: the pool's own limit, which is about to pass, says so.
                None => std::future::pending().await,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_of_a_url_is_a_server() {
        assert_eq!(
            one_by_one("postgres://u:p,@h1:1,h2/d"),
            ["postgres://u:p,@h1:1/d", "postgres://u:p,@h2/d"]
        );
        assert_eq!(one_by_one("postgres://h1"), ["postgres://h1"]);
        let url = "postgres://u:p@h1:1,h2:2/d?target_session_attrs=read-write&sslmode=require".into();
        let address = Address::parse(&url).unwrap();
        let ports: Vec<_> = address.servers.iter().map(|server| server.get_ports().to_vec()).collect();
        assert_eq!(ports, [[1], [2]]);
    }

    #[test]
    fn what_is_wrong_with_tls_is_said_without_quoting_the_url() {
        for (query, expected) in [
            ("sslmode=verify_full", "sslmode must be one of"),
            ("sslmode=verify-full", "need sslrootcert"),
            ("sslmode=verify-ca&sslrootcert=/nowhere.pem", "sslrootcert /nowhere.pem"),
            ("sslcert=/a.pem", "not of the form"),
        ] {
            let url = format!("postgres://me:hunter2@localhost/x?{query}").into();
            let error = Address::parse(&url).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(expected) && !error.contains("hunter2"), "{query}: {error}");
        }
        let words = "host=localhost user=me password=hunter2 sslmode=require".into();
        let error = Address::parse(&words).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("not of the form") && !error.contains("hunter2"), "{error}");
        let system = "postgres://me@localhost/x?sslmode=verify-full&sslrootcert=system".into();
        assert!(Address::parse(&system).is_ok());
    }
}
