//! The `data` of events: JSON objects of an exact size, easy or hard to compress.

use super::workload::Entropy;

/// Smallest `data`: an object with one empty text and room for a byte or two.
pub(super) const MIN_DATA_BYTES: usize = 16;

/// What goes around the random characters of hard `data`.
const RANDOM_HEAD: &[u8] = b"{\"blob\":\"";
const RANDOM_TAIL: &[u8] = b"\"}";

/// What goes around the lines of easy `data`: many short members, as events have them, then a text that fills up.
const TEXT_HEAD: &[u8] = b"{\"lines\":[";
const TEXT_TAIL: &[u8] = b"\"}";
const TEXT_NOTE: &[u8] = b"],\"note\":\"";
const TEXT_SHORT_HEAD: &[u8] = b"{\"note\":\"";
const LINES: [&[u8]; 3] = [
    br#"{"sku":"TEA-001","name":"Green tea, loose leaf, 250 g","quantity":2,"price":4.90}"#,
    br#"{"sku":"CUP-014","name":"Cup, porcelain","quantity":1,"price":12.50}"#,
    br#"{"sku":"POT-003","name":"Teapot, cast iron, 0.8 l","quantity":1,"price":49.00}"#,
];
const FILLER: &[u8] = b"Leave it at the door if nobody is in. ";

/// Random characters to copy from, in bytes. Larger than what compressors of records look back on, so that two events
/// do not share their content within a batch.
const ARENA_BYTES: usize = 8 * 1024 * 1024;
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Appends `data` of exactly `bytes` bytes, at least [`MIN_DATA_BYTES`]. Returns the place of the random characters in
/// it: where they start after the start of `data`, and how many they are; none if `data` is always the same.
pub(super) fn append(out: &mut Vec<u8>, bytes: usize, entropy: Entropy) -> Option<(usize, usize)> {
    let bytes = bytes.max(MIN_DATA_BYTES);
    match entropy {
        Entropy::Text => {
            append_text(out, bytes);
            None
        }
        Entropy::Random => {
            let random = bytes - RANDOM_HEAD.len() - RANDOM_TAIL.len();
            out.extend_from_slice(RANDOM_HEAD);
            out.resize(out.len() + random, b'x');
            out.extend_from_slice(RANDOM_TAIL);
            Some((RANDOM_HEAD.len(), random))
        }
    }
}

fn append_text(out: &mut Vec<u8>, bytes: usize) {
    let end = out.len() + bytes - TEXT_TAIL.len();
    let first = LINES[0].len() + TEXT_HEAD.len() + TEXT_NOTE.len();
    if out.len() + first > end {
        out.extend_from_slice(TEXT_SHORT_HEAD);
    } else {
        out.extend_from_slice(TEXT_HEAD);
        let mut lines = LINES.iter().cycle();
        out.extend_from_slice(LINES[0]);
        lines.next();
        for line in lines {
            if out.len() + 1 + line.len() + TEXT_NOTE.len() > end {
                break;
            }
            out.push(b',');
            out.extend_from_slice(line);
        }
        out.extend_from_slice(TEXT_NOTE);
    }
    let missing = end - out.len();
    out.extend(FILLER.iter().cycle().take(missing));
    out.extend_from_slice(TEXT_TAIL);
}

/// Random characters of base64, handed out piece after piece; they repeat after [`ARENA_BYTES`].
#[derive(Debug)]
pub(super) struct Arena {
    characters: Box<[u8]>,
    next: usize,
}

impl Arena {
    /// Filled from a seed: the same for the same seed.
    pub(super) fn new(seed: u64) -> Self {
        let mut state = seed;
        let mut word = || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            scramble(state)
        };
        let mut characters = Vec::with_capacity(ARENA_BYTES);
        while characters.len() < ARENA_BYTES {
            let random = word();
            // Ten characters of six bits each.
            characters.extend((0..10).map(|place| ALPHABET[(random >> (6 * place)) as usize % 64]));
        }
        characters.truncate(ARENA_BYTES);
        Self { characters: characters.into(), next: 0 }
    }

    /// Fills a piece with the next characters.
    pub(super) fn fill(&mut self, mut piece: &mut [u8]) {
        while !piece.is_empty() {
            let count = piece.len().min(self.characters.len() - self.next);
            let (now, later) = piece.split_at_mut(count);
            now.copy_from_slice(&self.characters[self.next..self.next + count]);
            self.next = (self.next + count) % self.characters.len();
            piece = later;
        }
    }
}

/// SplitMix64's finisher.
fn scramble(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn data_is_a_json_object_of_the_size_asked_for() {
        let mut arena = Arena::new(1);
        for bytes in (MIN_DATA_BYTES..600).chain([1000, 10_000, 1_000_000]) {
            for entropy in [Entropy::Text, Entropy::Random] {
                let mut data = Vec::new();
                if let Some((at, count)) = append(&mut data, bytes, entropy) {
                    arena.fill(&mut data[at..at + count]);
                }
                assert_eq!(data.len(), bytes, "{entropy:?}");
                let value: Value = serde_json::from_slice(&data).unwrap();
                assert!(value.is_object());
            }
        }
    }

    #[test]
    fn text_can_be_compressed_and_random_characters_hardly() {
        let compressed = |entropy| {
            let mut data = Vec::new();
            if let Some((at, count)) = append(&mut data, 20_000, entropy) {
                Arena::new(7).fill(&mut data[at..at + count]);
            }
            zstd::bulk::compress(&data, 3).unwrap().len()
        };
        assert!(compressed(Entropy::Text) < 1000);
        assert!(compressed(Entropy::Random) > 14_000);
    }

    #[test]
    fn the_arena_goes_on_where_it_stopped_and_starts_again_at_its_end() {
        let mut arena = Arena::new(3);
        let mut pieces = vec![0; ARENA_BYTES + 1000];
        let (first, rest) = pieces.split_at_mut(777);
        arena.fill(first);
        arena.fill(rest);
        // Without showing eight megabytes if not.
        assert!(pieces[..ARENA_BYTES] == *arena.characters);
        assert!(pieces[ARENA_BYTES..] == arena.characters[..1000]);
    }
}
