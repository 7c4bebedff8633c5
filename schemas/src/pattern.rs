//! Patterns over event types: `order.created`, `order.*`, `*`.

use crate::ids::is_text_id;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
