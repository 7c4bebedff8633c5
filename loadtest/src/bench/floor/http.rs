//! The floor of HTTP: hyper with a single-threaded runtime and a socket per core, as ingest has them; it reads a body
//! and answers. It parses nothing, checks nothing, and keeps nothing.

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    convert::Infallible,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    thread,
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Connections that wait for being accepted, as at ingest.
const BACKLOG: i32 = 4096;
/// Buffer of a connection in bytes, as at ingest.
const BUFFER_BYTES: usize = 64 * 1024;

/// The server, its sockets bound.
pub struct HttpFloor {
    listeners: Vec<StdListener>,
    address: SocketAddr,
    answer: Bytes,
}

impl HttpFloor {
    /// Binds a socket for each of `workers`. Every answer says that `events` events were accepted, with as many bytes
    /// as ingest takes to say so.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(address: SocketAddr, workers: usize, events: usize) -> io::Result<Self> {
        let first = socket(address)?;
        let address = first.local_addr()?;
        let rest = (1..workers.max(1)).map(|_| socket(address)).collect::<io::Result<Vec<_>>>()?;
        let listeners = std::iter::once(first).chain(rest).collect();
        Ok(Self { listeners, address, answer: answer(events) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop`; blocks. Connections are cut off then.
    ///
    /// # Errors
    /// When the system gives no thread or no runtime.
    pub fn serve(self, stop: &CancellationToken) -> io::Result<()> {
        let start = |(index, listener)| {
            let (answer, stop) = (self.answer.clone(), stop.clone());
            let name = format!("floor-{index}");
            thread::Builder::new().name(name).spawn(move || worker(listener, &answer, &stop))
        };
        let threads = self.listeners.into_iter().enumerate().map(start).collect::<io::Result<Vec<_>>>()?;
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a worker of the floor failed")))
        })
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

fn worker(listener: StdListener, answer: &Bytes, stop: &CancellationToken) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::from_std(listener)?;
        let connections = TaskTracker::new();
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            let Ok((stream, _)) = accepted else { continue };
            let _ = stream.set_nodelay(true);
            let answer = answer.clone();
            connections.spawn(async move {
                let service = service_fn(|request| respond(request, answer.clone()));
                let mut builder = http1::Builder::new();
                builder.max_buf_size(BUFFER_BYTES);
                // A connection that breaks concerns the generator, which counts it.
                let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            });
        }
        Ok(())
    })
}

async fn respond(request: Request<Incoming>, answer: Bytes) -> Result<Response<Full<Bytes>>, Infallible> {
    let whole = request.into_body().collect().await;
    let mut response = Response::new(Full::new(answer));
    *response.status_mut() = if whole.is_ok() { StatusCode::ACCEPTED } else { StatusCode::BAD_REQUEST };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// The body that says that so many events were accepted: with ids as long as those of the generator.
fn answer(events: usize) -> Bytes {
    let ids: Vec<String> = (0..events).map(|number| format!("\"floor000-{:03}-{number:09}\"", 0)).collect();
    format!("{{\"accepted\":{events},\"ids\":[{}]}}", ids.join(",")).into()
}
