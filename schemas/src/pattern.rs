//! Patterns over event types: `order.created`, `order.*`, `*`.

use crate::ids::is_text_id;
use serde::{Deserialize, Serialize};
use std::{collections::hash_map::RandomState, fmt, hash::BuildHasher, str::FromStr, sync::Arc};
use thiserror::Error;

/// Which event types a subscription wants.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum TypePattern {
    /// Every type: `*`.
    Any,
    /// Types that start with the prefix and a dot and go on: `order.*` matches `order.created` and
    /// `order.line.added`, neither `order` nor `orders.created`. Holds `order.`, dot included.
    Prefix(String),
    /// Exactly this type.
    Exact(String),
}

/// A pattern that is not one of the three forms.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is not a type pattern: use an exact type, a prefix ending in \".*\", or \"*\"")]
pub struct InvalidPattern(String);

impl TypePattern {
    /// Whether an event of this type is wanted.
    pub fn matches(&self, event_type: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Prefix(prefix) => {
                event_type.len() > prefix.len() && event_type.starts_with(prefix.as_str())
            }
            Self::Exact(exact) => event_type == exact,
        }
    }

    /// Whether this pattern matches all that `other` does.
    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (_, Self::Any) | (Self::Exact(_), Self::Prefix(_)) => false,
            (Self::Prefix(prefix), Self::Prefix(longer)) => longer.starts_with(prefix.as_str()),
            (_, Self::Exact(exact)) => self.matches(exact),
        }
    }
}

impl FromStr for TypePattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let (stem, is_prefix) = match text.strip_suffix(".*") {
            Some(stem) => (stem, true),
            None => (text, false),
        };
        if !is_text_id(text) || stem.is_empty() || stem.contains('*') {
            return Err(InvalidPattern(text.to_owned()));
        }
        Ok(if is_prefix { Self::Prefix(format!("{stem}.")) } else { Self::Exact(text.to_owned()) })
    }
}

impl TryFrom<String> for TypePattern {
    type Error = InvalidPattern;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<TypePattern> for String {
    fn from(pattern: TypePattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for TypePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Prefix(prefix) => write!(f, "{prefix}*"),
            Self::Exact(exact) => f.write_str(exact),
        }
    }
}

/// Items by the patterns under which they want events.
///
/// A look-up costs a hash of the type and of each of its prefixes that ends in a dot, whatever the number of patterns. A clone
/// shares what the original has, and a change copies what is between: with `n` patterns about `√n` pointers. So a reader can
/// have the index as it was while a writer changes it, and filling one change by change takes no time that is worth a thought.
#[derive(Debug, Clone)]
pub struct TypeIndex<T> {
    /// Of [`TypePattern::Any`].
    any: Arc<Vec<T>>,
    /// Of the others by their hash: none, or a power of two of them.
    buckets: Box<[Bucket<T>]>,
    /// Patterns in the buckets.
    patterns: usize,
    /// Randomly keyed: tenants choose the texts.
    hasher: RandomState,
}

/// Groups in the order of their hashes.
type Bucket<T> = Arc<Vec<Group<T>>>;

#[derive(Debug, Clone)]
struct Group<T> {
    hash: u64,
    pattern: Arc<TypePattern>,
    items: Arc<Vec<T>>,
}

impl<T> Default for TypeIndex<T> {
    fn default() -> Self {
        Self { any: Arc::default(), buckets: Box::default(), patterns: 0, hasher: RandomState::new() }
    }
}

/// The patterns that no other one of `patterns` covers. At most one of them matches a type: of two that do, one covers the other.
fn essential(patterns: &[TypePattern]) -> impl Iterator<Item = &TypePattern> {
    patterns.iter().enumerate().filter_map(|(at, pattern)| {
        let covered = patterns.iter().enumerate().any(|(other_at, other)| {
            // Of equal ones the first stays.
            other_at != at && other.covers(pattern) && (other_at < at || other != pattern)
        });
        (!covered).then_some(pattern)
    })
}

