//! An operator's or a tenant's word about pending retries: try them now, or not at all.
//!
//! Commands stand on the partitions of `outcomes` themselves, so the log orders them against the outcomes whose retries they
//! are about: a command covers what precedes it in its partition, and nothing that follows. One about a single retry goes to the
//! partition that the retry's key names, any other to all of them.

use crate::{
    DecodeError, UnixMillis,
    due::RetryKey,
    error::check_version,
    ids::{RetryCommandId, SubscriptionId, TenantId, is_text_id},
};
use serde::{Deserialize, Serialize};

/// Major version of commands.
pub const RETRY_COMMAND_VERSION: u32 = 1;
/// What [`crate::outcome::KIND_HEADER`] says of a command.
pub const COMMAND_KIND: &str = "command";

/// What is to become of pending retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryAction {
    /// They are made now, in the order of their arrival, as fast as the scheduler's settings allow.
    Now,
    /// They are never made.
    Cancel,
}

impl RetryAction {
    /// The action's name, as in JSON, metrics and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Now => "now",
            Self::Cancel => "cancel",
        }
    }
}

/// Which pending retries of a tenant: those that fit every field that is there. At least one is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryScope {
    /// Of this subscription.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subscription: Option<SubscriptionId>,
    /// Of the event with this id; a batch goes by its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// This one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryKey>,
}

/// The value of a command's record on `outcomes`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryCommand {
    /// [`RETRY_COMMAND_VERSION`].
    pub v: u32,
    /// Identity: a command that was written twice counts once.
    pub command: RetryCommandId,
    /// What is to be done.
    pub action: RetryAction,
    /// Whose retries.
    pub tenant: TenantId,
    /// Which of them.
    #[serde(flatten)]
    pub scope: RetryScope,
    /// When it was given, by its writer's clock.
    pub at: UnixMillis,
}

impl RetryCommand {
    /// Reads the value of an `outcomes` record that is no outcome.
    pub fn decode(json: &[u8]) -> Result<Self, DecodeError> {
        check_version(json, RETRY_COMMAND_VERSION)?;
        Ok(serde_json::from_slice(json)?)
    }

    /// The JSON of this command.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// The partitions of `outcomes` that it goes to, of so many.
    pub fn partitions(&self, partitions: i32) -> Vec<i32> {
        match self.scope.retry {
            Some(retry) => (0..partitions).filter(|&shard| shard == retry.shard).collect(),
            None => (0..partitions).collect(),
        }
    }
}

impl RetryScope {
    /// All of a subscription.
    pub fn of_subscription(subscription: SubscriptionId) -> Self {
        Self { subscription: Some(subscription), ..Self::default() }
    }

    /// Whether it restricts to anything, with an id that an event may have.
    pub fn is_valid(&self) -> bool {
        let is_something = self.subscription.is_some() || self.event_id.is_some() || self.retry.is_some();
        is_something && self.event_id.as_deref().is_none_or(is_text_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Outcome;
    use uuid::uuid;

    fn command(scope: RetryScope) -> RetryCommand {
        RetryCommand {
            v: RETRY_COMMAND_VERSION,
            command: RetryCommandId(uuid!("01938f2e-0000-7000-8000-000000000009")),
            action: RetryAction::Cancel,
            tenant: TenantId(uuid!("01938f2e-0000-7000-8000-000000000001")),
            scope,
            at: UnixMillis(1_795_275_240_123),
        }
    }

    #[test]
    fn a_command_matches_its_golden_file() {
        let golden = include_str!("../golden/retry-command.json").trim_end();
        let subscription = SubscriptionId(uuid!("01938f2e-0000-7000-8000-000000000002"));
        let scope =
            RetryScope { event_id: Some("order-1".into()), ..RetryScope::of_subscription(subscription) };
        assert_eq!(String::from_utf8(command(scope.clone()).encode().unwrap()).unwrap(), golden);
        assert_eq!(RetryCommand::decode(golden.as_bytes()).unwrap(), command(scope));
    }

    #[test]
    fn commands_and_outcomes_are_not_taken_for_each_other() {
        let golden = include_str!("../golden/retry-command.json").trim_end();
        assert!(Outcome::decode(golden.as_bytes()).is_err());
        assert!(RetryCommand::decode(include_bytes!("../golden/outcome-retry.json")).is_err());
    }

    #[test]
    fn a_command_about_one_retry_goes_to_its_shard_alone() {
        let retry = Some(RetryKey { shard: 2, id: 7 });
        assert_eq!(command(RetryScope { retry, ..RetryScope::default() }).partitions(4), [2]);
        assert!(command(RetryScope { retry, ..RetryScope::default() }).partitions(2).is_empty());
        let event_id = Some("e".to_owned());
        assert_eq!(command(RetryScope { event_id, ..RetryScope::default() }).partitions(3), [0, 1, 2]);
        assert!(!RetryScope::default().is_valid());
        assert!(!RetryScope { event_id: Some("a b".into()), ..RetryScope::default() }.is_valid());
    }
}
