//! Problem documents: the body of every HTTP error (RFC 9457).

use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Content type of a problem document.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// A problem document. `kind` is stable and meant for programs, `detail` for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// URI reference that identifies the kind of problem: `urn:floodway:problem:<name>`.
    #[serde(rename = "type")]
    pub kind: Cow<'static, str>,
    /// Short summary of the kind; the same for each of its occurrences.
    pub title: Cow<'static, str>,
    /// HTTP status.
    pub status: u16,
    /// What happened this time, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Problem {
    /// A problem of a named kind.
    pub const fn new(kind: &'static str, title: &'static str, status: u16) -> Self {
        Self { kind: Cow::Borrowed(kind), title: Cow::Borrowed(title), status, detail: None }
    }

    /// The same problem with this occurrence's detail.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }
}