impl<T: Clone> TypeIndex<T> {
    /// Adds an item that wants what any of `patterns` matches.
    pub fn insert(&mut self, patterns: &[TypePattern], item: &T) {
        for pattern in essential(patterns) {
            if *pattern == TypePattern::Any {
                Arc::make_mut(&mut self.any).push(item.clone());
            } else {
                self.group(pattern).push(item.clone());
            }
        }
    }

    /// Removes the items that were inserted with `patterns` and that `is_meant` says yes to.
    pub fn remove(&mut self, patterns: &[TypePattern], is_meant: impl Fn(&T) -> bool) {
        for pattern in essential(patterns) {
            if *pattern == TypePattern::Any {
                Arc::make_mut(&mut self.any).retain(|item| !is_meant(item));
                continue;
            }
            let hash = self.hash(pattern);
            let Some(at) = self.bucket_of(hash) else { continue };
            let bucket = Arc::make_mut(&mut self.buckets[at]);
            if let Ok(at) = place(bucket, hash, pattern) {
                let items = Arc::make_mut(&mut bucket[at].items);
                items.retain(|item| !is_meant(item));
                if items.is_empty() {
                    bucket.remove(at);
                    self.patterns -= 1;
                }
            }
        }
    }

    /// The items of a pattern, made if need be.
    fn group(&mut self, pattern: &TypePattern) -> &mut Vec<T> {
        if self.patterns >= self.buckets.len() * self.buckets.len() {
            self.grow();
        }
        let hash = self.hash(pattern);
        // Growing has made at least one.
        let at = self.bucket_of(hash).unwrap_or_default();
        let bucket = Arc::make_mut(&mut self.buckets[at]);
        let at = place(bucket, hash, pattern).unwrap_or_else(|at| {
            let group = Group { hash, pattern: Arc::new(pattern.clone()), items: Arc::default() };
            bucket.insert(at, group);
            self.patterns += 1;
            at
        });
        Arc::make_mut(&mut bucket[at].items)
    }

    /// Twice as many buckets.
    fn grow(&mut self) {
        let mut buckets = vec![Vec::new(); (self.buckets.len() * 2).max(1)];
        let mask = buckets.len() - 1;
        for group in self.buckets.iter().flat_map(|bucket| bucket.iter()) {
            // In order already: what shares a bucket now came from one bucket.
            buckets[low_bits(group.hash) & mask].push(group.clone());
        }
        self.buckets = buckets.into_iter().map(Arc::new).collect();
    }
}

impl<T> TypeIndex<T> {
    /// Every item that wants events of this type, each once.
    pub fn matching<'i>(&'i self, event_type: &'i str) -> impl Iterator<Item = &'i T> {
        let exact = self.items(
            self.hasher.hash_one((event_type, false)),
            move |pattern| matches!(pattern, TypePattern::Exact(exact) if exact == event_type),
        );
        // What follows the last byte is empty: a prefix matches only what goes on after it.
        let inner = event_type.get(..event_type.len().saturating_sub(1)).unwrap_or_default();
        let prefixes = inner.match_indices('.').flat_map(move |(dot, _)| {
            let stem = &event_type[..=dot];
            self.items(
                self.hasher.hash_one((stem, true)),
                move |pattern| matches!(pattern, TypePattern::Prefix(prefix) if prefix == stem),
            )
        });
        self.any.iter().chain(exact).chain(prefixes)
    }

    /// Whether there is no item.
    pub fn is_empty(&self) -> bool {
        self.any.is_empty() && self.patterns == 0
    }

    fn items(&self, hash: u64, is_meant: impl Fn(&TypePattern) -> bool) -> &[T] {
        let Some(at) = self.bucket_of(hash) else { return &[] };
        let bucket = &self.buckets[at];
        let from = bucket.partition_point(|group| group.hash < hash);
        let mut equal = bucket[from..].iter().take_while(|group| group.hash == hash);
        equal.find(|group| is_meant(&group.pattern)).map_or(&[], |group| &group.items)
    }

