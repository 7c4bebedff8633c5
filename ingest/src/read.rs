//! From the wire to bytes: the headers that say what the body is, and the body within its limits.

use crate::error::Refusal;
use bytes::Bytes;
use http::{
    HeaderMap,
    header::{CONTENT_ENCODING, CONTENT_TYPE, EXPECT},
};
use http_body_util::BodyExt;
use hyper::body::Body;
use std::time::Duration;
use tokio::time::timeout;

/// The content types that are read, as `Accept-Post` tells them.
pub(crate) const ACCEPTED_TYPES: &str =
    "application/json, application/cloudevents+json, application/cloudevents-batch+json";
const MEDIA_TYPES: [&str; 3] =
    ["application/json", "application/cloudevents+json", "application/cloudevents-batch+json"];

/// Largest buffer that is taken for a body on its announced length alone, in bytes; a larger body grows it.
const FIRST_BUFFER_BYTES: u64 = 256 * 1024;
/// How much of a refused request's body is read and dropped, in bytes, so that its connection can go on. Closing a
/// socket with unread data would make the system discard the answer.
const DISCARD_BYTES: usize = 64 * 1024;
/// For how long.
const DISCARD_TIME: Duration = Duration::from_millis(500);

/// Checks that the body is JSON in UTF-8, as it is.
pub(crate) fn check_media(headers: &HeaderMap) -> Result<(), Refusal> {
    let encoded = headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .any(|encoding| !encoding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"identity"));
    if encoded {
        return Err(Refusal::UnsupportedMedia("the body must not have a content encoding"));
    }
    match headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) {
        Some(value) if is_accepted_type(value) => Ok(()),
        _ => Err(Refusal::UnsupportedMedia(
            "the content type must be application/json, application/cloudevents+json or \
             application/cloudevents-batch+json, in UTF-8",
        )),
    }
}

fn is_accepted_type(value: &str) -> bool {
    let (media_type, parameters) = value.split_once(';').unwrap_or((value, ""));
    let media_type = media_type.trim();
    MEDIA_TYPES.iter().any(|known| media_type.eq_ignore_ascii_case(known))
        && parameters.split(';').map(str::trim).filter(|parameter| !parameter.is_empty()).all(is_utf8_charset)
}

fn is_utf8_charset(parameter: &str) -> bool {
    parameter.split_once('=').is_some_and(|(name, value)| {
        name.trim().eq_ignore_ascii_case("charset")
            && value.trim().trim_matches('"').eq_ignore_ascii_case("utf-8")
    })
}

/// Reads the body: at most `limit` bytes, the announced length first, within `time`.
pub(crate) async fn read_body<B>(body: &mut B, limit: usize, time: Duration) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    if body.size_hint().lower() > limit as u64 {
        return Err(Refusal::BodyTooLarge { limit });
    }
    timeout(time, collect(body, limit)).await.map_err(|_| Refusal::SlowBody { limit: time })?
}

/// A body that arrives in one piece is not copied.
async fn collect<B>(body: &mut B, limit: usize) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    let announced = body.size_hint().lower().min(FIRST_BUFFER_BYTES) as usize;
    let Some(first) = next_data(body).await? else { return Ok(Bytes::new()) };
    if first.len() > limit {
        return Err(Refusal::BodyTooLarge { limit });
    }
    let Some(second) = next_data(body).await? else { return Ok(first) };
    let mut whole = Vec::with_capacity(announced.max(first.len() + second.len()));
    whole.extend_from_slice(&first);
    let mut piece = Some(second);
    while let Some(data) = piece {
        if whole.len() + data.len() > limit {
            return Err(Refusal::BodyTooLarge { limit });
        }
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

/// Reads and drops what is left of a refused request's body, if that is little.
pub(crate) async fn discard<B>(headers: &HeaderMap, body: &mut B)
where
    B: Body<Data = Bytes> + Unpin,
{
    // A client that asks before it sends must not be told to go on.
    if body.is_end_stream() || headers.contains_key(EXPECT) || body.size_hint().lower() > DISCARD_BYTES as u64
    {
        return;
    }
    let _ = timeout(DISCARD_TIME, async {
        let mut dropped = 0;
        while dropped <= DISCARD_BYTES {
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
    use http_body_util::Full;
    use hyper::body::Frame;
    use std::{
        convert::Infallible,
        pin::Pin,
        task::{Context, Poll},
    };

    fn verdict(content_type: Option<&str>, encoding: Option<&str>) -> bool {
        let mut headers = HeaderMap::new();
        if let Some(value) = content_type {
            headers.insert(CONTENT_TYPE, value.parse().unwrap());
        }
        if let Some(value) = encoding {
            headers.insert(CONTENT_ENCODING, value.parse().unwrap());
        }
        check_media(&headers).is_ok()
    }

    #[test]
    fn json_in_utf8_is_read_and_nothing_else() {
        let good = [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/cloudevents+json;charset=\"utf-8\"",
            "application/cloudevents-batch+json; charset=utf-8;",
        ];
        for value in good {
            assert!(verdict(Some(value), Some("identity")), "{value}");
        }
        for value in [
            "text/plain",
            "application/json; charset=latin1",
            "application/json;v=1",
            "application/jsonl",
            "",
        ] {
            assert!(!verdict(Some(value), None), "{value}");
        }
        assert!(!verdict(None, None));
        assert!(!verdict(Some("application/json"), Some("gzip")));
    }

    /// Pieces without an announced length.
    fn pieces(sizes: Vec<usize>) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        struct Pieces(std::vec::IntoIter<usize>);
        impl Body for Pieces {
            type Data = Bytes;
            type Error = Infallible;
            fn poll_frame(
                mut self: Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
                Poll::Ready(self.0.next().map(|size| Ok(Frame::data(Bytes::from(vec![b'x'; size])))))
            }
        }
        Pieces(sizes.into_iter())
    }

    #[tokio::test]
    async fn the_limit_holds_for_announced_and_unannounced_lengths() {
        let time = Duration::from_secs(5);
        let refused = Err(Refusal::BodyTooLarge { limit: 10 });
        assert_eq!(read_body(&mut Full::new(Bytes::from_static(b"12345678901")), 10, time).await, refused);
        assert_eq!(read_body(&mut pieces(vec![11]), 10, time).await, refused);
        assert_eq!(read_body(&mut pieces(vec![5, 5, 1]), 10, time).await, refused);
        assert_eq!(read_body(&mut pieces(vec![5, 0, 5]), 10, time).await.unwrap().len(), 10);
        assert_eq!(read_body(&mut pieces(vec![]), 10, time).await.unwrap().len(), 0);
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
        assert_eq!(read_body(&mut Silent, 10, limit).await, Err(Refusal::SlowBody { limit }));
    }
}
