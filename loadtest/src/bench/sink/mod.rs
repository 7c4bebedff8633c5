//! The endpoints of a benchmark of the dispatcher: they answer as their path says, as those of [`crate::receive`] do, but
//! count instead of keeping a ledger, so that they take little of what they help to measure.
//!
//! Bound to 0.0.0.0 a sink is at every loopback address, so it can be as many servers as wanted. Whoever is not on this
//! machine is not served.

pub mod arrivals;
pub mod certificate;

use self::arrivals::{Arrivals, Webhook};
use super::acceptors::Acceptors;
use crate::{
    load::monotonic::now_micros,
    receive::{
        AnswerBody, Reset,
        behaviour::{Route, parameter},
        plain, respond,
    },
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{io, net::SocketAddr, sync::Arc, thread};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// What arrived, as JSON; with DELETE it is forgotten then.
pub const FIGURES_PATH: &str = "/_figures";
/// Parameter of a URL's query that names the group of an endpoint.
const GROUP_PARAMETER: &str = "group";
/// Group of paths that name none.
const NO_GROUP: &str = "none";

/// The sink, its sockets bound.
pub struct Sink {
    plain: Acceptors,
    tls: Option<(Acceptors, TlsAcceptor)>,
    arrivals: Arc<Arrivals>,
}

impl Sink {
    /// Binds a socket for each of `workers`, and as many for TLS if there is an address for it.
    ///
    /// # Errors
    /// When an address cannot be bound.
    pub fn bind(
        address: SocketAddr,
        workers: usize,
        tls: Option<(SocketAddr, TlsAcceptor)>,
    ) -> io::Result<Self> {
        let bind = |(address, tls)| Ok::<_, io::Error>((Acceptors::bind(address, workers)?, tls));
        let (plain, tls) = (Acceptors::bind(address, workers)?, tls.map(bind).transpose()?);
        Ok(Self { plain, tls, arrivals: Arc::default() })
    }

    /// Where it listens without TLS.
    pub fn address(&self) -> SocketAddr {
        self.plain.address()
    }

    /// Serves until `stop`; blocks. Connections are cut off then.
    ///
    /// # Errors
    /// When the system gives no thread or no runtime.
    pub fn serve(self, stop: &CancellationToken) -> io::Result<()> {
        let serve = |acceptors: Acceptors, tls: Option<TlsAcceptor>| {
            let (arrivals, ends) = (Arc::clone(&self.arrivals), stop.clone());
            acceptors
                .run(stop, move |stream| connection(stream, tls.clone(), Arc::clone(&arrivals), ends.clone()))
        };
        thread::scope(|scope| {
            let secured = self.tls.map(|(acceptors, tls)| scope.spawn(|| serve(acceptors, Some(tls))));
            let served = serve(self.plain, None);
            let secured = secured.map_or(Ok(Ok(())), thread::ScopedJoinHandle::join);
            served.and(secured.unwrap_or_else(|_| Err(io::Error::other("the side with TLS failed"))))
        })
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    arrivals: Arc<Arrivals>,
    stop: CancellationToken,
) {
    if !stream.peer_addr().is_ok_and(|peer| peer.ip().is_loopback()) {
        return;
    }
    match tls {
        None => serve(stream, arrivals, stop).await,
        Some(tls) => {
            // A handshake that fails is told by the side that fails to deliver.
            if let Ok(stream) = tls.accept(stream).await {
                serve(stream, arrivals, stop).await;
            }
        }
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    arrivals: Arc<Arrivals>,
    stop: CancellationToken,
) {
    let service = service_fn(|request| answer(&arrivals, &stop, request));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new());
    // An error is a sender that went away, or a reset that was asked for.
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(
    arrivals: &Arrivals,
    stop: &CancellationToken,
    request: Request<Incoming>,
) -> Result<Response<AnswerBody>, Reset> {
    let (head, body) = request.into_parts();
    let (path, query) = (head.uri.path(), head.uri.query());
    if path == FIGURES_PATH {
        return Ok(figures(arrivals, &head.method));
    }
    let Some(route) = Route::of(path, query) else {
        return Ok(plain(StatusCode::NOT_FOUND, "this path names no behaviour\n"));
    };
    if Limited::new(body, crate::receive::MAX_BODY_BYTES).collect().await.is_err() {
        return Ok(plain(StatusCode::BAD_REQUEST, "the body did not arrive whole\n"));
    }
    arrivals.count(&Webhook {
        group: parameter(query, GROUP_PARAMETER).unwrap_or(NO_GROUP),
        endpoint: path,
        event_id: text(&head.headers, "ce-id").unwrap_or_default(),
        sent_micros: text(&head.headers, "ce-sentat").and_then(|text| text.parse().ok()),
        at_micros: now_micros(),
    });
    respond(route.behaviour.answer(1), route.retry_after, stop).await
}

fn figures(arrivals: &Arrivals, method: &Method) -> Response<AnswerBody> {
    let figures = arrivals.figures();
    if *method == Method::DELETE {
        arrivals.forget();
    }
    // Maps of strings to integers: always serialisable.
    let mut response = Response::new(AnswerBody::fixed(serde_json::to_vec(&figures).unwrap_or_default()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn text<'h>(headers: &'h HeaderMap, name: &'static str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}