    fn hash(&self, pattern: &TypePattern) -> u64 {
        match pattern {
            TypePattern::Any => 0,
            TypePattern::Prefix(prefix) => self.hasher.hash_one((prefix.as_str(), true)),
            TypePattern::Exact(exact) => self.hasher.hash_one((exact.as_str(), false)),
        }
    }

    fn bucket_of(&self, hash: u64) -> Option<usize> {
        self.buckets.len().checked_sub(1).map(|mask| low_bits(hash) & mask)
    }
}

/// Where the group of a pattern is, or belongs.
fn place<T>(bucket: &[Group<T>], hash: u64, pattern: &TypePattern) -> Result<usize, usize> {
    let from = bucket.partition_point(|group| group.hash < hash);
    let equal = bucket[from..].iter().take_while(|group| group.hash == hash);
    let found = equal.enumerate().find(|(_, group)| *group.pattern == *pattern);
    found.map_or(Err(from), |(at, _)| Ok(from + at))
}

/// As many bits of a hash as an index has.
fn low_bits(hash: u64) -> usize {
    (hash & u64::from(u32::MAX)) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    #[test]
    fn a_pattern_matches_what_its_form_says() {
        let table = [
            ("*", "anything", true),
            ("order.*", "order.created", true),
            ("order.*", "order.line.added", true),
            ("order.*", "order.", false),
            ("order.*", "order", false),
            ("order.*", "orders.created", false),
            ("order.created", "order.created", true),
            ("order.created", "order.created.v2", false),
        ];
        for (pattern, event_type, expected) in table {
            let parsed: TypePattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(event_type), expected, "{pattern} against {event_type}");
            assert_eq!(parsed.to_string(), pattern);
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for text in ["", ".*", "a*", "*.a", "a.*.b", "a b", "ä", &"x".repeat(257)] {
            assert!(text.parse::<TypePattern>().is_err(), "{text:?}");
        }
    }

    fn pattern() -> impl Strategy<Value = TypePattern> {
        // Few and short, so that they meet.
        prop_oneof![Just("*".to_owned()), "[ab](\\.[ab]){0,2}", "[ab](\\.[ab]){0,2}\\.\\*"]
            .prop_map(|text| text.parse().unwrap())
    }

    proptest! {
        #[test]
        fn the_index_finds_each_item_that_has_a_matching_pattern_once(
            items in vec((vec(pattern(), 1..5), any::<bool>()), 0..40),
            event_types in vec("[ab](\\.[ab]){0,3}\\.?", 1..8),
        ) {
            let mut index = TypeIndex::default();
            let mut before = Vec::new();
            for (number, (patterns, _)) in items.iter().enumerate() {
                before.push(index.clone());
                index.insert(patterns, &number);
            }
            let full = index.clone();
            for (number, (patterns, _)) in items.iter().enumerate().filter(|(_, (_, removed))| *removed) {
                index.remove(patterns, |&item| item == number);
            }
            for event_type in &event_types {
                let wanted = |number: &usize| items[*number].0.iter().any(|pattern| pattern.matches(event_type));
                let found = |index: &TypeIndex<usize>| {
                    let mut found: Vec<usize> = index.matching(event_type).copied().collect();
                    found.sort_unstable();
                    found
                };
                let all: Vec<usize> = (0..items.len()).filter(wanted).collect();
                prop_assert_eq!(found(&full), all.clone());
                let kept: Vec<usize> = all.iter().copied().filter(|&number| !items[number].1).collect();
                prop_assert_eq!(found(&index), kept);
                // Earlier copies stay as they were.
                for (count, copy) in before.iter().enumerate() {
                    let earlier: Vec<usize> = all.iter().copied().filter(|&number| number < count).collect();
                    prop_assert_eq!(found(copy), earlier);
                }
            }
            prop_assert_eq!(index.is_empty(), items.iter().all(|(_, removed)| *removed));
        }
    }
}
