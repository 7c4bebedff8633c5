//! What goes through a connection that many requests share: counted, and bounded by what the requests call for.

use crate::frame_scan::FrameScan;
use bytes::{Buf, Bytes};
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
/// Empty frames of data after which a connection gets no further requests: the library ends it after 100 in its whole life, with all
/// requests that are under way then.
const MOST_EMPTY_FRAMES: usize = 50;

/// The counts of one connection. Shared by its requests and the task that reads and writes; all of them are on one thread.
#[derive(Debug)]
pub(crate) struct Traffic {
    /// Bytes read.
    read: AtomicU64,
    /// Bytes written.
    written: AtomicU64,
    /// Bytes that the endpoint may still send.
    left: AtomicUsize,
    empty_frames: AtomicUsize,
    goes_away: AtomicBool,
    under_way: AtomicUsize,
    /// A request was given up in a way that bodes ill for the next.
    has_failed: AtomicBool,
    is_left: AtomicBool,
}

/// A request that is under way. Dropped before it is [over](Self::end), it was given up: with it the connection, if nothing was read
/// since it began, or if it was not wholly sent. In the one case the connection may be dead. In the other it is the endpoint that
/// takes too little of this or of other requests, and the next ones would stand in the same queue.
pub(crate) struct UnderWay<'t> {
    traffic: &'t Traffic,
    /// Bytes read before.
    read: u64,
    /// Bytes of its body that are still to be written.
    unsent: Arc<AtomicUsize>,
    is_over: bool,
}

/// A body that is being written.
#[derive(Debug)]
pub(crate) struct Outgoing {
    rest: Bytes,
    unsent: Arc<AtomicUsize>,
}

impl Traffic {
    /// Of a connection over which nothing went.
    pub(crate) fn new() -> Self {
        Self {
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            left: AtomicUsize::new(BASE_BYTES),
            empty_frames: AtomicUsize::new(0),
            goes_away: AtomicBool::new(false),
            under_way: AtomicUsize::new(0),
            has_failed: AtomicBool::new(false),
            is_left: AtomicBool::new(false),
        }
    }

    /// Counts a request with this body as under way, and entitles the endpoint to an answer.
    pub(crate) fn begin(&self, body: &Bytes) -> UnderWay<'_> {
        self.left.store((self.left.load(Relaxed) + BYTES_PER_REQUEST).min(MOST_BYTES), Relaxed);
        self.under_way.fetch_add(1, Relaxed);
        let unsent = Arc::new(AtomicUsize::new(body.len()));
        UnderWay { traffic: self, read: self.read(), unsent, is_over: false }
    }

    /// Whether a request is under way.
    pub(crate) fn awaits_answers(&self) -> bool {
        self.under_way.load(Relaxed) > 0
    }

    /// Bytes read: the endpoint lives when they become more.
    pub(crate) fn read(&self) -> u64 {
        self.read.load(Relaxed)
    }

    /// Bytes written.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Relaxed)
    }

    /// Whether the endpoint said that it will close the connection.
    pub(crate) fn goes_away(&self) -> bool {
        self.goes_away.load(Relaxed)
    }

    /// Whether further requests had better go over another connection.
    pub(crate) fn is_spent(&self) -> bool {
        self.has_failed.load(Relaxed)
            || self.goes_away()
            || self.empty_frames.load(Relaxed) >= MOST_EMPTY_FRAMES
    }

    /// Says that nobody makes requests any more.
    pub(crate) fn leave(&self) {
        self.is_left.store(true, Relaxed);
    }

    /// Whether nobody makes requests any more.
    pub(crate) fn is_left(&self) -> bool {
        self.is_left.load(Relaxed)
    }

    fn count_read(&self, count: usize) -> io::Result<()> {
        self.read.fetch_add(count as u64, Relaxed);
        let left = self.left.load(Relaxed);
        match left.checked_sub(count) {
            Some(left) => {
                self.left.store(left, Relaxed);
                Ok(())
            }
            None => Err(io::Error::other("the endpoint sends more than the requests call for")),
        }
    }

    fn count_written(&self, count: usize) {
        self.written.fetch_add(count as u64, Relaxed);
    }
}

impl UnderWay<'_> {
    /// The body, to be written.
    pub(crate) fn outgoing(&self, body: Bytes) -> Outgoing {
        Outgoing { rest: body, unsent: Arc::clone(&self.unsent) }
    }

    /// Says that the request was answered, or has failed.
    pub(crate) fn end(mut self) {
        self.is_over = true;
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.traffic.under_way.fetch_sub(1, Relaxed);
        if !self.is_over && (self.traffic.read() == self.read || self.unsent.load(Relaxed) > 0) {
            self.traffic.has_failed.store(true, Relaxed);
        }
    }
}

impl Buf for Outgoing {
    fn remaining(&self) -> usize {
        self.rest.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.rest
    }

    fn advance(&mut self, count: usize) {
        self.rest.advance(count);
        self.unsent.fetch_sub(count, Relaxed);
    }
}

/// A stream whose traffic is counted.
#[derive(Debug)]
pub(crate) struct Counted<S> {
    stream: S,
    scan: FrameScan,
    traffic: Arc<Traffic>,
}

impl<S> Counted<S> {
    /// Counts from here on.
    pub(crate) fn new(stream: S, traffic: Arc<Traffic>) -> Self {
        Self { stream, scan: FrameScan::default(), traffic }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, scan, traffic } = self.get_mut();
        let before = buffer.filled().len();
        let read = Pin::new(stream).poll_read(context, buffer);
        let bytes = &buffer.filled()[before..];
        let seen = scan.feed(bytes);
        traffic.empty_frames.fetch_add(seen.empty, Relaxed);
        traffic.goes_away.fetch_or(seen.goes_away, Relaxed);
        match (traffic.count_read(bytes.len()), read) {
            (Err(error), Poll::Ready(Ok(()))) => Poll::Ready(Err(error)),
            (_, read) => read,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, traffic, .. } = self.get_mut();
        let written = Pin::new(stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(count)) = written {
            traffic.count_written(count);
        }
        written
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, traffic, .. } = self.get_mut();
        let written = Pin::new(stream).poll_write_vectored(context, pieces);
        if let Poll::Ready(Ok(count)) = written {
            traffic.count_written(count);
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
        assert!(traffic.count_read(BASE_BYTES).is_ok());
        assert!(traffic.count_read(1).is_err());
        let request = traffic.begin(&Bytes::new());
        assert!(traffic.awaits_answers() && traffic.count_read(BYTES_PER_REQUEST).is_ok());
        drop(request);
        assert!(!traffic.awaits_answers() && traffic.count_read(1).is_err());
        for _ in 0..1000 {
            traffic.begin(&Bytes::new());
        }
        assert!(traffic.count_read(MOST_BYTES).is_ok() && traffic.count_read(1).is_err());
    }

    #[test]
    fn a_request_given_up_unheard_or_unsent_spends_the_connection_and_no_other() {
        let body = Bytes::from_static(b"body");
        // read meanwhile, written of the body, over → spent
        let table = [(0, 4, false, true), (9, 3, false, true), (9, 4, false, false), (0, 0, true, false)];
        for (read, written, is_over, spent) in table {
            let traffic = Traffic::new();
            let request = traffic.begin(&body);
            let mut outgoing = request.outgoing(body.clone());
            outgoing.advance(written);
            traffic.count_read(read).unwrap();
            if is_over {
                request.end()
            } else {
                drop(request)
            }
            assert_eq!((traffic.is_spent(), traffic.awaits_answers()), (spent, false), "{read} {written}");
        }
    }
}
