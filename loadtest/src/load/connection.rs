//! One HTTP/1.1 connection: a request is written as it is, and its answer read into a buffer that stays.

use super::{
    answer::{Head, Malformed, read_head},
    target::connect,
};
use std::{
    cell::Cell,
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::{Duration, Instant},
};
use thiserror::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Sleep,
};

/// First size of the buffer for answers, in bytes; it grows to the largest answer.
const FIRST_BUFFER_BYTES: usize = 2048;
/// Room for the next read below which the buffer grows while the length of the answer is not known.
const LEAST_ROOM_BYTES: usize = 512;

/// Why there is no answer.
#[derive(Debug, Error)]
pub(super) enum NoAnswer {
    /// Nothing was sent.
    #[error("cannot connect: {0}")]
    NotConnected(io::Error),
    #[error("the connection failed: {0}")]
    Broken(#[from] io::Error),
    #[error("the connection ended before the answer was complete")]
    Ended,
    #[error("no answer in time")]
    Timeout,
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The run is over.
    #[error("given up")]
    GivenUp,
}

/// A connection that is made when it is needed.
pub(super) struct Connection {
    address: SocketAddr,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
    timeout: Duration,
    deadline: Instant,
    /// Wakes at some time before `deadline` or at it: moved only when it has fired, so that a request costs no change
    /// of a timer.
    alarm: Pin<Box<Sleep>>,
    /// Set when answers are not waited for any longer.
    given_up: Rc<Cell<bool>>,
}

impl Connection {
    pub(super) fn new(
        address: SocketAddr,
        stream: TcpStream,
        timeout: Duration,
        given_up: Rc<Cell<bool>>,
    ) -> Self {
        let deadline = Instant::now() + timeout;
        Self {
            address,
            stream: Some(stream),
            buffer: vec![0; FIRST_BUFFER_BYTES],
            timeout,
            deadline,
            alarm: Box::pin(tokio::time::sleep_until(deadline.into())),
            given_up,
        }
    }

    /// Makes sure that there is a connection, as far as is known: the server may have closed it since the last answer.
    pub(super) async fn ensure(&mut self) -> Result<(), NoAnswer> {
        if let Some(stream) = &self.stream {
            // Costs no system call unless the system has said that there is something to read, which now can only be
            // the connection's end or bytes that nobody asked for.
            match stream.try_read(&mut [0]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                _ => self.stream = None,
            }
        }
        let stream = connect(self.address).await.map_err(NoAnswer::NotConnected)?;
        self.stream = Some(stream);
        Ok(())
    }

    /// Writes a whole request. `now` is where the time for its answer starts.
    pub(super) async fn write(&mut self, request: &[u8], now: Instant) -> Result<(), NoAnswer> {
        self.deadline = now + self.timeout;
        let mut left = request;
        while !left.is_empty() {
            match self.write_some(left).await {
                Ok(0) => return Err(self.fail(NoAnswer::Ended)),
                Ok(written) => left = &left[written..],
                Err(error) => return Err(self.fail(error)),
            }
        }
        Ok(())
    }

    /// Reads the answer to the request that was written.
    pub(super) async fn read(&mut self) -> Result<(Head, &[u8]), NoAnswer> {
        match self.read_answer().await {
            Ok((head, filled)) => {
                // More than the answer is bytes that nobody asked for.
                if !head.keep_alive || filled > head.end() {
                    self.stream = None;
                }
                Ok((head, &self.buffer[head.body_at..head.end()]))
            }
            Err(error) => Err(self.fail(error)),
        }
    }

    /// The head, and the bytes in the buffer.
    async fn read_answer(&mut self) -> Result<(Head, usize), NoAnswer> {
        let mut filled = 0;
        let head = loop {
            if self.buffer.len() - filled < LEAST_ROOM_BYTES {
                self.buffer.resize(2 * self.buffer.len(), 0);
            }
            filled += self.read_some(filled).await?;
            if let Some(head) = read_head(&self.buffer[..filled])? {
                break head;
            }
        };
        // One byte more than the answer: a read that does not fill the buffer tells the runtime that the socket is empty.
        if self.buffer.len() <= head.end() {
            self.buffer.resize(head.end() + LEAST_ROOM_BYTES, 0);
        }
        while filled < head.end() {
            filled += self.read_some(filled).await?;
        }
        Ok((head, filled))
    }

    async fn read_some(&mut self, at: usize) -> Result<usize, NoAnswer> {
        poll_fn(|context| {
            let Some(stream) = &mut self.stream else { return Poll::Ready(Err(NoAnswer::Ended)) };
            let mut buffer = ReadBuf::new(&mut self.buffer[at..]);
            if let Poll::Ready(result) = Pin::new(stream).poll_read(context, &mut buffer) {
                return Poll::Ready(match (result, buffer.filled().len()) {
                    (Err(error), _) => Err(error.into()),
                    (Ok(()), 0) => Err(NoAnswer::Ended),
                    (Ok(()), count) => Ok(count),
                });
            }
            self.poll_patience(context).map(Err)
        })
        .await
    }

