//! Progress as Kafka keeps it: an offset and up to 4,096 bytes of metadata, committed as one value.
//!
//! Metadata is `v1:<run>:<base64>`. The base64 holds varints: the distance from the watermark to the end of what is claimed,
//! then the distances between the open offsets, the first of which is the watermark itself. It is empty when nothing is open.

use crate::tracker::Progress;
use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use floodway_schemas::ids::RunId;

/// The broker's default `offset.metadata.max.bytes`.
pub(crate) const MAX_METADATA_BYTES: usize = 4096;
const VERSION: &str = "v1";
/// `v1:`, a hyphenated UUID and a colon.
const PREFIX_BYTES: usize = 3 + 36 + 1;
/// Bytes before base64 makes four of three.
const MAX_ENCODED_BYTES: usize = (MAX_METADATA_BYTES - PREFIX_BYTES) / 4 * 3;
/// More open offsets never fit: each takes a byte at least.
pub(crate) const MAX_OPEN: usize = MAX_ENCODED_BYTES;
/// Longest varint of a 63-bit number.
const MAX_VARINT_BYTES: usize = 9;

/// The offset and the metadata to commit. When there are more open offsets than fit, less is claimed: what lies beyond is
/// delivered again after a crash, and never lost.
pub(crate) fn encode(run: RunId, progress: &Progress) -> (i64, String) {
    let watermark = progress.watermark();
    let mut high = progress.high;
    let mut distances = Vec::new();
    for pair in progress.open.windows(2) {
        let before = distances.len();
        put_varint(&mut distances, pair[1].abs_diff(pair[0]));
        if distances.len() + MAX_VARINT_BYTES > MAX_ENCODED_BYTES {
            distances.truncate(before);
            high = pair[1];
            break;
        }
    }
    let mut bytes = Vec::with_capacity(distances.len() + MAX_VARINT_BYTES);
    if !progress.open.is_empty() {
        put_varint(&mut bytes, high.abs_diff(watermark));
        bytes.extend_from_slice(&distances);
    }
    (watermark, format!("{VERSION}:{run}:{}", STANDARD_NO_PAD.encode(bytes)))
}

/// What was committed. `None` when the metadata is empty or somebody else's: then nothing above the offset is known, and a new
/// run begins.
pub(crate) fn decode(watermark: i64, metadata: &str) -> Option<(RunId, Progress)> {
    let mut parts = metadata.splitn(3, ':');
    let (Some(VERSION), Some(run), Some(encoded)) = (parts.next(), parts.next(), parts.next()) else {
        return None;
    };
    let run = run.parse().ok()?;
    let bytes = STANDARD_NO_PAD.decode(encoded).ok()?;
    let mut rest = bytes.as_slice();
    if rest.is_empty() {
        return Some((run, Progress::starting_at(watermark)));
    }
    let high = watermark.checked_add_unsigned(take_varint(&mut rest)?)?;
    let mut open = vec![watermark];
    let mut last = watermark;
    while !rest.is_empty() {
        let next = last.checked_add_unsigned(take_varint(&mut rest)?)?;
        if next <= last || next >= high {
            return None;
        }
        open.push(next);
        last = next;
    }
    (watermark < high).then_some((run, Progress { high, open }))
}

/// Little-endian base 128.
fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    const RUN: RunId = RunId(Uuid::nil());

    #[test]
    fn nothing_open_is_just_the_run() {
        let (offset, metadata) = encode(RUN, &Progress::starting_at(7));
        assert_eq!((offset, metadata.as_str()), (7, "v1:00000000-0000-0000-0000-000000000000:"));
        assert_eq!(decode(offset, &metadata), Some((RUN, Progress::starting_at(7))));
    }

    #[test]
    fn empty_and_foreign_metadata_mean_a_new_run() {
        for text in [
            "",
            "v1",
            "v1:x:",
            "v2:00000000-0000-0000-0000-000000000000:",
            "other tool's note",
            "v1:00000000-0000-0000-0000-000000000000:!!",
            "v1:00000000-0000-0000-0000-000000000000:AA",
            "v1:00000000-0000-0000-0000-000000000000://///////////w",
        ] {
            assert_eq!(decode(5, text), None, "{text:?}");
        }
    }

    fn progress(gaps: Vec<u32>, tail: u32, start: i64) -> Progress {
        let mut open = Vec::new();
        let mut next = start;
        for gap in gaps {
            next += i64::from(gap) + 1;
            open.push(next);
        }
        Progress { high: next + 1 + i64::from(tail), open }
    }

    proptest! {
        #[test]
        fn what_fits_round_trips(gaps in proptest::collection::vec(0u32..100_000, 0..900), tail in 0u32..100, start in 0i64..1 << 40) {
            let progress = progress(gaps, tail, start);
            let (offset, metadata) = encode(RUN, &progress);
            prop_assert!(metadata.len() <= MAX_METADATA_BYTES);
            prop_assert_eq!(decode(offset, &metadata), Some((RUN, progress)));
        }

        #[test]
        fn what_does_not_fit_claims_less_and_never_more(gaps in proptest::collection::vec(0u32..1_000_000, 900..4_000), tail in any::<u32>()) {
            let progress = progress(gaps, tail, 0);
            let (offset, metadata) = encode(RUN, &progress);
            prop_assert!(metadata.len() <= MAX_METADATA_BYTES);
            let (_, decoded) = decode(offset, &metadata).unwrap();
            prop_assert_eq!(offset, progress.watermark());
            prop_assert!(decoded.high <= progress.high);
            for offset in &progress.open {
                prop_assert!(!decoded.is_settled(*offset));
            }
        }

        #[test]
        fn arbitrary_metadata_never_panics(offset in any::<i64>(), text in ".{0,80}", bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            decode(offset, &text);
            decode(offset, &format!("v1:{RUN}:{}", STANDARD_NO_PAD.encode(bytes)));
        }
    }
}
