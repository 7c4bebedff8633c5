//! Compressed bodies: inflated in slices, within their limit and the process's memory.
//!
//! The body has arrived as a whole before it is inflated, so a client that is slow holds its compressed bytes and no
//! decoder. Concatenated gzip members and zstd frames are one body, as their RFCs say; anything else after the end of
//! one is refused.

use crate::{budget::Share, error::Refusal, media::Coding};
use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use std::io::{self, BufRead, ErrorKind, Read};
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder, Operation};

/// Work between two points at which other requests of this thread have their turn, in bytes read and written: some
/// 0.1 ms.
const SLICE_BYTES: usize = 128 * 1024;
/// What a step counts beside its bytes, so that a body of empty members or frames is sliced as well.
const STEP_BYTES: usize = 512;
/// First size of the inflated body's buffer, in bytes; it doubles as it fills.
const FIRST_BUFFER_BYTES: usize = 16 * 1024;
/// Largest window of a zstd frame, as a power of two: RFC 9659 bounds the coding's windows by 8 MiB, and a few bytes
/// of header must not take more memory than that.
const ZSTD_WINDOW_LOG: u32 = 23;
/// The largest window of all codings, in bytes.
pub(crate) const MAX_WINDOW_BYTES: usize = 1 << ZSTD_WINDOW_LOG;

const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
/// The upper 28 bits of a skippable frame's magic number, RFC 8878, section 3.1.2.
const ZSTD_SKIPPABLE: u32 = 0x184D_2A50;

/// Inflates `compressed` to at most `limit` bytes. All that is held, `compressed` included, is taken from the share as it
/// grows.
pub(crate) async fn inflate(
    coding: Coding,
    compressed: &[u8],
    share: &mut Share<'_>,
    limit: usize,
) -> Result<Bytes, Refusal> {
    let mut decoder = Decoder::new(coding, compressed)?;
    let (mut inflated, mut length, mut spent) = (Vec::new(), 0, 0);
    loop {
        if length == inflated.len() {
            // A byte more than the limit tells a body at its limit from a larger one.
            let size = (2 * length).max(FIRST_BUFFER_BYTES).min(limit.saturating_add(1));
            share.cover(compressed.len() + size + size.min(window_bytes(coding)))?;
            inflated.reserve_exact(size - length);
            inflated.resize(size, 0);
        }
        match decoder.step(&mut inflated[length..])? {
            Step::Ended => break,
            Step::Went { read, written } => {
                length += written;
                spent += read + written + STEP_BYTES;
            }
        }
        if length > limit {
            return Err(Refusal::InflatedTooLarge { limit });
        }
        if spent >= SLICE_BYTES {
            spent = 0;
            tokio::task::yield_now().await;
        }
    }
    inflated.truncate(length);
    Ok(inflated.into())
}

/// How much of the inflated body a decoder may keep a second time. Gzip's 32 KiB are not worth counting.
pub(crate) fn window_bytes(coding: Coding) -> usize {
    match coding {
        Coding::Gzip => 0,
        Coding::Zstd => MAX_WINDOW_BYTES,
    }
}

/// What a decoder did.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// So many bytes were read and written.
    Went { read: usize, written: usize },
    /// The body is complete.
    Ended,
}

enum Decoder<'a> {
    Gzip(Box<MultiGzDecoder<Input<'a>>>),
    Zstd(Frames<'a>),
}

impl<'a> Decoder<'a> {
    fn new(coding: Coding, compressed: &'a [u8]) -> Result<Self, Refusal> {
        Ok(match coding {
            Coding::Gzip => {
                Self::Gzip(Box::new(MultiGzDecoder::new(Input { rest: compressed, turn: SLICE_BYTES })))
            }
            Coding::Zstd => Self::Zstd(Frames::new(compressed)?),
        })
    }

    /// Goes on, by at most a slice of input and what fits into `output`, which is not empty.
    fn step(&mut self, output: &mut [u8]) -> Result<Step, Refusal> {
        let room = output.len().min(SLICE_BYTES);
        match self {
            Self::Gzip(decoder) => gunzip(decoder, &mut output[..room]),
            Self::Zstd(frames) => frames.step(&mut output[..room]),
        }
    }
}

/// The compressed bytes, given out in turns: at the end of one, reading would block.
#[derive(Debug)]
struct Input<'a> {
    rest: &'a [u8],
    turn: usize,
}

impl Read for Input<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(into)?;
        self.consume(read);
        Ok(read)
    }
}

impl BufRead for Input<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        match self.turn {
            0 if !self.rest.is_empty() => Err(ErrorKind::WouldBlock.into()),
            turn => Ok(&self.rest[..turn.min(self.rest.len())]),
        }
    }

    fn consume(&mut self, amount: usize) {
        self.rest = &self.rest[amount..];
        self.turn -= amount;
    }
}

