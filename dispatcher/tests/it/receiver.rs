//! A subscriber's server.

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use std::{convert::Infallible, sync::Arc};
use tokio::{
    net::TcpListener,
    sync::{
        mpsc::{UnboundedReceiver, unbounded_channel},
        watch,
    },
    task::JoinSet,
};
use url::Url;

/// A request as it arrived.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) method: Method,
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
    port: u16,
    arrivals: UnboundedReceiver<Arrival>,
    gate: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Receiver {
    pub(crate) async fn start(answer: impl Fn(&Arrival) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (arrived, arrivals) = unbounded_channel();
        let (gate, opened) = watch::channel(false);
        let answer = Arc::new(answer);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (arrived, opened, answer) = (arrived.clone(), opened.clone(), Arc::clone(&answer));
                let serve = move |request: Request<Incoming>| {
                    let (arrived, opened, answer) = (arrived.clone(), opened.clone(), Arc::clone(&answer));
                    async move { Ok::<_, Infallible>(respond(request, &arrived, opened, &*answer).await) }
                };
                connections.spawn(async move {
                    let serving = hyper::server::conn::http1::Builder::new();
                    // A client that cuts a response off is part of the tests.
                    let _ = serving.serve_connection(TokioIo::new(stream), service_fn(serve)).await;
                });
            }
        });
        Self { port, arrivals, gate, _tasks: tasks }
    }

    /// One that answers 200 to everything.
    pub(crate) async fn ok() -> Self {
        Self::start(|_| Answer::status(200)).await
    }

    pub(crate) fn url(&self, path: &str) -> Url {
        format!("http://127.0.0.1:{}/{path}", self.port).parse().unwrap()
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

async fn respond(
    request: Request<Incoming>,
    arrived: &tokio::sync::mpsc::UnboundedSender<Arrival>,
    mut opened: watch::Receiver<bool>,
    answer: &(impl Fn(&Arrival) -> Answer + ?Sized),
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let arrival =
        Arrival { method: head.method, path: head.uri.path().to_owned(), headers: head.headers, body };
    let answer = answer(&arrival);
    let _ = arrived.send(arrival);
    match answer {
        Answer::Respond(response) => response,
        Answer::Held => {
            let _ = opened.wait_for(|open| *open).await;
            Response::new(Full::default())
        }
        Answer::Hang => std::future::pending().await,
    }
}
