//! A way to an endpoint that can be cut: a proxy which passes bytes on, resets connections, swallows everything, or loses answers.

use anyhow::Result;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

/// Bytes that are passed on at a time: more than a request of the tests.
const CHUNK: usize = 16 * 1024;

/// What happens to connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Everything passes.
    Open,
    /// Connections are reset, whatever goes on in them; new ones as soon as a request begins.
    Resets,
    /// Connections stay, and nothing passes in either direction.
    Swallows,
    /// Requests pass, and connections are reset in place of the answers.
    LosesAnswers,
}

/// The proxy. Dropped, it ends with all its connections.
#[derive(Debug)]
pub struct UnreliableNetwork {
    address: SocketAddr,
    way: watch::Sender<Way>,
    counts: Arc<Counts>,
    _stop: DropGuard,
}

#[derive(Debug, Default)]
struct Counts {
    broken: AtomicU64,
    lost: AtomicU64,
}

impl UnreliableNetwork {
    /// Listens on a free port and passes everything on to `target`.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (way, stop) = (watch::Sender::new(Way::Open), CancellationToken::new());
        let (counts, tasks) = (Arc::new(Counts::default()), TaskTracker::new());
        let (ways, counting, token, connections) =
            (way.subscribe(), Arc::clone(&counts), stop.clone(), tasks.clone());
        tasks.spawn(async move {
            let accept = async {
                while let Ok((client, _)) = listener.accept().await {
                    let connection = Connection {
                        client,
                        server: None,
                        awaits_answer: false,
                        counts: Arc::clone(&counting),
                    };
                    let (ways, token) = (ways.clone(), token.clone());
                    connections.spawn(async move {
                        let _ = token.run_until_cancelled(connection.relay(target, ways)).await;
                    });
                }
            };
            let _ = token.run_until_cancelled(accept).await;
        });
        tasks.close();
        Ok(Self { address, way, counts, _stop: stop.drop_guard() })
    }

    /// The URL of a path behind it.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What happens to all connections from now on.
    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }

    /// Connections that were reset.
    pub fn broken(&self) -> u64 {
        self.counts.broken.load(Relaxed)
    }

    /// Requests that went on, in part or whole, and whose answer did not come back.
    pub fn lost_answers(&self) -> u64 {
        self.counts.lost.load(Relaxed)
    }
}

struct Connection {
    client: TcpStream,
    server: Option<TcpStream>,
    /// Some of a request was passed on, and nothing of an answer since.
    awaits_answer: bool,
    counts: Arc<Counts>,
}

impl Connection {
    /// Passes bytes on as the way of the moment says, until either end closes.
    async fn relay(mut self, target: SocketAddr, mut ways: watch::Receiver<Way>) {
        let (mut request, mut answer) = (vec![0; CHUNK], vec![0; CHUNK]);
        loop {
            let way = *ways.borrow_and_update();
            if way == Way::Swallows {
                if ways.changed().await.is_err() {
                    return;
                }
                continue;
            }
            if way == Way::Resets && self.server.is_some() {
                return self.reset();
            }
            tokio::select! {
                // The sender's end first: an answer to a request that was given up is not passed on.
                biased;
                changed = ways.changed() => if changed.is_err() { return },
                read = self.client.read(&mut request) => match read {
                    Ok(length) if length > 0 && way == Way::Resets => return self.reset(),
                    Ok(length) if length > 0 => {
                        if self.forward(target, &request[..length]).await.is_err() {
                            return;
                        }
                    }
                    _ => return,
                },
                read = read_answer(self.server.as_mut(), &mut answer) => match read {
                    Ok(length) if length > 0 && way == Way::LosesAnswers => return self.reset(),
                    Ok(length) if length > 0 => {
                        if self.client.write_all(&answer[..length]).await.is_err() {
                            return;
                        }
                        self.awaits_answer = false;
                    }
                    _ => return,
                },
            }
        }
    }

    async fn forward(&mut self, target: SocketAddr, bytes: &[u8]) -> std::io::Result<()> {
        let server = match self.server.take() {
            Some(server) => server,
            None => TcpStream::connect(target).await?,
        };
        self.awaits_answer = true;
        self.server.insert(server).write_all(bytes).await
    }

    fn reset(self) {
        self.counts.broken.fetch_add(1, Relaxed);
        // Where it fails, the connection is closed all the same.
        let _ = self.client.set_zero_linger();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if self.awaits_answer {
            self.counts.lost.fetch_add(1, Relaxed);
        }
    }
}

/// Reads from the server; waits for ever while there is no connection to it.
async fn read_answer(server: Option<&mut TcpStream>, buffer: &mut [u8]) -> std::io::Result<usize> {
    match server {
        Some(server) => server.read(buffer).await,
        None => std::future::pending().await,
    }
}
