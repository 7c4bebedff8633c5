//! Every metric of the retry scheduler: names, descriptions and handles, made once.
#![allow(
    clippy::disallowed_macros,
    reason = "this is the one place where the retry scheduler's metrics are made"
)]

use crate::{admission::PassedOver, read::Poison};
use floodway_schemas::{
    outcome::{DeadReason, OutcomeKind},
    retry_command::RetryAction,
};
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};

const KINDS: [&str; OutcomeKind::ALL.len()] =
    ["delivered", "retry", "deferred", "dead", "disable", "dropped", "in_doubt"];

const REASONS: [DeadReason; DeadReason::ALL.len()] = DeadReason::ALL;

/// Why an owner started over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// The log no longer has the next offset.
    Retention,
    /// The log ends before the next offset.
    CutShort,
    /// Offsets are missing in the middle.
    Gap,
}

/// The handles that all shards share.
pub(crate) struct Metrics {
    outcomes: [Counter; KINDS.len()],
    dead_letters: [Counter; REASONS.len()],
    poison: [Counter; Poison::ALL.len()],
    pub(crate) repeats: Counter,
    pub(crate) batch_rows: Histogram,
    pub(crate) transaction_seconds: Histogram,
    pub(crate) due_produced: Counter,
    pub(crate) due_failed: Counter,
    pub(crate) letters_unpublished: Counter,
    pub(crate) lateness_seconds: Histogram,
    pub(crate) takeovers: Counter,
    pub(crate) fenced: Counter,
    pub(crate) reconciled: Counter,
    pub(crate) reader_stalls: Counter,
    pub(crate) producer_rebuilds: Counter,
    leases: [Counter; 2],
    commands: [Counter; 2],
    commands_passed_over: [Counter; PassedOver::ALL.len()],
    pub(crate) recalled: Counter,
    pub(crate) cancelled: Counter,
    pub(crate) partitions_missing: Counter,
    pub(crate) partitions_ahead_hours: Gauge,
    pub(crate) maintenance_failures: Counter,
    pub(crate) pending_estimate: Gauge,
    pub(crate) shards: Gauge,
    log_lost: [Counter; 3],
}

/// The handles of one shard.
pub(crate) struct ShardMetrics {
    pub(crate) heap_rows: Gauge,
    pub(crate) cursor_lag_seconds: Gauge,
}

impl Metrics {
    /// Describes the metrics and makes their handles.
    pub(crate) fn new() -> Self {
        describe();
        Self {
            outcomes: KINDS.map(|kind| counter!("floodway_retry_outcomes_total", "kind" => kind)),
            dead_letters: REASONS
                .map(|reason| counter!("floodway_retry_dead_letters_total", "reason" => reason.as_str())),
            poison: Poison::ALL
                .map(|reason| counter!("floodway_retry_poison_total", "reason" => reason.as_str())),
            repeats: counter!("floodway_retry_repeats_total"),
            batch_rows: histogram!("floodway_retry_batch_rows"),
            transaction_seconds: histogram!("floodway_retry_transaction_seconds"),
            due_produced: counter!("floodway_retry_due_produced_total"),
            due_failed: counter!("floodway_retry_due_failed_total"),
            letters_unpublished: counter!("floodway_retry_dead_letters_unpublished_total"),
            lateness_seconds: histogram!("floodway_retry_lateness_seconds"),
            takeovers: counter!("floodway_retry_takeovers_total"),
            fenced: counter!("floodway_retry_fenced_total"),
            reconciled: counter!("floodway_retry_reconciled_total"),
            leases: ["void", "fired"].map(|end| counter!("floodway_retry_leases_total", "end" => end)),
            commands: ["now", "cancel"]
                .map(|action| counter!("floodway_retry_commands_total", "action" => action)),
            commands_passed_over: PassedOver::ALL.map(
                |reason| counter!("floodway_retry_commands_passed_over_total", "reason" => reason.as_str()),
            ),
            recalled: counter!("floodway_retry_recalled_total"),
            cancelled: counter!("floodway_retry_cancelled_total"),
            reader_stalls: counter!("floodway_retry_reader_stalls_total"),
            producer_rebuilds: counter!("floodway_retry_producer_rebuilds_total"),
            partitions_missing: counter!("floodway_retry_partitions_missing_total"),
            partitions_ahead_hours: gauge!("floodway_retry_partitions_ahead_hours"),
            maintenance_failures: counter!("floodway_retry_maintenance_failures_total"),
            pending_estimate: gauge!("floodway_retry_pending_estimate"),
            shards: gauge!("floodway_retry_shards"),
            log_lost: ["retention", "cut_short", "gap"]
                .map(|reason| counter!("floodway_retry_log_lost_total", "reason" => reason)),
        }
    }

    /// Counts outcomes of a kind by its name.
    pub(crate) fn outcomes(&self, kind: &str, n: u64) {
        if let Some(index) = KINDS.iter().position(|known| *known == kind) {
            self.outcomes[index].increment(n);
        }
    }

