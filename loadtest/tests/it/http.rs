//! The least HTTP that the tests need: a client with any header, and a server from a function.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use std::{convert::Infallible, net::SocketAddr};
use tokio::{net::TcpListener, task::JoinSet};

pub(crate) type HttpClient = Client<HttpConnector, Full<Bytes>>;

pub(crate) fn client() -> HttpClient {
    Client::builder(TokioExecutor::new()).build_http()
}

/// POSTs and reads the whole answer; `None` if there is none.
pub(crate) async fn post(
    client: &HttpClient,
    url: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Option<Response<Bytes>> {
    let mut request = Request::post(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::copy_from_slice(body))).unwrap();
    let (head, body) = client.request(request).await.ok()?.into_parts();
    Some(Response::from_parts(head, body.collect().await.ok()?.to_bytes()))
}

/// Answers every request on a free port by a function, until the set is dropped.
pub(crate) async fn serve<F, A>(tasks: &mut JoinSet<()>, answer: F) -> SocketAddr
where
    F: Fn(Request<Bytes>) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Response<Bytes>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = answer.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await.unwrap().to_bytes();
                    let response = answer(Request::from_parts(head, body)).await;
                    Ok::<_, Infallible>(response.map(Full::new))
                }
            });
            connections.spawn(async move {
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

pub(crate) fn json(status: u16, text: impl Into<Bytes>) -> Response<Bytes> {
    Response::builder().status(status).header("content-type", "application/json").body(text.into()).unwrap()
}
