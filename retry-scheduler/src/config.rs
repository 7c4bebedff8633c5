//! The section `[retry_scheduler]`: every field's variable, unit and default.

use crate::{clamp::Limits, pending::Bounds};
use floodway_store::partitions::{Plan, Retention};
use serde::Deserialize;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);
/// Days that partitions reach beyond the longest delay: a delay may be stored at the end of a day without maintenance.
const PLAN_MARGIN_DAYS: u32 = 2;

/// Settings of the retry scheduler. Bounds of memory are per shard, that is per partition of `outcomes` owned.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `FLOODWAY_RETRY_SCHEDULER__BATCH_ROWS`: outcomes stored in one transaction at most; default 5,000.
    pub batch_rows: usize,
    /// `FLOODWAY_RETRY_SCHEDULER__BATCH_BYTES`: their bytes at most; default 8 MiB. As much again is read while a batch
    /// is stored.
    pub batch_bytes: usize,
    /// `FLOODWAY_RETRY_SCHEDULER__LINGER`: how long a batch waits for more after its first outcome; default `20ms`,
    /// at most 1 s. While there is more to read a batch grows beyond it, for a second at most.
    #[serde(with = "humantime_serde")]
    pub linger: Duration,
    /// `FLOODWAY_RETRY_SCHEDULER__HORIZON`: retries due within this time are held in memory; default `60s`.
    #[serde(with = "humantime_serde")]
    pub horizon: Duration,
    /// `FLOODWAY_RETRY_SCHEDULER__HEAP_ROWS`: retries held in memory at most; default 100,000.
    pub heap_rows: usize,
    /// `FLOODWAY_RETRY_SCHEDULER__HEAP_BYTES`: their bytes at most; default 64 MiB.
    pub heap_bytes: usize,
    /// `FLOODWAY_RETRY_SCHEDULER__PAGE_ROWS`: retries read from the database at once, 8 MiB at most; default 10,000.
    pub page_rows: u32,
    /// `FLOODWAY_RETRY_SCHEDULER__FIRE_ROWS`: retries produced before their acknowledgements are awaited; default 5,000.
    pub fire_rows: usize,
    /// `FLOODWAY_RETRY_SCHEDULER__FIRE_BYTES`: their bytes; default 8 MiB.
    pub fire_bytes: usize,
    /// `FLOODWAY_RETRY_SCHEDULER__RECALL_RATE`: retries that commands bring back before their time, a second and shard; default
    /// 1,000. It bounds what an endpoint gets at once after its subscription is resumed.
    pub recall_rate: u32,
    /// `FLOODWAY_RETRY_SCHEDULER__MAX_DELAY`: longest delay of a retry, longer ones are cut; default `30days`.
    #[serde(with = "humantime_serde")]
    pub max_delay: Duration,
    /// `FLOODWAY_RETRY_SCHEDULER__CLOCK_TOLERANCE`: difference between the clocks of machines that has no effect on
    /// when a retry is due; default `5s`.
    #[serde(with = "humantime_serde")]
    pub clock_tolerance: Duration,
    /// `FLOODWAY_RETRY_SCHEDULER__REPEATS`: outcomes remembered to recognise repeats; default 250,000 (about 20 MiB).
    pub repeats: usize,
    /// `FLOODWAY_RETRY_SCHEDULER__REPEATS_WINDOW`: how long they are remembered, in record time; default `15min`.
    #[serde(with = "humantime_serde")]
    pub repeats_window: Duration,
    /// `FLOODWAY_RETRY_SCHEDULER__CURSOR_INTERVAL`: least time between two moves of the cursor; default `250ms`. Each
    /// leaves a dead version of the shard's row behind.
    #[serde(with = "humantime_serde")]
    pub cursor_interval: Duration,
    /// `FLOODWAY_RETRY_SCHEDULER__IDLE_INTERVAL`: time between two moves of an idle shard's cursor; default `10s`.
    #[serde(with = "humantime_serde")]
    pub idle_interval: Duration,
    /// `FLOODWAY_RETRY_SCHEDULER__FENCE_AGE`: retries are produced only within this time of the last write that proved
    /// the ownership of the shard; default `5s`. Bounds what an owner that was cut off still produces.
    #[serde(with = "humantime_serde")]
    pub fence_age: Duration,
    /// `FLOODWAY_RETRY_SCHEDULER__RETRY_HOURS`: hours ahead with a partition per hour for retries; default 72.
    pub retry_hours: u32,
    /// `FLOODWAY_RETRY_SCHEDULER__RETRY_DAYS`: days ahead with partitions for retries; default 35, at least two more
    /// than the longest delay.
    pub retry_days: u32,
    /// `FLOODWAY_RETRY_SCHEDULER__HISTORY_HOURS`: hours ahead with partitions for history; default 48: a
    /// day in which maintenance may fail, and a day in which that is a warning.
    pub history_hours: u32,
    /// `FLOODWAY_RETRY_SCHEDULER__HISTORY_RETENTION`: how long history is kept; default `183days`.
    #[serde(with = "humantime_serde")]
    pub history_retention: Duration,
    /// `FLOODWAY_RETRY_SCHEDULER__COUNTS_RETENTION`: how long counts by day are kept; default `396days`. By
    /// minute they are kept for two days, by hour for thirty.
    #[serde(with = "humantime_serde")]
    pub counts_retention: Duration,
    /// `FLOODWAY_RETRY_SCHEDULER__DEAD_LETTER_RETENTION`: how long dead letters are kept; default `183days`.
    #[serde(with = "humantime_serde")]
    pub dead_letter_retention: Duration,
    /// `FLOODWAY_RETRY_SCHEDULER__MAINTENANCE_INTERVAL`: time between two passes over the partitions; default `60s`.
    #[serde(with = "humantime_serde")]
    pub maintenance_interval: Duration,
    /// `FLOODWAY_RETRY_SCHEDULER__DRAIN_TIMEOUT`: time for retries in flight when the process ends; default `10s`.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            batch_rows: 5_000,
            batch_bytes: 8 << 20,
            linger: Duration::from_millis(20),
            horizon: Duration::from_secs(60),
            heap_rows: 100_000,
            heap_bytes: 64 << 20,
            page_rows: 10_000,
            fire_rows: 5_000,
            fire_bytes: 8 << 20,
            recall_rate: 1_000,
            max_delay: 30 * DAY,
            clock_tolerance: Duration::from_secs(5),
            repeats: 250_000,
            repeats_window: Duration::from_secs(15 * 60),
            cursor_interval: Duration::from_millis(250),
            idle_interval: Duration::from_secs(10),
            fence_age: Duration::from_secs(5),
            retry_hours: 72,
            retry_days: 35,
            history_hours: 48,
            history_retention: 183 * DAY,
            counts_retention: 396 * DAY,
            dead_letter_retention: 183 * DAY,
            maintenance_interval: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(10),
        }
    }
}

