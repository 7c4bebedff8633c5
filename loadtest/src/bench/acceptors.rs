//! A server's threads: a socket and a single-threaded runtime for each, as ingest has them.

use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    sync::Arc,
    thread,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Connections that wait for being accepted, as at ingest.
const BACKLOG: i32 = 4096;

/// Sockets of one address, bound.
pub struct Acceptors {
    listeners: Vec<StdListener>,
    address: SocketAddr,
}

impl Acceptors {
    /// Binds a socket for each of `workers`. Port 0 takes a free one.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(address: SocketAddr, workers: usize) -> io::Result<Self> {
        let first = socket(address)?;
        let address = first.local_addr()?;
        let rest = (1..workers.max(1)).map(|_| socket(address)).collect::<io::Result<Vec<_>>>()?;
        Ok(Self { listeners: std::iter::once(first).chain(rest).collect(), address })
    }

    /// Where they listen.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Gives every connection to `serve` until `stop`; blocks. Connections are cut off then.
    ///
    /// # Errors
    /// When the system gives no thread or no runtime.
    pub fn run<F>(
        self,
        stop: &CancellationToken,
        serve: impl Fn(TcpStream) -> F + Send + Sync + 'static,
    ) -> io::Result<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let serve = Arc::new(serve);
        let start = |(index, listener)| {
            let (serve, stop) = (Arc::clone(&serve), stop.clone());
            let name = format!("worker-{index}");
            thread::Builder::new().name(name).spawn(move || accept(listener, &*serve, &stop))
        };
        let threads = self.listeners.into_iter().enumerate().map(start).collect::<io::Result<Vec<_>>>()?;
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|_| Err(io::Error::other("a worker failed"))))
    }
}

fn socket(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn accept<F>(
    listener: StdListener,
    serve: &impl Fn(TcpStream) -> F,
    stop: &CancellationToken,
) -> io::Result<()>
where
    F: Future<Output = ()> + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        let connections = TaskTracker::new();
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            let Ok((stream, _)) = accepted else { continue };
            let _ = stream.set_nodelay(true);
            connections.spawn(serve(stream));
        }
        Ok(())
    })
}
