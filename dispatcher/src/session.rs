//! One HTTP/2 connection to an endpoint, shared by many requests.
//!
//! A task of its own reads and writes it, on the thread of the requests. Whatever the endpoint may make us keep is bounded here: it
//! has no table for its headers and pushes nothing, a head and a body end where those of HTTP/1.1 do, and `traffic.rs` bounds the rest.
//! `places.rs` holds back requests that it has no room for, and `vigil.rs` says when it is dead.

use crate::{
    connection::{Answer, ExchangeError, Noted},
    places::Places,
    response::{Body, Framing, InvalidResponse, MAX_BODY_BYTES, MAX_HEAD_BYTES, MAX_HEADERS, Stage},
    traffic::{Counted, Outgoing, Traffic, UnderWay},
    vigil::{Next, SILENCE, Signs, Vigil},
};
use bytes::Bytes;
use h2::{
    Ping, PingPong, Reason,
    client::{Builder, Connection, ResponseFuture, SendRequest},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, Version, header,
    uri::{Authority, Parts, PathAndQuery, Scheme},
};
use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};
use tokio::{
    net::TcpStream,
    task::JoinHandle,
    time::{Instant as TimerInstant, sleep},
};
use tokio_rustls::client::TlsStream;
use tokio_util::task::TaskTracker;

/// Bytes of all bodies that wait to be read, and of one of them: no more is read of a body anyway.
const WINDOW_BYTES: u32 = MAX_BODY_BYTES as u32;
const HEAD_BYTES: u32 = MAX_HEAD_BYTES as u32;
/// Requests before the endpoint has said how many it takes at a time.
const FIRST_REQUESTS: usize = 1;
/// Requests given up of which late answers are recognised, and for how long. About 200 bytes each.
const GIVEN_UP: usize = 256;
const GIVEN_UP_FOR: Duration = Duration::from_secs(10);
/// Room for the headers of a usual request at once.
const USUAL_HEADERS: usize = 24;
/// Most interim responses before one that counts.
const MAX_INTERIM: usize = 8;
/// Data that the endpoint's system does not confirm for so long ends the connection: it may lie there when nobody watches any more.
#[cfg(target_os = "linux")]
const UNCONFIRMED: Duration = Duration::from_secs(3 * SILENCE.as_secs());

const _: () = assert!(MAX_BODY_BYTES <= i32::MAX as usize && MAX_HEAD_BYTES <= i32::MAX as usize);

type Wire = Counted<Box<TlsStream<TcpStream>>>;

/// A connection whose preface is on its way, and that nobody reads yet.
pub(crate) struct Opened {
    requests: SendRequest<Outgoing>,
    connection: Box<Connection<Wire, Outgoing>>,
    traffic: Arc<Traffic>,
    address: SocketAddr,
}

/// A connection that takes requests. Once it is dropped, the connection is closed in good order.
#[derive(Debug)]
pub(crate) struct Session {
    requests: SendRequest<Outgoing>,
    traffic: Arc<Traffic>,
    places: Arc<Places>,
    address: SocketAddr,
    driver: JoinHandle<()>,
}

/// Why there is no response.
enum Fault {
    Http2(h2::Error),
    Invalid(InvalidResponse),
}

impl From<h2::Error> for Fault {
    fn from(error: h2::Error) -> Self {
        Self::Http2(error)
    }
}

impl From<http::Error> for Fault {
    fn from(_: http::Error) -> Self {
        // The head was written from parts that were checked: a defect, which the other deliveries need not suffer from.
        Self::Http2(Reason::INTERNAL_ERROR.into())
    }
}

impl From<InvalidResponse> for Fault {
    fn from(invalid: InvalidResponse) -> Self {
        Self::Invalid(invalid)
    }
}

impl Opened {
    /// Begins to speak HTTP/2.
    pub(crate) async fn new(stream: Box<TlsStream<TcpStream>>, address: SocketAddr) -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        socket2::SockRef::from(stream.get_ref().0).set_tcp_user_timeout(Some(UNCONFIRMED))?;
        let traffic = Arc::new(Traffic::new());
        let (requests, connection) = Builder::new()
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_header_list_size(HEAD_BYTES)
            .header_table_size(0)
            .enable_push(false)
            .max_concurrent_streams(0)
            .initial_max_send_streams(FIRST_REQUESTS)
            .max_concurrent_reset_streams(GIVEN_UP)
            .reset_stream_duration(GIVEN_UP_FOR)
            .handshake(Counted::new(stream, Arc::clone(&traffic)))
            .await
            .map_err(|error| error.into_io().unwrap_or_else(|| io::ErrorKind::InvalidData.into()))?;
        Ok(Self { requests, connection: Box::new(connection), traffic, address })
    }
}