    async fn write_some(&mut self, bytes: &[u8]) -> Result<usize, NoAnswer> {
        poll_fn(|context| {
            let Some(stream) = &mut self.stream else { return Poll::Ready(Err(NoAnswer::Ended)) };
            if let Poll::Ready(result) = Pin::new(stream).poll_write(context, bytes) {
                return Poll::Ready(result.map_err(NoAnswer::from));
            }
            self.poll_patience(context).map(Err)
        })
        .await
    }

    /// Ready when the wait is over.
    fn poll_patience(&mut self, context: &mut Context<'_>) -> Poll<NoAnswer> {
        if self.given_up.get() {
            return Poll::Ready(NoAnswer::GivenUp);
        }
        while self.alarm.as_mut().poll(context).is_ready() {
            if Instant::now() >= self.deadline {
                return Poll::Ready(NoAnswer::Timeout);
            }
            self.alarm.as_mut().reset(self.deadline.into());
        }
        Poll::Pending
    }

    /// After a failure nobody knows where the next answer would start.
    fn fail(&mut self, error: NoAnswer) -> NoAnswer {
        self.stream = None;
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    const ANSWER: &[u8] = b"HTTP/1.1 202 Accepted\r\ncontent-length: 5\r\n\r\nhello";

    async fn pair(timeout: Duration) -> (Connection, TcpStream, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connection = Connection::new(address, connect(address).await.unwrap(), timeout, Rc::default());
        let (server, _) = listener.accept().await.unwrap();
        (connection, server, listener)
    }

    async fn request(connection: &mut Connection) {
        connection.ensure().await.unwrap();
        connection.write(b"request", Instant::now()).await.unwrap();
    }

    #[tokio::test]
    async fn answers_are_read_one_after_the_other_over_one_connection() {
        let (mut connection, mut server, listener) = pair(Duration::from_secs(60)).await;
        let long = [b"HTTP/1.1 202 Accepted\r\ncontent-length: 100000\r\n\r\n".as_slice(), &[b'x'; 100_000]]
            .concat();
        for answer in [ANSWER, &long, ANSWER] {
            request(&mut connection).await;
            server.read_exact(&mut [0; 7]).await.unwrap();
            let (written, read) = tokio::join!(server.write_all(answer), connection.read());
            written.unwrap();
            let (head, body) = read.unwrap();
            assert_eq!((head.status, body.len()), (202, head.body_bytes));
            assert!(answer.ends_with(body));
        }
        drop(listener);
        connection.ensure().await.unwrap();
    }

    #[tokio::test]
    async fn a_connection_that_the_server_closed_is_made_anew_before_the_next_request() {
        let (mut connection, mut server, listener) = pair(Duration::from_secs(60)).await;
        request(&mut connection).await;
        server.write_all(ANSWER).await.unwrap();
        connection.read().await.unwrap();
        drop(server);
        // The end has arrived when the socket says so.
        connection.stream.as_ref().unwrap().readable().await.unwrap();
        request(&mut connection).await;
        let (mut server, _) = listener.accept().await.unwrap();
        server.write_all(ANSWER).await.unwrap();
        assert_eq!(connection.read().await.unwrap().1, b"hello");
    }

    #[tokio::test]
    async fn bytes_that_nobody_asked_for_end_the_connection_but_not_the_answer() {
        let (mut connection, mut server, listener) = pair(Duration::from_secs(60)).await;
        request(&mut connection).await;
        server.write_all(&[ANSWER, ANSWER].concat()).await.unwrap();
        assert_eq!(connection.read().await.unwrap().1, b"hello");
        request(&mut connection).await;
        listener.accept().await.unwrap();
    }

    #[tokio::test]
    async fn an_answer_that_is_cut_off_or_no_http_is_a_failure_and_the_next_request_has_a_new_connection() {
        for (bytes, malformed) in [(&ANSWER[..40], false), (b"", false), (b"SSH-2.0-OpenSSH\r\n", true)] {
            let (mut connection, mut server, listener) = pair(Duration::from_secs(60)).await;
            request(&mut connection).await;
            server.write_all(bytes).await.unwrap();
            server.shutdown().await.unwrap();
            let error = connection.read().await.unwrap_err();
            assert_eq!(matches!(error, NoAnswer::Malformed(_)), malformed, "{error}");
            connection.ensure().await.unwrap();
            listener.accept().await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_is_given_up_in_time_also_for_a_later_request() {
        let (mut connection, mut server, _listener) = pair(Duration::from_millis(20)).await;
        request(&mut connection).await;
        server.write_all(ANSWER).await.unwrap();
        connection.read().await.unwrap();
        // The alarm of the first request fires during the second and is moved.
        tokio::time::sleep(Duration::from_millis(10)).await;
        let began = Instant::now();
        request(&mut connection).await;
        assert!(matches!(connection.read().await, Err(NoAnswer::Timeout)));
        assert!(began.elapsed() >= Duration::from_millis(20));
    }
}
