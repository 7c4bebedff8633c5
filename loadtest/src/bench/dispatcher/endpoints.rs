//! The sink as a process of its own, and the subscriptions that lead to it.

use super::super::{
    BenchError,
    installation::{Target, free_ports},
    sink::{
        FIGURES_PATH,
        arrivals::{GroupFigures, SinkFigures},
        certificate::CertificateFiles,
    },
};
use crate::{
    admin_client::{AdminClient, NewSubscription},
    child::GuardedChild,
};
use bytes::Bytes;
use http::Method;
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

/// How long the sink may take to listen.
const LISTEN_DEADLINE: Duration = Duration::from_secs(10);
/// Pause between two looks at it.
const LISTEN_PAUSE: Duration = Duration::from_millis(20);
/// Addresses in the last part of an IPv4 address that are used.
const ADDRESSES: u32 = 250;

/// A running sink.
pub struct SinkProcess {
    child: GuardedChild,
    plain: SocketAddr,
    tls: SocketAddr,
    client: AdminClient,
}

impl SinkProcess {
    /// Starts it, and returns once it listens.
    ///
    /// # Errors
    /// When it cannot be started, or ends by itself.
    pub async fn start(
        loadtest: &Path,
        logs: &Path,
        certificate: &CertificateFiles,
    ) -> Result<Self, BenchError> {
        let [plain, tls] = free_ports()?;
        let everywhere = |address: SocketAddr| format!("0.0.0.0:{}", address.port());
        let (listen, listen_tls) = (everywhere(plain), everywhere(tls));
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let (chain, key) = (text(&certificate.certificate), text(&certificate.key));
        let arguments = [
            "bench",
            "sink",
            "--listen",
            &listen,
            "--listen-tls",
            &listen_tls,
            "--certificate",
            &chain,
            "--key",
            &key,
        ];
        let log = logs.join("sink.log");
        let child = GuardedChild::start(loadtest, &arguments, &BTreeMap::new(), &log)?;
        let client = AdminClient::new(&format!("http://{plain}"), None)?;
        let mut sink = Self { child, plain, tls, client };
        let listening = async {
            while sink.client.call(Method::GET, FIGURES_PATH, Bytes::new()).await.is_err() {
                tokio::time::sleep(LISTEN_PAUSE).await;
            }
        };
        let ready = tokio::select! {
            ready = tokio::time::timeout(LISTEN_DEADLINE, listening) => ready.map_err(|_| None),
            ended = sink.child.ended() => Err(Some(ended)),
        };
        match ready {
            Ok(()) => Ok(sink),
            Err(Some(ended)) => Err(ended.into()),
            Err(None) => Err(BenchError::NotReady {
                what: "the sink".to_owned(),
                seconds: LISTEN_DEADLINE.as_secs(),
                health: "it does not listen".to_owned(),
                log: crate::child::last_lines(&log),
            }),
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.pid().unwrap_or_default()
    }

    /// Its URL for a path of a group, on one of many servers.
    pub fn url(&self, server: u32, path: &str, group: &str) -> String {
        format!("http://{}:{}{path}?group={group}", address(server), self.plain.port())
    }

    /// The same over TLS, on the one server that has a certificate.
    pub fn tls_url(&self, path: &str, group: &str) -> String {
        format!("https://{}{path}?group={group}", self.tls)
    }

    /// Everything that arrived.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn figures(&self) -> Result<SinkFigures, BenchError> {
        Ok(self.client.get(FIGURES_PATH).await?)
    }

    /// What arrived for a group.
    ///
    /// # Errors
    /// When it does not answer, or could not remember everything.
    pub async fn group(&self, name: &str) -> Result<GroupFigures, BenchError> {
        let figures = self.figures().await?;
        if figures.untracked > 0 {
            let reason = format!("{} webhooks could not be remembered", figures.untracked);
            return Err(BenchError::Command { command: "the sink".to_owned(), reason });
        }
        Ok(figures.group(name))
    }

    /// Forgets everything that arrived.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn forget(&self) -> Result<(), BenchError> {
        self.client.call(Method::DELETE, FIGURES_PATH, Bytes::new()).await?;
        Ok(())
    }

    /// Ends it.
    pub async fn stop(self) {
        // One that had to be killed is gone as well.
        let _ = self.child.stop().await;
    }
}

/// One of the loopback addresses for each server.
fn address(server: u32) -> Ipv4Addr {
    let part = |number: u32| u8::try_from(number).unwrap_or(u8::MAX);
    let (high, rest) = (server / (ADDRESSES * ADDRESSES), server % (ADDRESSES * ADDRESSES));
    Ipv4Addr::new(127, part(1 + high), part(rest / ADDRESSES), part(1 + rest % ADDRESSES))
}

/// Creates a subscription of the benchmark's tenant, or of another one; returns its id.
///
/// # Errors
/// When the control plane does not take it.
pub async fn subscribe(
    target: &Target,
    tenant: &str,
    url: String,
    event_type: String,
) -> Result<String, BenchError> {
    let new = NewSubscription {
        name: "bench".to_owned(),
        url,
        types: vec![event_type],
        ..NewSubscription::default()
    };
    Ok(target.admin.create_subscription(tenant, &new).await?.id)
}

/// The type of an event with a number, as the generator writes it.
pub fn numbered(event_type: &str, number: u32) -> String {
    format!("{event_type}.{number:05}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn each_of_very_many_servers_has_a_loopback_address_of_its_own() {
        let addresses: BTreeSet<Ipv4Addr> = (0..200_000).map(address).collect();
        assert_eq!(addresses.len(), 200_000);
        assert!(addresses.iter().all(Ipv4Addr::is_loopback));
    }
}