fn gunzip(decoder: &mut MultiGzDecoder<Input<'_>>, output: &mut [u8]) -> Result<Step, Refusal> {
    let before = decoder.get_ref().rest.len();
    decoder.get_mut().turn = SLICE_BYTES;
    let written = match decoder.read(output) {
        Ok(0) => return Ok(Step::Ended),
        Ok(written) => written,
        Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Err(truncated("gzip")),
        Err(error) => return Err(corrupt("gzip", &error)),
    };
    Ok(Step::Went { read: before - decoder.get_ref().rest.len(), written })
}

/// The frames of a zstd body.
struct Frames<'a> {
    decoder: ZstdDecoder<'static>,
    rest: &'a [u8],
    /// Whether a frame has begun that has not ended.
    open: bool,
}

impl<'a> Frames<'a> {
    fn new(rest: &'a [u8]) -> Result<Self, Refusal> {
        let mut decoder = ZstdDecoder::new().map_err(|error| corrupt("zstd", &error))?;
        decoder
            .set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG))
            .map_err(|error| corrupt("zstd", &error))?;
        if rest.is_empty() {
            return Err(truncated("zstd"));
        }
        Ok(Self { decoder, rest, open: false })
    }

    fn step(&mut self, output: &mut [u8]) -> Result<Step, Refusal> {
        if !self.open {
            if self.rest.is_empty() {
                return Ok(Step::Ended);
            }
            check_magic(self.rest)?;
        }
        let input = &self.rest[..self.rest.len().min(SLICE_BYTES)];
        let status = self.decoder.run_on_buffers(input, output).map_err(|error| corrupt("zstd", &error))?;
        self.rest = &self.rest[status.bytes_read..];
        self.open = status.remaining != 0;
        if self.open && self.rest.is_empty() && status.bytes_written < output.len() {
            return Err(truncated("zstd"));
        }
        Ok(Step::Went { read: status.bytes_read, written: status.bytes_written })
    }
}

/// Looks at how a frame begins. The library may have been built with the decoders of formats before zstd 1.0, which
/// nobody sends and which have seen less testing.
fn check_magic(frame: &[u8]) -> Result<(), Refusal> {
    let Some(magic) = frame.first_chunk() else { return Err(truncated("zstd")) };
    if *magic == ZSTD_MAGIC || u32::from_le_bytes(*magic) & !0xF == ZSTD_SKIPPABLE {
        return Ok(());
    }
    Err(Refusal::Malformed("the body is not valid zstd: no frame where one must begin".to_owned()))
}

fn truncated(coding: &str) -> Refusal {
    Refusal::Malformed(format!("the body is not valid {coding}: it ends too early"))
}

