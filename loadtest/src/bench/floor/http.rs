//! The floor of HTTP: hyper with a single-threaded runtime and a socket per core, as ingest has them; it reads a body
//! and answers. It parses nothing, checks nothing, and keeps nothing.

use crate::bench::acceptors::Acceptors;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{convert::Infallible, io, net::SocketAddr};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// Buffer of a connection in bytes, as at ingest.
const BUFFER_BYTES: usize = 64 * 1024;

/// The server, its sockets bound.
pub struct HttpFloor {
    acceptors: Acceptors,
    answer: Bytes,
}

impl HttpFloor {
    /// Binds a socket for each of `workers`. Every answer says that `events` events were accepted, with as many bytes
    /// as ingest takes to say so.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(address: SocketAddr, workers: usize, events: usize) -> io::Result<Self> {
        Ok(Self { acceptors: Acceptors::bind(address, workers)?, answer: answer(events) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.acceptors.address()
    }

    /// Serves until `stop`; blocks. Connections are cut off then.
    ///
    /// # Errors
    /// When the system gives no thread or no runtime.
    pub fn serve(self, stop: &CancellationToken) -> io::Result<()> {
        let answer = self.answer;
        self.acceptors.run(stop, move |stream| serve(stream, answer.clone()))
    }
}

async fn serve(stream: TcpStream, answer: Bytes) {
    let service = service_fn(|request| respond(request, answer.clone()));
    let mut builder = http1::Builder::new();
    builder.max_buf_size(BUFFER_BYTES);
    // A connection that breaks concerns the generator, which counts it.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
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
