//! One HTTP/1.1 connection to an endpoint, with one request at a time.
//!
//! The task that makes a delivery reads and writes itself: an exchange wakes nobody else, and needs no other task.

use crate::response::{Body, Framing, Head, InvalidResponse, MAX_HEAD_BYTES, Stage};
use bytes::BufMut;
use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Instant,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;
use tokio_util::io::poll_read_buf;

/// Bodies up to this size are copied behind the head, so that one write takes both.
const COPIED_BODY_BYTES: usize = 32 * 1024;
/// Room for a usual request's head at once.
const USUAL_HEAD_BYTES: usize = 1024;
/// Room for each read.
const READ_BYTES: usize = 4 * 1024;
/// A larger buffer is given back once its request is written: connections that wait for an answer, or are not used, hold little.
const KEPT_BUFFER_BYTES: usize = 2 * 1024;

/// What bytes go through.
#[derive(Debug)]
pub(crate) enum Stream {
    /// TCP.
    Plain(TcpStream),
    /// TLS over TCP.
    Tls(Box<TlsStream<TcpStream>>),
}

/// A connection. Between two requests nothing was read beyond the last response.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Stream,
    address: SocketAddr,
    /// The request being written.
    out: Vec<u8>,
    /// What was read of the response.
    input: Vec<u8>,
}

/// What is known of a response so far, also when it never ends.
#[derive(Debug, Default)]
pub(crate) struct Noted {
    /// Its status.
    pub(crate) status: Option<u16>,
    /// When its head had been read.
    pub(crate) head_at: Option<Instant>,
    /// Its head as it was read.
    pub(crate) head: Vec<u8>,
}

/// A complete response.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its status.
    pub(crate) status: u16,
    /// Its `Retry-After`.
    pub(crate) retry_after: Option<String>,
    /// Start of its body.
    pub(crate) body: Vec<u8>,
    /// Whether another request may follow on the connection.
    pub(crate) reusable: bool,
}

