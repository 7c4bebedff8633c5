//! A subscriber's server.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Version};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rustls::HandshakeKind;
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{
        mpsc::{UnboundedReceiver, unbounded_channel},
        watch,
    },
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use url::Url;

/// A request as it arrived.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) method: Method,
    pub(crate) version: Version,
    /// Over TLS: how its connection's handshake went.
    pub(crate) handshake: Option<HandshakeKind>,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Arrival {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no header {name}")).to_str().unwrap()
    }

    pub(crate) fn event_id(&self) -> &str {
        self.header("ce-id")
    }
}

/// What the server answers.
pub(crate) enum Answer {
    Respond(Response<Full<Bytes>>),
    /// 200, so much later.
    After(Duration),
    /// Not before the gate opens, then 200.
    Held,
    /// Never.
    Hang,
}

impl Answer {
    pub(crate) fn status(status: u16) -> Self {
        Self::Respond(Response::builder().status(status).body(Full::default()).unwrap())
    }
}

/// A server that records every request before it answers.
pub(crate) struct Receiver {
    base: String,
    arrivals: UnboundedReceiver<Arrival>,
    gate: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Receiver {
    pub(crate) async fn start(answer: impl Fn(&Arrival) -> Answer + Send + Sync + 'static) -> Self {
        Self::start_with(None, answer).await
    }

    /// One that speaks TLS, and HTTP/2 when that is what TLS agreed on. Its URLs name `localhost`.
    pub(crate) async fn start_tls(
        acceptor: TlsAcceptor,
        answer: impl Fn(&Arrival) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::start_with(Some(acceptor), answer).await
    }

    async fn start_with(
        acceptor: Option<TlsAcceptor>,
        answer: impl Fn(&Arrival) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let base = match &acceptor {
            Some(_) => format!("https://localhost:{port}"),
            None => format!("http://127.0.0.1:{port}"),
        };
        let (arrived, arrivals) = unbounded_channel();
        let (gate, opened) = watch::channel(false);
        let answer = Arc::new(answer);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (arrived, opened, answer) = (arrived.clone(), opened.clone(), Arc::clone(&answer));
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    // A client that does not trust the server is part of the tests.
                    let Ok((stream, handshake)) = secure(stream, acceptor).await else { return };
                    let serve = move |request: Request<Incoming>| {
                        let (arrived, opened, answer) =
                            (arrived.clone(), opened.clone(), Arc::clone(&answer));
                        let respond =
                            async move { respond(request, handshake, &arrived, opened, &*answer).await };
                        async move { Ok::<_, Infallible>(respond.await) }
                    };
                    let serving = auto::Builder::new(TokioExecutor::new());
                    // So is one that cuts a response off.
                    let _ = serving.serve_connection(TokioIo::new(stream), service_fn(serve)).await;
                });
            }
        });
        Self { base, arrivals, gate, _tasks: tasks }
    }

    /// One that answers 200 to everything.
    pub(crate) async fn ok() -> Self {
        Self::start(|_| Answer::status(200)).await
    }

    pub(crate) fn url(&self, path: &str) -> Url {
        format!("{}/{path}", self.base).parse().unwrap()
    }

    /// The next request; fails the test when none comes.
    pub(crate) async fn next(&mut self) -> Arrival {
        crate::world::within("a request", self.arrivals.recv()).await.unwrap()
    }

    /// The ids of the next requests' events, sorted.
    pub(crate) async fn next_ids(&mut self, count: usize) -> Vec<String> {
        let mut ids = Vec::new();
        for _ in 0..count {
            ids.push(self.next().await.event_id().to_owned());
        }
        ids.sort();
        ids
    }

    /// What arrived and was not looked at.
    pub(crate) fn rest(&mut self) -> Vec<Arrival> {
        std::iter::from_fn(|| self.arrivals.try_recv().ok()).collect()
    }

    /// Lets held requests be answered.
    pub(crate) fn open_gate(&self) {
        self.gate.send_replace(true);
    }
}

/// What a connection is served over.
trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Duplex for S {}

async fn secure(
    stream: TcpStream,
    acceptor: Option<TlsAcceptor>,
) -> std::io::Result<(Box<dyn Duplex>, Option<HandshakeKind>)> {
    let Some(acceptor) = acceptor else { return Ok((Box::new(stream), None)) };
    let stream = acceptor.accept(stream).await?;
    let handshake = stream.get_ref().1.handshake_kind();
    Ok((Box::new(stream), handshake))
}

async fn respond(
    request: Request<Incoming>,
    handshake: Option<HandshakeKind>,
    arrived: &tokio::sync::mpsc::UnboundedSender<Arrival>,
    mut opened: watch::Receiver<bool>,
    answer: &(impl Fn(&Arrival) -> Answer + ?Sized),
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let arrival = Arrival {
        method: head.method,
        version: head.version,
        handshake,
        path: head.uri.path().to_owned(),
        headers: head.headers,
        body,
    };
    let answer = answer(&arrival);
    let _ = arrived.send(arrival);
    match answer {
        Answer::Respond(response) => response,
        Answer::After(pause) => {
            tokio::time::sleep(pause).await;
            Response::new(Full::default())
        }
        Answer::Held => {
            let _ = opened.wait_for(|open| *open).await;
            Response::new(Full::default())
        }
        Answer::Hang => std::future::pending().await,
    }
}