impl Settings {
    /// Checks what the types do not say.
    ///
    /// # Errors
    /// A sentence that names the setting.
    pub fn validate(&self) -> Result<(), String> {
        for (name, value) in [
            ("batch_rows", self.batch_rows),
            ("batch_bytes", self.batch_bytes),
            ("heap_rows", self.heap_rows),
            ("heap_bytes", self.heap_bytes),
            ("page_rows", self.page_rows as usize),
            ("fire_rows", self.fire_rows),
            ("fire_bytes", self.fire_bytes),
            ("recall_rate", self.recall_rate as usize),
            ("repeats", self.repeats),
        ] {
            if value == 0 {
                return Err(format!("{name} must be at least 1"));
            }
        }
        for (name, value) in [
            ("horizon", self.horizon),
            ("cursor_interval", self.cursor_interval),
            ("idle_interval", self.idle_interval),
            ("fence_age", self.fence_age),
            ("maintenance_interval", self.maintenance_interval),
        ] {
            if value.is_zero() {
                return Err(format!("{name} must be more than zero"));
            }
        }
        if self.linger > Duration::from_secs(1) {
            return Err("linger must be at most 1s".to_owned());
        }
        let least_days = u32::try_from(self.max_delay.as_secs().div_ceil(DAY.as_secs())).unwrap_or(u32::MAX);
        if self.retry_days < least_days.saturating_add(PLAN_MARGIN_DAYS) {
            return Err(format!(
                "retry_days must be at least {PLAN_MARGIN_DAYS} more than the days of max_delay, which are {least_days}"
            ));
        }
        if self.history_hours < 2 {
            return Err("history_hours must be at least 2, maintenance may be late".to_owned());
        }
        Ok(())
    }

    pub(crate) fn bounds(&self) -> Bounds {
        Bounds { rows: self.heap_rows, bytes: self.heap_bytes }
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits { tolerance: self.clock_tolerance, max_delay: self.max_delay }
    }

    pub(crate) fn plan(&self) -> Plan {
        Plan {
            retry_hours: self.retry_hours,
            retry_days: self.retry_days,
            delivery_hours: self.history_hours,
            ..Plan::default()
        }
    }

    pub(crate) fn retention(&self) -> Retention {
        Retention {
            deliveries: self.history_retention,
            counts: self.counts_retention,
            dead_letters: self.dead_letter_retention,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(Settings::default().validate(), Ok(()));
    }

    #[test]
    fn partitions_reach_beyond_the_longest_delay() {
        let settings = Settings { max_delay: 34 * DAY, ..Settings::default() };
        assert!(settings.validate().unwrap_err().starts_with("retry_days"));
    }

    #[test]
    fn bounds_of_nothing_are_refused() {
        let settings = Settings { heap_rows: 0, ..Settings::default() };
        assert!(settings.validate().unwrap_err().starts_with("heap_rows"));
    }
}
