//! From the wire to the bytes that hold the events: the body within its limits, inflated, and written as JSON.

use crate::{
    binary,
    budget::Share,
    config::Settings,
    error::Refusal,
    inflate::{inflate, window_bytes},
    media::{self, Coding, Format},
};
use bytes::Bytes;
use http::{HeaderMap, header::EXPECT};
use http_body_util::BodyExt;
use hyper::body::Body;
use std::time::Duration;
use tokio::time::timeout;

/// Largest buffer that is taken for a body on its announced length alone, in bytes; a larger body grows it.
const FIRST_BUFFER_BYTES: u64 = 256 * 1024;
/// For how long a refused request's body is read and dropped. Closing a socket with unread data would make the system
/// discard the answer; and read to its end, the connection can go on.
const DISCARD_TIME: Duration = Duration::from_secs(1);

/// What a body is, by its request's headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Media {
    /// How its events are written.
    pub(crate) format: Format,
    /// How it is compressed, if it is.
    pub(crate) coding: Option<Coding>,
}

impl Media {
    /// Refuses what is not read, before a body is.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Refusal> {
        Ok(Self { format: media::format(headers)?, coding: media::coding(headers)? })
    }

    /// From a body as it was sent to one that can be cut into events.
    pub(crate) async fn unpack(
        self,
        headers: &HeaderMap,
        sent: Bytes,
        share: &mut Share<'_>,
        settings: &Settings,
    ) -> Result<Bytes, Refusal> {
        let body = match self.coding {
            Some(coding) => {
                let limit = settings.inflated_limit(sent.len() + window_bytes(coding));
                inflate(coding, &sent, share, limit).await?
            }
            None => sent,
        };
        match self.format {
            Format::Binary => binary::to_structured(headers, &body, share),
            _ => Ok(body),
        }
    }
}

/// Reads the body: at most `limit` bytes within `time`, and no more than the process has room for. Room for the
/// announced length is taken first, so that a body that does not fit is refused before it is read.
pub(crate) async fn read_body<B>(
    body: &mut B,
    share: &mut Share<'_>,
    limit: usize,
    time: Duration,
) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    let announced = within(body.size_hint().lower(), limit)?;
    share.cover(announced)?;
    timeout(time, collect(body, share, limit)).await.map_err(|_| Refusal::SlowBody { limit: time })?
}

fn within(bytes: u64, limit: usize) -> Result<usize, Refusal> {
    usize::try_from(bytes).ok().filter(|bytes| *bytes <= limit).ok_or(Refusal::BodyTooLarge { limit })
}

/// A body that arrives in one piece is not copied.
async fn collect<B>(body: &mut B, share: &mut Share<'_>, limit: usize) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    let announced = body.size_hint().lower().min(FIRST_BUFFER_BYTES) as usize;
    let Some(first) = next_data(body).await? else { return Ok(Bytes::new()) };
    share.cover(within(first.len() as u64, limit)?)?;
    let Some(second) = next_data(body).await? else { return Ok(first) };
    let mut whole = Vec::with_capacity(announced.max(first.len() + second.len()));
    whole.extend_from_slice(&first);
    let mut piece = Some(second);
    while let Some(data) = piece {
        share.cover(within((whole.len() + data.len()) as u64, limit)?)?;
        whole.extend_from_slice(&data);
        piece = next_data(body).await?;
    }
    Ok(whole.into())
}

/// The next bytes; trailers are passed over.
async fn next_data<B>(body: &mut B) -> Result<Option<Bytes>, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    while let Some(frame) = body.frame().await {
        match frame.map_err(|_| Refusal::BrokenBody)?.into_data() {
            Ok(data) => return Ok(Some(data)),
            Err(_trailers) => {}
        }
    }
    Ok(None)
}

