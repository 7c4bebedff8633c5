//! The listeners and the threads behind them.
//!
//! Every worker has a single-threaded runtime and a listening socket of its own on the same port (`SO_REUSEPORT`): the
//! system spreads connections over them, and a request never changes its thread. At the end a worker stops
//! accepting, lets its connections finish, and drops those that do not within the drain deadline.

use crate::{
    accept::Server,
    connection::{self, ConnectionSlot, NoPlace},
    error::Error,
    wake,
};
use hyper_util::{rt::TokioExecutor, server::conn::auto};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener as StdListener},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Connections that wait for being accepted; the system may lower it.
const BACKLOG: i32 = 4096;
/// Pause after the system refused a connection, usually for want of file descriptors: trying at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What a connection over the limit is told, in one write, before it is closed.
const OVER_LIMIT: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\nretry-after: 1\r\n\
    connection: close\r\ncontent-length: 135\r\n\r\n{\"type\":\"urn:floodway:problem:unavailable\",\"title\":\"Service unavailable\",\
    \"status\":503,\"detail\":\"too many connections; retry elsewhere\"}";

/// Opens one listening socket per worker, all on one address.
pub(crate) fn listen(address: SocketAddr, workers: usize) -> io::Result<(Vec<StdListener>, SocketAddr)> {
    // The first one binds alone: with `SO_REUSEPORT` from the start, a second process on the same port would go unnoticed.
    let first = socket(address)?;
    first.bind(&address.into())?;
    first.listen(BACKLOG)?;
    first.set_reuse_port(true)?;
    let first: StdListener = first.into();
    let bound = first.local_addr()?;
    let mut listeners = vec![first];
    for _ in 1..workers {
        let socket = socket(bound)?;
        socket.set_reuse_port(true)?;
        socket.bind(&bound.into())?;
        socket.listen(BACKLOG)?;
        listeners.push(socket.into());
    }
    Ok((listeners, bound))
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the last process's connections to be forgotten.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The worker threads.
#[derive(Debug)]
pub(crate) struct Workers {
    threads: Vec<JoinHandle<()>>,
    /// Closed once every thread has ended; a message says that one did.
    ends: mpsc::Receiver<()>,
    shutdown: CancellationToken,
}

/// Starts a worker per listener.
pub(crate) fn start(listeners: Vec<StdListener>, server: &Arc<Server>) -> Result<Workers, Error> {
    let (ended, ends) = mpsc::channel(listeners.len().max(1));
    let mut workers =
        Workers { threads: Vec::with_capacity(listeners.len()), ends, shutdown: server.shutdown.clone() };
    for (index, listener) in listeners.into_iter().enumerate() {
        let worker = Worker { server: Arc::clone(server), listener, _ended: EndSignal(ended.clone()) };
        let thread = thread::Builder::new().name(format!("ingest-{index}")).spawn(move || worker.run());
        match thread {
            Ok(thread) => workers.threads.push(thread),
            Err(error) => {
                server.shutdown.cancel();
                return Err(Error::Worker(error));
            }
        }
    }
    Ok(workers)
}

impl Workers {
    /// Returns when the server is to end, or with an error when a worker ended before.
    pub(crate) async fn ended(&mut self) -> Result<(), Error> {
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Ok(()),
            _ = self.ends.recv() => Err(Error::WorkerEnded),
        }
    }

    /// Waits until every worker has drained, and joins it.
    pub(crate) async fn all_ended(mut self) -> Result<(), Error> {
        while self.ends.recv().await.is_some() {}
        // All have sent their last word: joining does not wait.
        let panicked = self.threads.into_iter().map(JoinHandle::join).filter(Result::is_err).count();
        if panicked > 0 { Err(Error::WorkerEnded) } else { Ok(()) }
    }
}

/// Tells that a worker ended, also by a panic.
struct EndSignal(mpsc::Sender<()>);

impl Drop for EndSignal {
    fn drop(&mut self) {
        // There is room for one message per worker.
        let _ = self.0.try_send(());
    }
}

struct Worker {
    server: Arc<Server>,
    listener: StdListener,
    _ended: EndSignal,
}

impl Worker {
    fn run(self) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!(%error, "a worker has no runtime"),
        };
        // Dropping the runtime afterwards drops the connections that outlived the drain deadline.
        if let Err(error) = runtime.block_on(wake::drive(serve(self.listener, &self.server))) {
            tracing::error!(%error, "a worker cannot listen");
        }
    }
}

async fn serve(listener: StdListener, server: &Arc<Server>) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let builder = connection::builder();
    let connections = TaskTracker::new();
    loop {
        tokio::select! {
            biased;
            () = server.shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => admit(stream, peer.ip(), server, &builder, &connections),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    for (stream, peer) in waiting(listener)? {
        admit(stream, peer.ip(), server, &builder, &connections);
    }
    connections.close();
    if timeout(server.settings.drain_timeout, connections.wait()).await.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "the drain deadline passed with connections open; they are cut off"
        );
    }
    Ok(())
}

/// Connections that the system has already set up: closing the listener, which this does, would reset them. The system is
/// asked itself, because the runtime may not have heard of the latest ones yet.
fn waiting(listener: TcpListener) -> io::Result<Vec<(TcpStream, SocketAddr)>> {
    let listener = listener.into_std()?;
    let mut streams = Vec::new();
    // An error is mostly that there are no more, and never one that another try would get the better of.
    while streams.len() < BACKLOG as usize
        && let Ok((stream, peer)) = listener.accept()
    {
        match stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) {
            Ok(stream) => streams.push((stream, peer)),
            Err(error) => tracing::warn!(%error, "a connection could not be taken over at the end"),
        }
    }
    Ok(streams)
}

fn admit(
    stream: TcpStream,
    address: IpAddr,
    server: &Arc<Server>,
    builder: &auto::Builder<TokioExecutor>,
    connections: &TaskTracker,
) {
    let slot = match ConnectionSlot::take(server, address) {
        Ok(slot) => slot,
        Err(reason) => return turn_away(&stream, reason, server),
    };
    // Answers are small and whole: waiting to fill a packet would only delay them.
    let _ = stream.set_nodelay(true);
    connections.spawn(connection::open(stream, slot, builder.clone()));
}

/// Tells a client that there is no place for it; over TLS there are no words before the handshake.
fn turn_away(stream: &TcpStream, reason: NoPlace, server: &Server) {
    match reason {
        NoPlace::Full => server.metrics.connections_over_limit.increment(1),
        NoPlace::AddressFull => server.metrics.connections_over_address_limit.increment(1),
    }
    if server.tls.is_none() {
        // Best effort: a socket that was just opened has room for it.
        let _ = stream.try_write(OVER_LIMIT.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    #[test]
    fn every_worker_listens_on_the_same_port_and_a_second_server_does_not() {
        let (listeners, address) = listen(ANY_PORT, 4).unwrap();
        assert!(listeners.iter().all(|listener| listener.local_addr().unwrap() == address));
        assert_eq!(listen(address, 4).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(listeners);
        listen(address, 1).unwrap();
    }

    #[test]
    fn the_answer_over_the_limit_is_whole() {
        let (head, body) = OVER_LIMIT.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("content-length: {}\r\n", body.len()))
                || head.ends_with(&format!("content-length: {}", body.len())),
            "{}",
            body.len()
        );
        serde_json::from_str::<floodway_schemas::problem::Problem>(body).unwrap();
    }
}
