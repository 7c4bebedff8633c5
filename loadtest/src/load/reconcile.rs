//! Compares a run's ledger with what is on the topic, or with what a receiver got.

use super::{error::LoadError, ledger::Ledger};
use crate::receive;
use serde::Serialize;

/// Where the events of a run end up.
#[derive(Debug, Clone)]
pub struct KafkaTopic {
    /// `host:port`, separated by commas.
    pub brokers: String,
    /// Name of the topic, prefix included.
    pub topic: String,
    /// Further settings of the client, such as those for encryption.
    pub settings: Vec<(String, String)>,
}

/// The ends of a topic's partitions at one moment: what is read afterwards is newer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicEnds(
    /// By partition.
    pub Vec<i64>,
);

/// What a reconciliation found.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Reconciliation {
    /// Events that were sent.
    pub sent: u64,
    /// Events that were acknowledged.
    pub acknowledged: u64,
    /// Of these, not found: must be 0.
    pub lost: u64,
    /// Ids of some of the lost events.
    pub lost_samples: Vec<String>,
    /// Found more often than once, counted once per repetition.
    pub repeated: u64,
    /// Neither acknowledged nor refused, and found.
    pub unacknowledged_found: u64,
    /// Refused with certainty, and found all the same: must be 0.
    pub refused_found: u64,
    /// Found behind a later event of the same key: must be 0. Without keys nothing is promised, and it is 0.
    pub out_of_order: u64,
    /// Found on another partition than an earlier event of the same key: must be 0.
    pub moved: u64,
    /// Records that are not of this run.
    pub foreign: u64,
    /// Records read.
    pub records: u64,
    /// Seconds that the reading took.
    pub seconds: f64,
}

/// Notes where a topic ends, before a run. Blocks: call it on a thread of its own.
pub fn topic_ends(_topic: &KafkaTopic) -> Result<TopicEnds, LoadError> {
    Err(LoadError::Plan("not built yet".to_owned()))
}

/// Reads what a run left on the topic, from the ends noted before it to the present ends. Blocks: call it on a thread
/// of its own.
pub fn reconcile_topic(
    _ledger: &Ledger,
    _topic: &KafkaTopic,
    _before: &TopicEnds,
) -> Result<Reconciliation, LoadError> {
    Err(LoadError::Plan("not built yet".to_owned()))
}

/// Compares a run with what arrived at one path of a receiver in this process. Order is not compared: retries change it.
pub fn reconcile_receiver(
    _ledger: &Ledger,
    _receiver: &receive::ledger::Ledger,
    _path: &str,
) -> Reconciliation {
    Reconciliation::default()
}
