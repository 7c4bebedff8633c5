//! The Kafka topics: their names, settings and size limits, in one place.

use crate::{MAX_EVENT_BYTES, RECORD_MARGIN_BYTES};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use thiserror::Error;

/// Default of [`TopicPrefix`].
pub const DEFAULT_PREFIX: &str = "floodway.";

/// Milliseconds in a day.
const DAY_MS: u64 = 86_400_000;

/// A topic of the pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Topic {
    /// Accepted events, CloudEvents JSON: the product's log.
    Events,
    /// Retries and deferrals that fell due.
    Due,
    /// Dead letters to be delivered again.
    Replays,
    /// What became of each attempt; partition = shard of the scheduler.
    Outcomes,
    /// Deliveries given up.
    DeadLetters,
    /// Tenants, keys and subscriptions; compacted.
    Config,
}

/// What every topic name starts with; lets several installations share a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TopicPrefix(String);

/// A prefix that Kafka would not take in a topic name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a topic prefix is at most 200 letters, digits, \".\", \"_\" and \"-\", not {0:?}")]
pub struct InvalidPrefix(String);

impl Default for TopicPrefix {
    fn default() -> Self {
        Self(DEFAULT_PREFIX.to_owned())
    }
}

impl TopicPrefix {
    /// The prefix as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TopicPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TopicPrefix {
    type Err = InvalidPrefix;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if text.len() <= 200 && text.bytes().all(legal) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidPrefix(text.to_owned()))
        }
    }
}

impl TryFrom<String> for TopicPrefix {
    type Error = InvalidPrefix;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<TopicPrefix> for String {
    fn from(prefix: TopicPrefix) -> Self {
        prefix.0
    }
}

/// A topic setting that Floodway relies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSetting {
    /// Kafka's name of the setting.
    pub name: &'static str,
    /// The value it is created with.
    pub value: String,
    /// How a differing value is judged.
    pub rule: SettingRule,
}

/// How the value found on a broker is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettingRule {
    /// Another value breaks the pipeline.
    Exactly,
    /// A number that may be larger, not smaller.
    AtLeast,
    /// A default that operators may change.
    Free,
}

impl Topic {
    /// Every topic.
    pub const ALL: [Self; 6] =
        [Self::Events, Self::Due, Self::Replays, Self::Outcomes, Self::DeadLetters, Self::Config];

    /// The name without its prefix.
    pub const fn base_name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Due => "due",
            Self::Replays => "replays",
            Self::Outcomes => "outcomes",
            Self::DeadLetters => "dead-letters",
            Self::Config => "config",
        }
    }

    /// The full name.
    pub fn name(self, prefix: &TopicPrefix) -> String {
        format!("{prefix}{}", self.base_name())
    }

    /// Partitions to create. `due` has as many as `outcomes`, for shard *s* produces to partition *s*;
    /// `config` has one, for its order is total.
    pub const fn partitions(self, events_partitions: i32) -> i32 {
        match self {
            Self::Config => 1,
            _ => events_partitions,
        }
    }

    /// Largest record, in bytes: what the topic must take and its producers may send.
    pub const fn max_record_bytes(self) -> usize {
        match self {
            // The envelope is within the event limit; the margin covers key, header and batch overhead.
            Self::Events | Self::Config => MAX_EVENT_BYTES + RECORD_MARGIN_BYTES,
            Self::Due | Self::Replays | Self::Outcomes | Self::DeadLetters => {
                MAX_EVENT_BYTES + 2 * RECORD_MARGIN_BYTES
            }
        }
    }

    /// The settings to create the topic with, and to check.
    pub fn settings(self) -> Vec<TopicSetting> {
        use SettingRule::{AtLeast, Exactly, Free};
        let set =
            |name, value: &dyn fmt::Display, rule| TopicSetting { name, value: value.to_string(), rule };
        let mut settings = vec![set("max.message.bytes", &self.max_record_bytes(), AtLeast)];
        match self {
            Self::Config => settings.extend([
                set("cleanup.policy", &"compact", Exactly),
                // Short segments, so that compaction reaches recent changes and a restart reads little.
                set("segment.ms", &(DAY_MS / 24), Free),
                set("min.cleanable.dirty.ratio", &"0.1", Free),
            ]),
            Self::Events => settings.extend([
                set("cleanup.policy", &"delete", Exactly),
                // Record time is the broker's, so that `active_from` and dedup do not depend on producers' clocks.
                set("message.timestamp.type", &"LogAppendTime", Exactly),
                set("retention.ms", &(7 * DAY_MS), Free),
            ]),
            // Record time is the broker's here, too: it refuses records from a clock that is more than an hour ahead of its own.
            Self::Outcomes | Self::Due | Self::Replays => settings.extend([
                set("cleanup.policy", &"delete", Exactly),
                set("message.timestamp.type", &"LogAppendTime", Free),
                set("retention.ms", &(3 * DAY_MS), Free),
            ]),
            Self::DeadLetters => settings.extend([
                set("cleanup.policy", &"delete", Exactly),
                set("message.timestamp.type", &"LogAppendTime", Free),
                set("retention.ms", &(30 * DAY_MS), Free),
            ]),
        }
        settings
    }
}

// A near-limit event must fit into the records that settle it.
const _: () =
    assert!(Topic::Outcomes.max_record_bytes() >= Topic::Events.max_record_bytes() + RECORD_MARGIN_BYTES);
const _: () =
    assert!(Topic::Due.max_record_bytes() >= Topic::Events.max_record_bytes() + RECORD_MARGIN_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_the_prefix() {
        assert_eq!(Topic::DeadLetters.name(&TopicPrefix::default()), "floodway.dead-letters");
        assert_eq!(Topic::Events.name(&"t1-".parse().unwrap()), "t1-events");
        assert!("a b".parse::<TopicPrefix>().is_err());
    }

    #[test]
    fn due_has_the_partitions_of_outcomes_and_config_has_one() {
        assert_eq!(Topic::Due.partitions(12), Topic::Outcomes.partitions(12));
        assert_eq!(Topic::Config.partitions(12), 1);
    }
}
