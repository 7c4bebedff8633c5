//! A growing set of numbers, one bit each, that takes memory only where a bit is set.

/// Words of a chunk: 512 bytes for 4,096 numbers.
const CHUNK_WORDS: usize = 64;
const CHUNK_BITS: u64 = CHUNK_WORDS as u64 * 64;

type Chunk = [u64; CHUNK_WORDS];

/// A set of numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Bitmap {
    chunks: Vec<Option<Box<Chunk>>>,
}

impl Bitmap {
    /// Adds a number; whether it is new.
    pub(super) fn insert(&mut self, number: u64) -> bool {
        let (word, bit) = place(number);
        let word = &mut self.chunk_mut(number)[word];
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// Adds `count` numbers from `first` on.
    pub(super) fn insert_range(&mut self, first: u64, count: u64) {
        for number in first..first + count {
            self.insert(number);
        }
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        let (word, bit) = place(number);
        self.chunk(chunk_of(number)).is_some_and(|chunk| chunk[word] & bit != 0)
    }

    /// How many numbers.
    pub(super) fn len(&self) -> u64 {
        self.chunks
            .iter()
            .flatten()
            .flat_map(|chunk| chunk.iter())
            .map(|word| u64::from(word.count_ones()))
            .sum()
    }

    /// Numbers that are also in the other set.
    pub(super) fn common(&self, other: &Self) -> u64 {
        let words = |chunk: usize| self.chunk(chunk).zip(other.chunk(chunk));
        (0..self.chunks.len())
            .filter_map(words)
            .flat_map(|(own, others)| own.iter().zip(others))
            .map(|(own, other)| u64::from((own & other).count_ones()))
            .sum()
    }

    /// Numbers that are not in the other set, in order.
    pub(super) fn without<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = u64> + 'a {
        let chunks =
            self.chunks.iter().enumerate().filter_map(|(index, chunk)| Some((index, chunk.as_ref()?)));
        chunks.flat_map(move |(index, chunk)| {
            let others = other.chunk(index);
            chunk.iter().enumerate().flat_map(move |(word, bits)| {
                let bits = bits & !others.map_or(0, |others| others[word]);
                let first = index as u64 * CHUNK_BITS + word as u64 * 64;
                (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| first + bit)
            })
        })
    }

    fn chunk(&self, index: usize) -> Option<&Chunk> {
        self.chunks.get(index)?.as_deref()
    }

    fn chunk_mut(&mut self, number: u64) -> &mut Chunk {
        let index = chunk_of(number);
        if index >= self.chunks.len() {
            self.chunks.resize_with(index + 1, || None);
        }
        self.chunks[index].get_or_insert_with(|| Box::new([0; CHUNK_WORDS]))
    }
}

fn chunk_of(number: u64) -> usize {
    (number / CHUNK_BITS) as usize
}

/// The word within its chunk, and the bit in it.
fn place(number: u64) -> (usize, u64) {
    ((number % CHUNK_BITS / 64) as usize, 1 << (number % 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::btree_set, prelude::*};
    use std::collections::BTreeSet;

    fn bitmap(numbers: &BTreeSet<u64>) -> Bitmap {
        let mut bitmap = Bitmap::default();
        for &number in numbers {
            assert!(bitmap.insert(number));
            assert!(!bitmap.insert(number));
        }
        bitmap
    }

    proptest! {
        #[test]
        fn a_bitmap_is_a_set(left in btree_set(0u64..20_000, 0..300), right in btree_set(0u64..20_000, 0..300)) {
            let (a, b) = (bitmap(&left), bitmap(&right));
            prop_assert_eq!(a.len(), left.len() as u64);
            prop_assert_eq!(a.common(&b), left.intersection(&right).count() as u64);
            prop_assert_eq!(a.without(&b).collect::<Vec<_>>(), left.difference(&right).copied().collect::<Vec<_>>());
            prop_assert!((0..20_000).all(|number| a.contains(number) == left.contains(&number)));
        }
    }

    #[test]
    fn a_range_is_its_numbers_and_gaps_take_no_memory() {
        let mut bitmap = Bitmap::default();
        bitmap.insert_range(4000, 200);
        bitmap.insert_range(40_000_000, 1);
        assert_eq!(bitmap.len(), 201);
        assert!(
            !bitmap.contains(3999)
                && bitmap.contains(4000)
                && bitmap.contains(4199)
                && !bitmap.contains(4200)
        );
        assert_eq!(bitmap.chunks.iter().flatten().count(), 3);
    }
}