    /// Counts a dead letter by the name of its reason.
    pub(crate) fn dead_letter(&self, reason: &str) {
        if let Some(index) = REASONS.iter().position(|known| known.as_str() == reason) {
            self.dead_letters[index].increment(1);
        }
    }

    /// Counts a record that was passed over.
    pub(crate) fn poison(&self, reason: Poison) {
        if let Some(index) = Poison::ALL.iter().position(|known| *known == reason) {
            self.poison[index].increment(1);
        }
    }

    /// Counts a lease whose time came, by whether it fired.
    pub(crate) fn lease(&self, fires: bool) {
        self.leases[usize::from(fires)].increment(1);
    }

    /// Counts a command to pending retries.
    pub(crate) fn command(&self, action: RetryAction) {
        self.commands[usize::from(action == RetryAction::Cancel)].increment(1);
    }

    /// Counts commands to pending retries that were passed over.
    pub(crate) fn commands_passed_over(&self, reason: PassedOver, n: u64) {
        if let Some(index) = PassedOver::ALL.iter().position(|known| *known == reason) {
            self.commands_passed_over[index].increment(n);
        }
    }

    /// Counts an occasion on which records may have been lost.
    pub(crate) fn log_lost(&self, loss: Loss) {
        self.log_lost[loss as usize].increment(1);
    }

    /// The handles of one shard.
    pub(crate) fn shard(shard: i32) -> ShardMetrics {
        let label = shard.to_string();
        ShardMetrics {
            heap_rows: gauge!("floodway_retry_heap_rows", "shard" => label.clone()),
            cursor_lag_seconds: gauge!("floodway_retry_cursor_lag_seconds", "shard" => label),
        }
    }
}

fn describe() {
    describe_counter!("floodway_retry_outcomes_total", "Outcomes stored, by kind.");
    describe_counter!("floodway_retry_dead_letters_total", "Dead letters stored, by reason.");
    describe_counter!("floodway_retry_poison_total", "Records that cannot be used, passed over, by reason.");
    describe_counter!("floodway_retry_repeats_total", "Outcomes that were written twice, not stored again.");
    describe_histogram!("floodway_retry_batch_rows", Unit::Count, "Outcomes per transaction.");
    describe_histogram!("floodway_retry_transaction_seconds", Unit::Seconds, "Duration of storing a batch.");
    describe_counter!("floodway_retry_due_produced_total", "Retries produced and acknowledged.");
    describe_counter!(
        "floodway_retry_due_failed_total",
        "Retries that were not acknowledged; they are tried again."
    );
    describe_counter!(
        "floodway_retry_dead_letters_unpublished_total",
        "Dead letters too large for their topic; the table has them."
    );
    describe_histogram!(
        "floodway_retry_lateness_seconds",
        Unit::Seconds,
        "Time from a retry's due time to its acknowledgement by Kafka."
    );
    describe_counter!("floodway_retry_takeovers_total", "Shards taken over.");
    describe_counter!("floodway_retry_fenced_total", "Shards given up because another process took over.");
    describe_counter!(
        "floodway_retry_reconciled_total",
        "Shards continued after the database had been away."
    );
    describe_counter!(
        "floodway_retry_leases_total",
        "Deliveries in doubt whose lease ended: void, for their own outcome had come, or fired, to be made again."
    );
    describe_counter!(
        "floodway_retry_commands_total",
        "Commands to pending retries taken, by action; one that goes to all shards counts in each."
    );
    describe_counter!(
        "floodway_retry_commands_passed_over_total",
        "Commands to pending retries passed over, by reason: known (written twice), or beyond what a shard keeps, of a tenant's small \
         ones (narrow), of a tenant, or of all (shard)."
    );
    describe_counter!(
        "floodway_retry_recalled_total",
        "Retries produced before their time because a command asked for them."
    );
    describe_counter!("floodway_retry_cancelled_total", "Retries that a command cancelled, told in history.");
    describe_counter!(
        "floodway_retry_reader_stalls_total",
        "Times that the client had stopped reading a shard's outcomes although there were more, or found no broker although others did."
    );
    describe_counter!(
        "floodway_retry_producer_rebuilds_total",
        "Producers replaced because Kafka did not answer them although it answered others."
    );
    describe_counter!("floodway_retry_partitions_missing_total", "Batches that had to wait for a partition.");
    describe_gauge!("floodway_retry_partitions_ahead_hours", "Hours for which every table has partitions.");
    describe_counter!(
        "floodway_retry_maintenance_failures_total",
        "Passes over the partitions that failed; they are tried again."
    );
    describe_gauge!(
        "floodway_retry_pending_estimate",
        "Retries stored, about, including done ones not yet dropped."
    );
    describe_gauge!("floodway_retry_shards", "Shards owned.");
    describe_gauge!("floodway_retry_heap_rows", "Retries waiting in memory, by shard.");
    describe_gauge!("floodway_retry_cursor_lag_seconds", "Age of a shard's cursor.");
    describe_counter!(
        "floodway_retry_log_lost_total",
        "Occasions on which outcomes were lost from the log, by reason."
    );
}
