//! What goes through a connection that many requests share: counted, and bounded by what the requests call for.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes that a connection may bring before the first request: settings, and what may be said while nothing is asked.
const BASE_BYTES: usize = 64 * 1024;
/// Bytes that a request entitles the endpoint to: the largest head and body that are read, and as much for frames of the connection
/// and for what was on its way when the rest of a body was declined.
const BYTES_PER_REQUEST: usize = 256 * 1024;
/// Most bytes that it is entitled to at a time, however many small answers it gave before.
const MOST_BYTES: usize = 64 * BYTES_PER_REQUEST;

/// The counts of one connection. Shared by its requests and the task that reads and writes; all of them are on one thread.
#[derive(Debug)]
pub(crate) struct Traffic {
    /// Bytes read and written.
    passed: AtomicU64,
    /// Bytes written.
    written: AtomicU64,
    /// Bytes that the endpoint may still send.
    left: AtomicUsize,
    under_way: AtomicUsize,
    is_left: AtomicBool,
}

/// A request that is under way.
pub(crate) struct UnderWay<'t>(&'t Traffic);

impl Traffic {
    /// Of a connection over which nothing went.
    pub(crate) fn new() -> Self {
        Self {
            passed: AtomicU64::new(0),
            written: AtomicU64::new(0),
            left: AtomicUsize::new(BASE_BYTES),
            under_way: AtomicUsize::new(0),
            is_left: AtomicBool::new(false),
        }
    }

    /// Counts a request as under way, and entitles the endpoint to an answer.
    pub(crate) fn begin(&self) -> UnderWay<'_> {
        self.left.store((self.left.load(Relaxed) + BYTES_PER_REQUEST).min(MOST_BYTES), Relaxed);
        self.under_way.fetch_add(1, Relaxed);
        UnderWay(self)
    }

    /// Whether a request is under way.
    pub(crate) fn awaits_answers(&self) -> bool {
        self.under_way.load(Relaxed) > 0
    }

    /// Bytes that went either way: the connection lives when they become more.
    pub(crate) fn passed(&self) -> u64 {
        self.passed.load(Relaxed)
    }

    /// Bytes written.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    /// Says that nobody makes requests any more.
    pub(crate) fn leave(&self) {
        self.is_left.store(true, Relaxed);
    }

    /// Whether nobody makes requests any more.
    pub(crate) fn is_left(&self) -> bool {
        self.is_left.load(Relaxed)
    }

    fn read(&self, count: usize) -> io::Result<()> {
        self.passed.fetch_add(count as u64, Relaxed);
        let left = self.left.load(Relaxed);
        match left.checked_sub(count) {
            Some(left) => {
                self.left.store(left, Relaxed);
                Ok(())
            }
            None => Err(io::Error::other("the endpoint sends more than the requests call for")),
        }
    }

    fn wrote(&self, count: usize) {
        self.passed.fetch_add(count as u64, Relaxed);
        self.written.fetch_add(count as u64, Relaxed);
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Relaxed);
    }
}

/// A stream whose traffic is counted.
#[derive(Debug)]
pub(crate) struct Counted<S> {
    stream: S,
    traffic: Arc<Traffic>,
}

impl<S> Counted<S> {
    /// Counts from here on.
    pub(crate) fn new(stream: S, traffic: Arc<Traffic>) -> Self {
        Self { stream, traffic }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, traffic } = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(stream).poll_read(context, buffer);
        match (traffic.read(buffer.filled().len() - before), read) {
            (Err(error), Poll::Ready(Ok(()))) => Poll::Ready(Err(error)),
            (_, read) => read,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, traffic } = self.get_mut();
        let written = Pin::new(stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(count)) = written {
            traffic.wrote(count);
        }
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, traffic } = self.get_mut();
        let written = Pin::new(stream).poll_write_vectored(context, pieces);
        if let Poll::Ready(Ok(count)) = written {
            traffic.wrote(count);
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_may_send_what_requests_call_for_and_no_more() {
        let traffic = Traffic::new();
        assert!(traffic.read(BASE_BYTES).is_ok());
        assert!(traffic.read(1).is_err());
        let request = traffic.begin();
        assert!(traffic.awaits_answers() && traffic.read(BYTES_PER_REQUEST).is_ok());
        drop(request);
        assert!(!traffic.awaits_answers() && traffic.read(1).is_err());
        for _ in 0..1000 {
            traffic.begin();
        }
        assert!(traffic.read(MOST_BYTES).is_ok() && traffic.read(1).is_err());
    }
}