impl Session {
    /// Has the connection read and written by a task of its own.
    pub(crate) fn start(opened: Opened, tasks: &TaskTracker) -> Self {
        let Opened { requests, mut connection, traffic, address } = opened;
        // Taken once.
        let pings = connection.ping_pong();
        let places = Arc::new(Places::new(FIRST_REQUESTS));
        let driver = tasks.spawn(drive(connection, pings, Arc::clone(&traffic), Arc::clone(&places)));
        Self { requests, traffic, places, address, driver }
    }

    /// Where it leads.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether further requests had better go over another connection, see [`Traffic::is_spent`]. Cheap.
    pub(crate) fn is_spent(&self) -> bool {
        self.traffic.is_spent()
    }

    /// Whether it takes further requests: neither side has closed it, the endpoint has not said that it will, and it is not spent.
    pub(crate) fn is_usable(&self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        !self.is_spent()
            && !self.driver.is_finished()
            && matches!(self.requests.clone().poll_ready(&mut context), Poll::Ready(Ok(())))
    }

    /// Makes one request with the head that an HTTP/1.1 request would have. `noted` has what is known at every point. A request that
    /// the endpoint has no room for at present waits.
    pub(crate) async fn exchange(
        &self,
        head: Vec<u8>,
        body: &Bytes,
        noted: &mut Noted,
    ) -> Result<Answer, ExchangeError> {
        let under_way = self.traffic.begin(body);
        let Some(_place) = self.places.take().await else {
            under_way.end();
            return Err(ExchangeError::Unsent(io::ErrorKind::ConnectionAborted.into()));
        };
        let before = self.traffic.written();
        let made = self.ask(head, body, &under_way, noted).await;
        under_way.end();
        made.map_err(|fault| match fault {
            Fault::Invalid(invalid) => ExchangeError::Invalid(invalid),
            Fault::Http2(error) if noted.status.is_none() && is_refusal(&error) => {
                if error.reason() == Some(Reason::HTTP_1_1_REQUIRED) {
                    ExchangeError::Http1Required(error)
                } else {
                    ExchangeError::Refused(error)
                }
            }
            Fault::Http2(error) if error.is_io() && self.traffic.written() == before => {
                ExchangeError::Unsent(error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()))
            }
            Fault::Http2(error) => ExchangeError::Http2(error),
        })
    }

    async fn ask(
        &self,
        head: Vec<u8>,
        body: &Bytes,
        under_way: &UnderWay<'_>,
        noted: &mut Noted,
    ) -> Result<Answer, Fault> {
        let (response, mut sending) = self.requests.clone().send_request(request(head)?, body.is_empty())?;
        if !body.is_empty() {
            // Sent as the endpoint makes room for it. The bytes are not copied before.
            sending.send_data(under_way.outgoing(body.clone()), true)?;
        }
        let (head, mut incoming) = final_response(response).await?.into_parts();
        if head.headers.len() > MAX_HEADERS {
            return Err(InvalidResponse("too many headers").into());
        }
        let status = head.status.as_u16();
        *noted = Noted {
            status: Some(status),
            head_at: Some(Instant::now()),
            head: head_lines(status, &head.headers),
        };
        let mut body = Body::new(Framing::UntilClose);
        while let Some(data) = poll_fn(|context| incoming.poll_data(context)).await {
            let data = data?;
            if body.feed(&data)? == Stage::Long {
                break;
            }
            incoming.flow_control().release_capacity(data.len())?;
        }
        let retry_after = head.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        Ok(Answer {
            status,
            retry_after: retry_after.map(str::to_owned),
            body: body.into_kept(),
            reusable: true,
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.traffic.leave();
    }
}

/// The response after interim ones.
async fn final_response(mut response: ResponseFuture) -> Result<Response<h2::RecvStream>, Fault> {
    let mut interim = 0;
    poll_fn(|context| {
        while let Poll::Ready(Some(told)) = response.poll_informational(context) {
            interim += 1;
            match told {
                Err(error) => return Poll::Ready(Err(error.into())),
                Ok(told) if told.status() == http::StatusCode::SWITCHING_PROTOCOLS => {
                    let invalid = InvalidResponse("a change of protocols that nobody asked for");
                    return Poll::Ready(Err(invalid.into()));
                }
                Ok(_) if interim > MAX_INTERIM => {
                    return Poll::Ready(Err(InvalidResponse("too many interim responses").into()));
                }
                Ok(_) => {}
            }
        }
        Pin::new(&mut response).poll(context).map_err(Fault::from)
    })
    .await
}

/// Whether the endpoint says that it has not processed the request: it may be made again.
fn is_refusal(error: &h2::Error) -> bool {
    let refuses = [Some(Reason::REFUSED_STREAM), Some(Reason::HTTP_1_1_REQUIRED)];
    error.is_remote() && (error.is_go_away() || refuses.contains(&error.reason()))
}

/// Reads and writes the connection until it ends, or the endpoint gives no sign of life.
async fn drive(
    connection: Box<Connection<Wire, Outgoing>>,
    mut pings: Option<PingPong>,
    traffic: Arc<Traffic>,
    places: Arc<Places>,
) {
    // However this ends: who waits for a place hears of it.
    let places = Closing(places);
    let mut connection = pin!(connection);
    let (mut vigil, mut timer) = (Vigil::default(), pin!(sleep(SILENCE)));
    poll_fn(|context| {
        // How it ended is told to the requests.
        if connection.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        places.0.allow(connection.max_concurrent_send_streams());
        if traffic.goes_away() {
            places.0.close();
        }
        if let Some(pings) = &mut pings {
            // Only clears the way for the next one: any byte is a sign of life.
            let _ = pings.poll_pong(context).is_ready();
        }
        loop {
            let signs = Signs {
                read: traffic.read(),
                is_awaited: traffic.awaits_answers(),
                is_left: traffic.is_left(),
            };
            match vigil.look(signs, TimerInstant::now()) {
                Next::End => return Poll::Ready(()),
                Next::Ask => {
                    if let Some(pings) = &mut pings {
                        // One that is still on its way will do.
                        let _ = pings.send_ping(Ping::opaque());
                    }
                }
                Next::Rest(None) => return Poll::Pending,
                Next::Rest(Some(until)) => {
                    // A timer that is early is left as it is: setting it anew with every byte would cost more than one look.
                    if timer.is_elapsed() || timer.deadline() > until {
                        timer.as_mut().reset(until);
                    }
                    if timer.as_mut().poll(context).is_pending() {
                        return Poll::Pending;
                    }
                }
            }
        }
    })
    .await;
}

/// Places that are closed when the task ends that serves them.
struct Closing(Arc<Places>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The request with the lines of a head of HTTP/1.1, without those that are about the connection.
fn request(head: Vec<u8>) -> Result<Request<()>, http::Error> {
    let head = Bytes::from(head);
    let mut lines = head.split(|&byte| byte == b'\n');
    let path = lines.next().and_then(|line| line.split(|&byte| byte == b' ').nth(1)).unwrap_or_default();
    let mut authority = Bytes::new();
    let mut headers = HeaderMap::with_capacity(USUAL_HEADERS);
    for line in lines {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon])?;
        let value = head.slice_ref(line[colon + 1..].trim_ascii());
        match name {
            header::HOST => authority = value,
            header::CONNECTION => {}
            _ if name.as_str() == "keep-alive" => {}
            _ => {
                let mut value = HeaderValue::from_maybe_shared(value)?;
                value.set_sensitive(is_of_one_message(name.as_str()));
                headers.append(name, value);
            }
        }
    }
    let mut uri = Parts::default();
    uri.scheme = Some(Scheme::HTTPS);
    uri.authority = Some(Authority::from_maybe_shared(authority)?);
    uri.path_and_query = Some(PathAndQuery::from_maybe_shared(head.slice_ref(path))?);
    let mut request = Request::new(());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_parts(uri)?;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Headers that are different in every message: they would only push others out of the table that compresses headers.
fn is_of_one_message(name: &str) -> bool {
    name.starts_with("webhook-")
        || matches!(name, "ce-id" | "ce-time" | "ce-receivedat" | "ce-traceparent" | "traceparent")
}

/// The head as HTTP/1.1 would write it.
fn head_lines(status: u16, headers: &HeaderMap) -> Vec<u8> {
    let mut lines = format!("HTTP/2 {status}\r\n").into_bytes();
    for (name, value) in headers {
        crate::headers::put_line(&mut lines, name.as_str(), value.as_bytes());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_becomes_headers_without_those_of_the_connection() {
        let head = b"POST /x?y HTTP/1.1\r\nhost: example.com:1\r\nx-team: a: b\r\nkeep-alive: 5\r\nwebhook-id: 1\r\nce-type: t\r\ncontent-length: 2\r\n\r\n";
        let request = request(head.to_vec()).unwrap();
        let headers: Vec<_> = request
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().unwrap(), value.is_sensitive()))
            .collect();
        let expected = [
            ("x-team", "a: b", false),
            ("webhook-id", "1", true),
            ("ce-type", "t", false),
            ("content-length", "2", false),
        ];
        assert_eq!(headers, expected);
        assert_eq!(
            (request.uri(), request.method()),
            (&"https://example.com:1/x?y".parse().unwrap(), &Method::POST)
        );
    }
}
