//! What is measured of the retry scheduler, and how much of it.

use crate::{bench::scenario::Profile, report::count};
use std::time::Duration;

/// How much of everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Outcomes that lie in the log when the scheduler starts.
    pub outcomes: u64,
    /// Rows that a floor writes.
    pub floor_rows: u64,
    /// How often a rate is measured; the median is told.
    pub runs: usize,
    /// Retries that are due when the scheduler starts.
    pub due_rows: u64,
    /// Time for which lateness is measured, after the retries that were there before.
    pub lateness: Duration,
    /// Time for which a snapshot is held before the rate is measured again.
    pub snapshot: Duration,
    /// Retries that wait in the table when the scheduler starts.
    pub pending_rows: u64,
    /// Events for an endpoint that is dead.
    pub outage_events: u64,
}

/// The sizes of a profile.
pub fn sizes(profile: Profile) -> Sizes {
    let seconds = Duration::from_secs;
    let quick = Sizes {
        outcomes: 300_000,
        floor_rows: 300_000,
        runs: 1,
        due_rows: 300_000,
        lateness: seconds(10),
        snapshot: seconds(10),
        pending_rows: 1_000_000,
        outage_events: 50_000,
    };
    match profile {
        Profile::Quick => quick,
        Profile::Standard => Sizes {
            outcomes: 600_000,
            floor_rows: 600_000,
            runs: 3,
            due_rows: 600_000,
            lateness: seconds(40),
            snapshot: seconds(60),
            pending_rows: 10_000_000,
            outage_events: 1_000_000,
        },
        Profile::Full => Sizes { runs: 5, lateness: seconds(120), ..sizes(Profile::Standard) },
    }
}

/// What a scenario asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// How many rows a bare COPY writes.
    CopyFloor,
    /// How many rows a second the scheduler stores.
    Stored(Shape),
    /// How fast retries that are all due leave.
    Due,
    /// How late retries are.
    Lateness,
    /// What a snapshot that somebody holds costs.
    Snapshot,
    /// How fast it starts with many pending retries, and in how much memory.
    Pending,
    /// What a burst for an endpoint that is dead does to the retries of others.
    Outage,
}

/// What the outcomes in the log ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A retry, and no history: `deferred`.
    Retry,
    /// A retry and a row of history: `retry`.
    RetryAndHistory,
    /// A row of history: `delivered`, recorded.
    History,
    /// The same with what went over the wire.
    Exchange,
}

/// One scenario.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scenario {
    /// Name for the command line, unique.
    pub name: &'static str,
    /// What it asks.
    pub question: Question,
    /// Partitions of the topics, each a shard with one connection at a time.
    pub partitions: i32,
}

/// Retries that wait while lateness is measured, and how many of them become due in a second.
pub const LATENESS_PENDING: u64 = 100_000;
/// See [`LATENESS_PENDING`].
pub const LATENESS_RATE: u64 = 5_000;
/// Runs of [`Question::Snapshot`]: unmeasured, before it and during it.
const SNAPSHOT_RUNS: u64 = 3;
/// Retries a second of others beside a burst.
pub const BESIDE_RATE: u64 = 500;

/// Every scenario, in the order in which they run.
pub const SCENARIOS: [Scenario; 10] = {
    const fn scenario(name: &'static str, question: Question, partitions: i32) -> Scenario {
        Scenario { name, question, partitions }
    }
    [
        scenario("copy-floor", Question::CopyFloor, 1),
        scenario("retry-rows", Question::Stored(Shape::Retry), 1),
        scenario("retry-and-history", Question::Stored(Shape::RetryAndHistory), 1),
        scenario("history-rows", Question::Stored(Shape::History), 1),
        scenario("history-exchange", Question::Stored(Shape::Exchange), 1),
        scenario("due-read", Question::Due, 1),
        scenario("lateness", Question::Lateness, 8),
        scenario("snapshot", Question::Snapshot, 1),
        scenario("pending-10m", Question::Pending, 8),
        scenario("endpoint-outage", Question::Outage, 8),
    ]
};

impl Scenario {
    /// About how many rows it writes.
    pub fn rows(&self, sizes: &Sizes) -> u64 {
        let runs = sizes.runs as u64;
        match self.question {
            Question::CopyFloor => runs * sizes.floor_rows,
            Question::Stored(_) => runs * sizes.outcomes,
            Question::Snapshot => SNAPSHOT_RUNS * sizes.outcomes,
            Question::Due => sizes.due_rows,
            Question::Lateness => LATENESS_PENDING + LATENESS_RATE * sizes.lateness.as_secs(),
            Question::Pending => sizes.pending_rows,
            Question::Outage => sizes.outage_events,
        }
    }

    /// What it does, in a few words.
    pub fn title(&self, sizes: &Sizes) -> String {
        let outcomes = |what: &str| {
            format!(
                "{} outcomes {what} in the log when the scheduler starts, one shard",
                count(sizes.outcomes)
            )
        };
        match self.question {
            Question::CopyFloor => {
                format!("{} rows of retries by a bare COPY on one connection", count(sizes.floor_rows))
            }
            Question::Stored(Shape::Retry) => outcomes("that each ask for a retry (deferred: no history)"),
            Question::Stored(Shape::RetryAndHistory) => {
                outcomes("that each ask for a retry and a row of history")
            }
            Question::Stored(Shape::History) => outcomes("that each ask for a row of history (delivered)"),
            Question::Stored(Shape::Exchange) => {
                outcomes("that each ask for a row of history with headers and timings")
            }
            Question::Due => {
                format!("{} retries that are due when the scheduler starts, one shard", count(sizes.due_rows))
            }
            Question::Lateness => format!(
                "{} pending retries, {} a second become due, as many are stored",
                count(LATENESS_PENDING),
                count(LATENESS_RATE)
            ),
            Question::Snapshot => format!(
                "retry-rows before and {} s into a snapshot that another session holds",
                sizes.snapshot.as_secs()
            ),
            Question::Outage => format!(
                "{} deferrals for one endpoint, 40,000 a second, due as fast after a while, beside {BESIDE_RATE} retries a second of others",
                count(sizes.outage_events)
            ),
            Question::Pending => {
                format!("{} pending retries when the scheduler starts", count(sizes.pending_rows))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), SCENARIOS.len());
    }
}
