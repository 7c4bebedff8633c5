//! One keep-alive HTTP/1.1 connection, made again when it is gone.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

/// Largest response that is read, in bytes: a result for each of 10,000 events fits.
const MAX_RESPONSE_BYTES: usize = 8 * 1024 * 1024;

/// A URL or a key that no request can be made with.
#[derive(Debug, Error)]
pub enum InvalidTarget {
    /// Not `http://host[:port]`.
    #[error("{0:?} is not a URL of the form http://host:port (TLS is not supported)")]
    Url(String),
    /// The key has characters that no header may hold.
    #[error("the API key has characters that a header cannot hold")]
    Key,
}

/// No response.
#[derive(Debug, Error)]
pub(super) enum NoResponse {
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    #[error("the connection failed: {0}")]
    Connection(#[from] hyper::Error),
    #[error("the response is not readable: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("no response in time")]
    Timeout,
}

/// Where events go, and with which key.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// `host:port`, to connect to and for the `host` header.
    authority: String,
    /// `/v1/events`, after the path of the base URL.
    path: Uri,
    authorization: HeaderValue,
    timeout: Duration,
}

pub(super) struct Response {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

pub(super) struct Connection {
    target: Target,
    tasks: TaskTracker,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Target {
    pub(super) fn new(url: &str, key: &str, timeout: Duration) -> Result<Self, InvalidTarget> {
        let invalid = || InvalidTarget::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| invalid())?;
        let (Some("http"), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
            return Err(invalid());
        };
        let port = authority.port_u16().unwrap_or(80);
        let path =
            format!("{}/v1/events", uri.path().trim_end_matches('/')).parse().map_err(|_| invalid())?;
        let mut authorization =
            HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| InvalidTarget::Key)?;
        authorization.set_sensitive(true);
        Ok(Self { authority: format!("{}:{port}", authority.host()), path, authorization, timeout })
    }
}

impl Connection {
    /// A connection that is made by its first request. Its task ends with it.
    pub(super) fn new(target: Target, tasks: TaskTracker) -> Self {
        Self { target, tasks, sender: None }
    }

    /// One request and its whole response.
    pub(super) async fn post(&mut self, body: Bytes) -> Result<Response, NoResponse> {
        let exchange = tokio::time::timeout(self.target.timeout, self.exchange(body)).await;
        let response = exchange.unwrap_or(Err(NoResponse::Timeout));
        if response.is_err() {
            self.sender = None;
        }
        response
    }

    async fn exchange(&mut self, body: Bytes) -> Result<Response, NoResponse> {
        let mut request = Request::post(self.target.path.clone()).body(Full::new(body)).map_err(|error| {
            // Unreachable: method and path were parsed before.
            NoResponse::Body(error.into())
        })?;
        let headers = request.headers_mut();
        headers.insert(
            header::HOST,
            HeaderValue::try_from(&self.target.authority).map_err(|e| NoResponse::Body(e.into()))?,
        );
        headers.insert(header::AUTHORIZATION, self.target.authorization.clone());
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let response = self.sender().await?.send_request(request).await?;
        let (head, body) = response.into_parts();
        let body =
            Limited::new(body, MAX_RESPONSE_BYTES).collect().await.map_err(NoResponse::Body)?.to_bytes();
        Ok(Response { status: head.status, headers: head.headers, body })
    }

    /// The open connection; a server may have closed it since the last request, then it is made anew.
    async fn sender(&mut self) -> Result<&mut SendRequest<Full<Bytes>>, NoResponse> {
        let reusable = match self.sender.take() {
            Some(mut sender) => sender.ready().await.is_ok().then_some(sender),
            None => None,
        };
        let sender = match reusable {
            Some(sender) => sender,
            None => self.connect().await?,
        };
        Ok(self.sender.insert(sender))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, NoResponse> {
        let stream = TcpStream::connect(&self.target.authority).await.map_err(NoResponse::Connect)?;
        // Without it a request in two packets may wait for an acknowledgement; a failure costs only that.
        let _ = stream.set_nodelay(true);
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        self.tasks.spawn(async move {
            // Its error is also the error of the request that it interrupts.
            let _ = connection.await;
        });
        Ok(sender)
    }
}