/// Why there is no complete response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExchangeError {
    /// The connection was closed before anything of the request was written: the request may be made on another one.
    #[error("the connection was closed before the request: {0}")]
    Unsent(#[source] io::Error),
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The connection ended before the response did.
    #[error("the connection ended before the response did")]
    Ended,
    /// The endpoint said that it has not processed the request: it may be made on another connection.
    #[error("the request was refused: {0}")]
    Refused(#[source] h2::Error),
    /// The endpoint said that it has not processed the request, for it takes such requests over HTTP/1.1 only.
    #[error("the request was refused: {0}")]
    Http1Required(#[source] h2::Error),
    /// A request over HTTP/2 failed.
    #[error(transparent)]
    Http2(h2::Error),
    /// Something other than HTTP came back.
    #[error(transparent)]
    Invalid(#[from] InvalidResponse),
}

/// How writing a request ended.
enum Sent {
    Whole,
    /// The answer, or the connection's end, came before the request was written.
    Early,
}

impl Connection {
    /// A connection that was just made.
    pub(crate) fn new(stream: Stream, address: SocketAddr) -> Self {
        Self { stream, address, out: Vec::new(), input: Vec::new() }
    }

    /// Where it leads.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether the endpoint has closed an unused connection, or says something that nobody asked for. Without a system call unless
    /// there is news.
    pub(crate) fn is_stale(&mut self) -> bool {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        let mut context = Context::from_waker(Waker::noop());
        // Over TLS this also takes in what concerns only TLS itself.
        self.stream.as_mut().poll_read(&mut context, &mut buffer).is_ready()
    }

    /// Makes one request, written by `write_head` up to the empty line. `noted` has what is known at every point.
    pub(crate) async fn exchange(
        &mut self,
        write_head: impl FnOnce(&mut Vec<u8>),
        body: &[u8],
        noted: &mut Noted,
    ) -> Result<Answer, ExchangeError> {
        self.out.clear();
        self.input.clear();
        let copied = body.len() <= COPIED_BODY_BYTES;
        self.out.reserve(USUAL_HEAD_BYTES + if copied { body.len() } else { 0 });
        write_head(&mut self.out);
        if copied {
            self.out.extend_from_slice(body);
        }
        let sent = self.send(if copied { &[] } else { body }).await;
        if self.out.capacity() > KEPT_BUFFER_BYTES {
            self.out = Vec::new();
        }
        let answer = match sent {
            Ok(sent) => self.receive(matches!(sent, Sent::Whole), noted).await,
            Err(unsent @ ExchangeError::Unsent(_)) => return Err(unsent),
            // An endpoint that refuses a large body may answer and close without having read it.
            Err(failed) => self.receive(false, noted).await.map_err(|_| failed),
        };
        self.input = Vec::new();
        answer
    }

    /// Writes the request, unless the answer comes before.
    async fn send(&mut self, rest: &[u8]) -> Result<Sent, ExchangeError> {
        let Self { stream, out, input, .. } = self;
        let total = out.len() + rest.len();
        let mut written = 0;
        poll_fn(|context| {
            while written < total {
                let piece = out.get(written..).filter(|piece| !piece.is_empty());
                let piece = piece.unwrap_or_else(|| &rest[written - out.len()..]);
                match stream.as_mut().poll_write(context, piece) {
                    Poll::Ready(Ok(0)) => {
                        return Poll::Ready(Err(unsent_or(written, io::ErrorKind::WriteZero.into())));
                    }
                    Poll::Ready(Ok(count)) => written += count,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(unsent_or(written, error))),
                    // The endpoint does not read on: perhaps because it has answered.
                    Poll::Pending => return early(stream, context, input),
                }
            }
            match stream.as_mut().poll_flush(context) {
                Poll::Ready(flushed) => Poll::Ready(flushed.map(|()| Sent::Whole).map_err(ExchangeError::Io)),
                Poll::Pending => early(stream, context, input),
            }
        })
        .await
    }

    /// Reads the response.
    async fn receive(&mut self, sent: bool, noted: &mut Noted) -> Result<Answer, ExchangeError> {
        let head = loop {
            if let Some(head) = Head::parse(&self.input)? {
                break head;
            }
            if self.read().await? == 0 {
                return Err(ExchangeError::Ended);
            }
        };
        *noted = Noted {
            status: Some(head.status),
            head_at: Some(Instant::now()),
            head: self.input[..head.len].to_vec(),
        };
        let mut body = Body::new(head.framing);
        let mut at = head.len;
        let ended = loop {
            match body.feed(&self.input[at..])? {
                Stage::Ended(taken) => break at + taken == self.input.len(),
                Stage::Long => break false,
                Stage::Open => {}
            }
            self.input.clear();
            at = 0;
            match self.read().await {
                Ok(0) if body.ends_with_connection() => break false,
                // Many endpoints leave TLS without a word.
                Err(error) if body.ends_with_connection() && error.kind() == io::ErrorKind::UnexpectedEof => {
                    break false;
                }
                Ok(0) => return Err(ExchangeError::Ended),
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
        };
        debug_assert!(
            !(ended && head.framing == Framing::UntilClose),
            "such a body ends with the connection"
        );
        Ok(Answer {
            status: head.status,
            retry_after: head.retry_after,
            body: body.into_kept(),
            reusable: ended && sent && head.keep_alive,
        })
    }

    async fn read(&mut self) -> io::Result<usize> {
        let Self { stream, input, .. } = self;
        poll_fn(|context| read_into(stream, context, input)).await
    }
}

/// The first error says whether anything was written.
fn unsent_or(written: usize, error: io::Error) -> ExchangeError {
    if written == 0 { ExchangeError::Unsent(error) } else { ExchangeError::Io(error) }
}

/// Looks whether the endpoint answers before it has read the request.
fn early(
    stream: &mut Stream,
    context: &mut Context<'_>,
    input: &mut Vec<u8>,
) -> Poll<Result<Sent, ExchangeError>> {
    read_into(stream, context, input).map(|read| read.map(|_| Sent::Early).map_err(ExchangeError::Io))
}

/// Appends what there is to read; `0` at the end of the stream.
fn read_into(stream: &mut Stream, context: &mut Context<'_>, input: &mut Vec<u8>) -> Poll<io::Result<usize>> {
    let filled = input.len();
    // Heads are bounded by what is read of them; bodies are taken out after each read.
    if filled >= 2 * MAX_HEAD_BYTES {
        return Poll::Ready(Err(io::ErrorKind::OutOfMemory.into()));
    }
    // Into the buffer's spare room, which need not be zeroed first.
    input.reserve(READ_BYTES);
    let read = poll_read_buf(stream.as_mut(), context, &mut (&mut *input).limit(READ_BYTES));
    if input.is_empty() {
        // Endpoints are waited for for seconds, thousands of them, and allocating is cheap.
        *input = Vec::new();
    }
    read
}

impl Stream {
    fn as_mut(&mut self) -> Pin<&mut Self> {
        Pin::new(self)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    async fn pair() -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let client = TcpStream::connect(address).await.unwrap();
        (Connection::new(Stream::Plain(client), address), listener.accept().await.unwrap().0)
    }

    /// One exchange with an endpoint that reads `length` bytes, answers and then closes if told to.
    async fn exchange(answer: &'static str, close: bool) -> Result<Answer, ExchangeError> {
        let (mut connection, mut server) = pair().await;
        let serve = async {
            let mut request = vec![0; 4 + 5];
            server.read_exact(&mut request).await.unwrap();
            assert_eq!(request, b"headhello");
            for byte in answer.as_bytes().chunks(7) {
                server.write_all(byte).await.unwrap();
                tokio::task::yield_now().await;
            }
            if close { None } else { Some(server) }
        };
        let mut noted = Noted::default();
        let made = connection.exchange(|out| out.extend_from_slice(b"head"), b"hello", &mut noted);
        tokio::join!(made, serve).0
    }

    #[tokio::test]
    async fn a_response_that_ends_where_it_said_leaves_the_connection_to_the_next_request() {
        let table = [
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n", false, "ok\n", true),
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nok\n\r\n0\r\n\r\n",
                false,
                "ok\n",
                true,
            ),
            ("HTTP/1.1 204 No Content\r\n\r\n", false, "", true),
            ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\nmore", false, "ok\n", false),
            ("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 3\r\n\r\nok\n", false, "ok\n", false),
            ("HTTP/1.1 200 OK\r\n\r\nok\n", true, "ok\n", false),
        ];
        for (text, close, body, reusable) in table {
            let answer = exchange(text, close).await.unwrap();
            assert_eq!((answer.status / 100, answer.reusable), (2, reusable), "{text}");
            assert_eq!(String::from_utf8(answer.body).unwrap(), body, "{text}");
        }
    }

    #[tokio::test]
    async fn a_response_that_is_cut_off_is_none() {
        for text in ["", "HTTP/1.1 200", "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok"] {
            assert!(matches!(exchange(text, true).await, Err(ExchangeError::Ended)), "{text}");
        }
        assert!(matches!(exchange("no HTTP", false).await, Err(ExchangeError::Invalid(_))));
    }

    #[tokio::test]
    async fn an_endpoint_may_refuse_a_large_body_without_reading_it() {
        let (mut connection, mut server) = pair().await;
        let body = vec![0; 64 * 1024 * 1024];
        let serve = async {
            server.write_all(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            server
        };
        let mut noted = Noted::default();
        let made = connection.exchange(|out| out.extend_from_slice(b"head"), &body, &mut noted);
        let (answer, _server) = tokio::join!(made, serve);
        let answer = answer.unwrap();
        assert_eq!((answer.status, answer.reusable), (413, false));
    }

    #[tokio::test]
    async fn a_connection_is_stale_once_the_endpoint_closed_it() {
        let (mut connection, server) = pair().await;
        assert!(!connection.is_stale());
        drop(server);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while !connection.is_stale() {
            assert!(std::time::Instant::now() < deadline);
            tokio::task::yield_now().await;
        }
    }
}
