//! Response bodies: fixed, slow and endless, fast and endless.

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Interval;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Pause between two bytes of a dripping body.
const DRIP_PAUSE: Duration = Duration::from_secs(1);
/// One piece of a fast endless body.
static CHUNK: [u8; 64 * 1024] = [b'.'; 64 * 1024];

/// The body of one answer. Endless ones end when the receiver stops.
pub(crate) enum AnswerBody {
    Fixed(Option<Bytes>),
    Drip { pause: Interval, stopped: Pin<Box<WaitForCancellationFutureOwned>> },
    Big { stop: CancellationToken },
}

impl AnswerBody {
    pub(crate) fn fixed(bytes: impl Into<Bytes>) -> Self {
        Self::Fixed(Some(bytes.into()))
    }

    pub(crate) fn drip(stop: CancellationToken) -> Self {
        Self::Drip { pause: tokio::time::interval(DRIP_PAUSE), stopped: Box::pin(stop.cancelled_owned()) }
    }

    pub(crate) fn big(stop: CancellationToken) -> Self {
        Self::Big { stop }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Fixed(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Drip { pause, stopped } => {
                if stopped.as_mut().poll(context).is_ready() {
                    return Poll::Ready(None);
                }
                pause.poll_tick(context).map(|_| Some(Ok(Frame::data(Bytes::from_static(b".")))))
            }
            Self::Big { stop } if stop.is_cancelled() => Poll::Ready(None),
            Self::Big { .. } => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&CHUNK))))),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Fixed(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Fixed(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Self::Drip { .. } | Self::Big { .. } => SizeHint::default(),
        }
    }
}