fn corrupt(coding: &str, error: &io::Error) -> Refusal {
    Refusal::Malformed(format!("the body is not valid {coding}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{BodyBudget, TenantBytes};
    use flate2::{Compression, write::GzEncoder};
    use metrics::Gauge;
    use proptest::prelude::*;
    use std::io::Write;

    const ROOM: usize = 64 * 1024 * 1024;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 1).unwrap()
    }

    type Compress = fn(&[u8]) -> Vec<u8>;
    const CODINGS: [(Coding, Compress); 2] = [(Coding::Gzip, gzip), (Coding::Zstd, zstd)];

    fn inflated_within(
        coding: Coding,
        compressed: &[u8],
        room: usize,
        limit: usize,
    ) -> Result<Bytes, Refusal> {
        let (budget, tenant) = (BodyBudget::new(room, room, Gauge::noop()), TenantBytes::default());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(inflate(coding, compressed, &mut budget.share(&tenant), limit))
    }

    fn inflated(coding: Coding, compressed: &[u8]) -> Result<Bytes, Refusal> {
        inflated_within(coding, compressed, ROOM, 1_000_000)
    }

    fn is_malformed(result: &Result<Bytes, Refusal>) -> bool {
        matches!(result, Err(Refusal::Malformed(_)))
    }

    #[test]
    fn bodies_of_every_size_come_back() {
        for (coding, compress) in CODINGS {
            for length in [0, 1, FIRST_BUFFER_BYTES - 1, FIRST_BUFFER_BYTES, FIRST_BUFFER_BYTES + 1, 500_000]
            {
                let plain: Vec<u8> = (0..length).map(|n| (n * n / 7) as u8).collect();
                assert_eq!(inflated(coding, &compress(&plain)).unwrap(), plain, "{coding:?} {length}");
            }
        }
    }

    #[test]
    fn members_and_frames_may_follow_one_another() {
        for (coding, compress) in CODINGS {
            let parts = [compress(b"[1,"), compress(b""), compress(b"2]")].concat();
            assert_eq!(inflated(coding, &parts).unwrap(), "[1,2]");
            let many = compress(b"").repeat(20_000);
            assert_eq!(inflated(coding, &many).unwrap(), "");
        }
        let skippable = [&[0x5A, 0x2A, 0x4D, 0x18, 3, 0, 0, 0, 1, 2, 3], zstd(b"a").as_slice()].concat();
        assert_eq!(inflated(Coding::Zstd, &skippable).unwrap(), "a");
    }

    #[test]
    fn what_is_cut_short_or_followed_by_something_else_is_malformed() {
        for (coding, compress) in CODINGS {
            let good = compress(&b"some text, ".repeat(2000));
            for end in 0..good.len() {
                let result = inflated(coding, &good[..end]);
                assert!(is_malformed(&result), "{coding:?} {end}: {result:?}");
            }
            for tail in
                [b"x".as_slice(), b"\0\0\0\0\0\0\0\0\0\0", b"{\"type\":\"a\"}", &good[..good.len() - 1]]
            {
                let result = inflated(coding, &[&good, tail].concat());
                assert!(is_malformed(&result), "{coding:?} {tail:?}: {result:?}");
            }
        }
    }

    #[test]
    fn a_flipped_checksum_is_malformed() {
        let mut body = gzip(b"some text");
        let crc = body.len() - 8;
        body[crc] ^= 1;
        assert!(is_malformed(&inflated(Coding::Gzip, &body)));
    }

    #[test]
    fn a_bomb_is_stopped_at_the_limit_and_takes_no_more_memory_than_it_has_inflated() {
        for (coding, compress) in CODINGS {
            let bomb = compress(&vec![b' '; 10_000_000]);
            assert!(bomb.len() < 20_000);
            assert_eq!(inflated(coding, &bomb), Err(Refusal::InflatedTooLarge { limit: 1_000_000 }));
            assert_eq!(inflated_within(coding, &bomb, 1_000_000, ROOM), Err(Refusal::ReadingFull));
            let (one, at_limit) = (compress(&[b'x'; 101]), compress(&[b'x'; 100]));
            assert_eq!(
                inflated_within(coding, &one, ROOM, 100),
                Err(Refusal::InflatedTooLarge { limit: 100 })
            );
            assert_eq!(inflated_within(coding, &at_limit, ROOM, 100).unwrap().len(), 100);
        }
    }

    /// RFC 9659: windows of more than 8 MiB are not read.
    #[test]
    fn a_frame_with_a_large_window_is_refused_for_its_header() {
        let frame =
            |window_log: u8| [&ZSTD_MAGIC, [0, (window_log - 10) << 3, 1, 0].as_slice(), &[0]].concat();
        assert_eq!(inflated(Coding::Zstd, &frame(23)).unwrap(), "");
        for window_log in [24, 27, 31] {
            assert!(is_malformed(&inflated(Coding::Zstd, &frame(window_log))), "{window_log}");
        }
    }

    #[test]
    fn formats_before_zstd_1_0_are_refused() {
        for version in 0x22..=0x27 {
            assert!(is_malformed(&inflated(Coding::Zstd, &[version, 0xB5, 0x2F, 0xFD, 0, 0, 0, 0, 0, 0])));
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_inflated_or_refused_with_a_4xx(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            for coding in [Coding::Gzip, Coding::Zstd] {
                if let Err(refusal) = inflated(coding, &body) {
                    prop_assert!((400..500).contains(&refusal.problem().status));
                }
            }
        }

        #[test]
        fn damaged_bodies_are_inflated_or_refused_with_a_4xx(
            plain in proptest::collection::vec(any::<u8>(), 0..2000), damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            for (coding, compress) in CODINGS {
                let mut body = compress(&plain);
                for (index, byte) in &damage {
                    let at = index.index(body.len());
                    body[at] = *byte;
                }
                if let Err(refusal) = inflated(coding, &body) {
                    prop_assert!((400..500).contains(&refusal.problem().status));
                }
            }
        }

        #[test]
        fn however_a_body_is_cut_into_members_it_is_the_same(
            plain in proptest::collection::vec(any::<u8>(), 1..3000), cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..5),
        ) {
            let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(plain.len())).chain([plain.len()]).collect();
            ends.sort_unstable();
            for (coding, compress) in CODINGS {
                let (mut body, mut start) = (Vec::new(), 0);
                for end in &ends {
                    body.extend(compress(&plain[start..*end]));
                    start = *end;
                }
                prop_assert_eq!(inflated(coding, &body).unwrap(), plain.clone());
            }
        }
    }
}
