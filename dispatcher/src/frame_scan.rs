//! What the frames of an HTTP/2 connection say that the library does not pass on.

/// Length, kind, flags and stream of a frame.
const HEAD_BYTES: usize = 9;
const DATA: u8 = 0;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;

/// Follows the frames that are read, however they are cut.
#[derive(Debug, Default)]
pub(crate) struct FrameScan {
    head: [u8; HEAD_BYTES],
    /// Bytes of the head that were read.
    known: usize,
    /// Bytes of the payload that are still to come.
    payload: usize,
}

/// What was read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Frames of data without any that end nothing.
    pub(crate) empty: usize,
    /// Whether the endpoint said that it will close the connection.
    pub(crate) goes_away: bool,
}

impl FrameScan {
    /// Takes what was read next.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) -> Seen {
        let mut seen = Seen::default();
        while !bytes.is_empty() {
            if self.payload > 0 {
                let passed = self.payload.min(bytes.len());
                self.payload -= passed;
                bytes = &bytes[passed..];
                continue;
            }
            let taken = (HEAD_BYTES - self.known).min(bytes.len());
            self.head[self.known..self.known + taken].copy_from_slice(&bytes[..taken]);
            self.known += taken;
            bytes = &bytes[taken..];
            if self.known == HEAD_BYTES {
                self.known = 0;
                let [long, middle, short, kind, flags, ..] = self.head;
                self.payload = u32::from_be_bytes([0, long, middle, short]) as usize;
                let is_empty = kind == DATA && self.payload == 0 && flags & END_STREAM == 0;
                seen.empty += usize::from(is_empty);
                seen.goes_away |= kind == GOAWAY;
            }
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_told_apart_however_they_are_cut() {
        let frames = [
            &[0, 0, 2, DATA, 0, 0, 0, 0, 1, GOAWAY, GOAWAY][..],
            &[0, 0, 0, DATA, 0, 0, 0, 0, 1],
            &[0, 0, 0, DATA, END_STREAM, 0, 0, 0, 1],
            &[0, 0, 0, 4, 1, 0, 0, 0, 0],
            &[0, 0, 0, DATA, 0, 0, 0, 0, 3],
        ]
        .concat();
        let goaway = [0, 0, 8, GOAWAY, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for piece in 1..frames.len() {
            let mut scan = FrameScan::default();
            let empty: usize = frames.chunks(piece).map(|piece| scan.feed(piece).empty).sum();
            assert_eq!(empty, 2, "{piece}");
            assert_eq!(scan.feed(&goaway), Seen { empty: 0, goes_away: true }, "{piece}");
            assert_eq!(scan.feed(&frames), Seen { empty: 2, goes_away: false }, "{piece}");
        }
    }
}