/// Reads and drops what is left of a refused request's body, unless that is more than `limit` bytes.
pub(crate) async fn discard<B>(headers: &HeaderMap, body: &mut B, limit: usize)
where
    B: Body<Data = Bytes> + Unpin,
{
    // A client that asks before it sends must not be told to go on.
    if body.is_end_stream() || headers.contains_key(EXPECT) || body.size_hint().lower() > limit as u64 {
        return;
    }
    let _ = timeout(DISCARD_TIME, async {
        let mut dropped = 0;
        while dropped <= limit {
            match next_data(body).await {
                Ok(Some(data)) => dropped += data.len(),
                Ok(None) | Err(_) => break,
            }
        }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{BodyBudget, TenantBytes};
    use http_body_util::Full;
    use hyper::body::Frame;
    use metrics::Gauge;
    use proptest::prelude::*;
    use std::{
        convert::Infallible,
        io::Write,
        pin::Pin,
        task::{Context, Poll},
    };

    /// Pieces without an announced length.
    fn pieces(sizes: Vec<usize>) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        let pieces: Vec<_> = sizes.into_iter().map(|size| Bytes::from(vec![b'x'; size])).collect();
        Pieces(pieces.into_iter())
    }

    struct Pieces(std::vec::IntoIter<Bytes>);

    impl Body for Pieces {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.next().map(|piece| Ok(Frame::data(piece))))
        }
    }

    async fn read<B>(body: &mut B, budget: &BodyBudget, limit: usize) -> Result<Bytes, Refusal>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let tenant = TenantBytes::default();
        read_body(body, &mut budget.share(&tenant), limit, Duration::from_secs(5)).await
    }

    #[tokio::test]
    async fn the_limit_holds_for_announced_and_unannounced_lengths() {
        let budget = BodyBudget::new(1000, 1000, Gauge::noop());
        let refused = Err(Refusal::BodyTooLarge { limit: 10 });
        assert_eq!(read(&mut Full::new(Bytes::from_static(b"12345678901")), &budget, 10).await, refused);
        assert_eq!(read(&mut pieces(vec![11]), &budget, 10).await, refused);
        assert_eq!(read(&mut pieces(vec![5, 5, 1]), &budget, 10).await, refused);
        assert_eq!(read(&mut pieces(vec![5, 0, 5]), &budget, 10).await.unwrap().len(), 10);
        assert_eq!(read(&mut pieces(vec![]), &budget, 10).await.unwrap().len(), 0);
    }

    #[tokio::test]
    async fn bodies_together_stay_within_the_budget_announced_or_not() {
        let budget = BodyBudget::new(10, 10, Gauge::noop());
        let other = TenantBytes::default();
        let mut held = budget.share(&other);
        held.cover(4).unwrap();
        let full = Err(Refusal::ReadingFull);
        assert_eq!(read(&mut Full::new(Bytes::from_static(b"1234567")), &budget, 10).await, full);
        assert_eq!(read(&mut pieces(vec![7]), &budget, 10).await, full);
        assert_eq!(read(&mut pieces(vec![3, 3, 1]), &budget, 10).await, full);
        assert_eq!(read(&mut pieces(vec![3, 3]), &budget, 10).await.unwrap().len(), 6);
        drop(held);
        assert_eq!(read(&mut pieces(vec![3, 3, 4]), &budget, 10).await.unwrap().len(), 10);
    }

    proptest! {
        #[test]
        fn however_a_body_arrives_it_is_the_same(
            plain in proptest::collection::vec(any::<u8>(), 0..3000), sizes in proptest::collection::vec(0..700_usize, 0..12),
            coding in prop::sample::select(vec![None, Some(Coding::Gzip), Some(Coding::Zstd)]),
        ) {
            let sent = match coding {
                None => plain.clone(),
                Some(Coding::Gzip) => {
                    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                    encoder.write_all(&plain).unwrap();
                    encoder.finish().unwrap()
                }
                Some(Coding::Zstd) => zstd::encode_all(plain.as_slice(), 1).unwrap(),
            };
            let (mut parts, mut rest) = (Vec::new(), Bytes::from(sent));
            for size in sizes {
                parts.push(rest.split_to(size.min(rest.len())));
            }
            parts.push(rest);
            let (budget, tenant) = (BodyBudget::new(1 << 24, 1 << 24, Gauge::noop()), TenantBytes::default());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            let unpacked = runtime.block_on(async {
                let mut share = budget.share(&tenant);
                let body = read_body(&mut Pieces(parts.into_iter()), &mut share, 1 << 20, Duration::from_secs(60)).await?;
                let media = Media { format: Format::Json, coding };
                media.unpack(&HeaderMap::new(), body, &mut share, &Settings::default()).await
            });
            prop_assert_eq!(unpacked.unwrap(), plain);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_never_arrives_is_given_up() {
        struct Silent;
        impl Body for Silent {
            type Data = Bytes;
            type Error = Infallible;
            fn poll_frame(
                self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
                Poll::Pending
            }
        }
        let limit = Duration::from_secs(5);
        assert_eq!(
            read(&mut Silent, &BodyBudget::new(10, 10, Gauge::noop()), 10).await,
            Err(Refusal::SlowBody { limit })
        );
    }
}
