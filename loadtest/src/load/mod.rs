//! The load generator: requests on an absolute schedule or in a closed loop, at a cost far below that of the server.
//!
//! In an open loop the instants at which requests are due follow from the start of the run alone. A request that
//! finds no free connection waits in a bounded backlog, and its latency counts from the instant it was due: a server
//! that stalls is charged for every request that had to wait, not only for those it was asked.

mod error;
mod ledger;
mod plan;
mod progress;
mod reconcile;
mod report;
mod workload;

pub use self::{
    error::LoadError,
    ledger::Ledger,
    plan::{Arrival, DEFAULT_MAX_BACKLOG, DEFAULT_TIMEOUT, Length, LoadPlan},
    progress::Progress,
    reconcile::{KafkaTopic, Reconciliation, TopicEnds, reconcile_receiver, reconcile_topic, topic_ends},
    report::{Errors, Generator, GeneratorThread, LoadReport, Quantiles, Second, Totals},
    workload::{Encoding, Entropy, Workload},
};
use hdrhistogram::Histogram;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What a run leaves.
#[derive(Debug)]
pub struct Outcome {
    /// The figures.
    pub report: LoadReport,
    /// Microseconds from the instant each measured request was due to its answer, to be merged with other runs'.
    pub latency: Histogram<u64>,
    /// Every event's end, if the plan asked for it.
    pub ledger: Option<Ledger>,
}

/// Runs a plan on threads of its own; ends when the plan has, or soon after `stop`. A run that was stopped has a report too.
pub async fn run(
    _plan: &LoadPlan,
    _progress: &Arc<Progress>,
    _stop: &CancellationToken,
) -> Result<Outcome, LoadError> {
    Err(LoadError::Plan("not built yet".to_owned()))
}
