//! Settings of the dispatcher: the section `[dispatcher]`.

use crate::breaker::BreakerLimits;
use ipnet::IpNet;
use serde::Deserialize;
use std::{path::PathBuf, thread, time::Duration};

/// Most threads that make deliveries: more than machines have cores.
const MAX_WORKERS: usize = 1024;

/// Settings of the dispatcher. Durations are written like `15s` or `300ms`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `FLOODWAY_DISPATCHER__WORKERS`: threads that make deliveries; default 0, which means one per available core. The Kafka
    /// clients and the partitions have threads of their own beside them.
    pub workers: usize,
    /// `FLOODWAY_DISPATCHER__LANE_IN_FLIGHT`: requests to one subscription at a time, at most; default 64. How many there are up to
    /// that follows from how many its endpoint takes without becoming slower.
    pub lane_in_flight: usize,
    /// `FLOODWAY_DISPATCHER__LANE_QUEUE`: deliveries that wait in memory for one subscription; default 16384. What comes on top is
    /// deferred to the retry scheduler.
    pub lane_queue: usize,
    /// `FLOODWAY_DISPATCHER__LANE_WAIT`: longest wait of a delivery in memory for its turn; default `5s`. What would wait longer, and
    /// what did, is deferred to the retry scheduler.
    #[serde(with = "humantime_serde")]
    pub lane_wait: Duration,
    /// `FLOODWAY_DISPATCHER__LANE_SHARE`: one subscription holds at most this fraction of the budget that is free, written as
    /// its divisor; default 4 (a quarter). It keeps hung endpoints, however many, from using the budget up. A tenant holds
    /// at most half of the budget, except for one delivery of each of its subscriptions.
    pub lane_share: usize,
    /// `FLOODWAY_DISPATCHER__BREAKER_FAILURES`: failures in a row after which an endpoint gets nothing for a while, up to 64; default
    /// 20, 0 for never. A failure is an attempt without a complete answer, or one that is answered 429, 502, 503 or 504.
    pub breaker_failures: u32,
    /// `FLOODWAY_DISPATCHER__BREAKER_PERCENT`: percentage of failures among the last 64 attempts that has the same effect; default 90.
    pub breaker_percent: u32,
    /// `FLOODWAY_DISPATCHER__BREAKER_PAUSE`: for how long it gets nothing; default `5s`. Then one attempt is made, and doubles the
    /// pause when it fails.
    #[serde(with = "humantime_serde")]
    pub breaker_pause: Duration,
    /// `FLOODWAY_DISPATCHER__BREAKER_MAX_PAUSE`: longest such pause; default `60s`.
    #[serde(with = "humantime_serde")]
    pub breaker_max_pause: Duration,
    /// `FLOODWAY_DISPATCHER__RETURN_RATE`: deliveries of one endpoint per second that come back after they were put off because it got
    /// nothing; default 500. It bounds what an endpoint gets of its backlog once it answers again, and what it costs until then.
    pub return_rate: u32,
    /// `FLOODWAY_DISPATCHER__MAX_RETURN_WAIT`: longest time until they come back, unless there are so many; default `30m`. It grows
    /// with the time that the endpoint has been away: half of that.
    #[serde(with = "humantime_serde")]
    pub max_return_wait: Duration,
    /// `FLOODWAY_DISPATCHER__MAX_DELIVERIES`: deliveries in memory, from intake to the acknowledgement of their outcome;
    /// default 65536. At the bound, intake waits. Half of it is kept for first attempts, 15 % for retries, 5 % for replays.
    pub max_deliveries: usize,
    /// `FLOODWAY_DISPATCHER__MAX_BYTES`: bytes of the events of those deliveries; default 268435456 (256 MiB). At the bound,
    /// intake waits.
    pub max_bytes: usize,
    /// `FLOODWAY_DISPATCHER__TRACKER_WINDOW`: records of one partition from the oldest unsettled one to the newest received one;
    /// default 262144 (16 bytes each). At the bound, intake of the partition waits. A record stays unsettled for up to `lane_wait`
    /// and an attempt's timeout. When half of the window is used, its oldest attempts are handed to the retry scheduler, so that those
    /// of an endpoint that hangs do not fill it.
    pub tracker_window: usize,
    /// `FLOODWAY_DISPATCHER__MAX_TIMEOUT`: longest attempt, whatever the subscription asks for; default `60s`.
    #[serde(with = "humantime_serde")]
    pub max_timeout: Duration,
    /// `FLOODWAY_DISPATCHER__CONNECT_TIMEOUT`: longest attempt to connect to one address; default `5s`.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// `FLOODWAY_DISPATCHER__POOL_IDLE_TIMEOUT`: how long an unused connection is kept; default `30s`, below the 60 s of
    /// common load balancers.
    #[serde(with = "humantime_serde")]
    pub pool_idle_timeout: Duration,
    /// `FLOODWAY_DISPATCHER__POOL_MAX_IDLE_PER_HOST`: unused connections kept per host; default 64.
    pub pool_max_idle_per_host: usize,
    /// `FLOODWAY_DISPATCHER__MAX_CONNECTIONS_PER_HOST`: connections to one host, of all its subscriptions; default 256. Further
    /// attempts wait for one of them to become free.
    pub max_connections_per_host: usize,
    /// `FLOODWAY_DISPATCHER__MAX_CONNECTIONS`: connections to all hosts; default 4096. A host has at most a quarter of those that
    /// are not in use, and always one per worker.
    pub max_connections: usize,
    /// `FLOODWAY_DISPATCHER__HTTP2`: whether HTTP/2 is spoken with endpoints that offer it over TLS; default `true`. A tenant's
    /// requests share one connection then, and `max_connections_per_host` bounds the requests at a time, too.
    pub http2: bool,
    /// `FLOODWAY_DISPATCHER__CA_FILE`: PEM file with authorities that endpoints' certificates may be signed by, besides the public
    /// ones; default none.
    pub ca_file: Option<PathBuf>,
    /// `FLOODWAY_DISPATCHER__ALLOWED_NETWORKS`: networks (CIDR) that deliveries may reach although they are not public; default
    /// none. For example `["127.0.0.0/8"]` on a developer's machine.
    pub allowed_networks: Vec<IpNet>,
    /// `FLOODWAY_DISPATCHER__PAUSED_RECHECK`: how long a delivery of a paused subscription is deferred at least; default
    /// `15s`. It is deferred for as long again as the subscription has been paused, for an hour at most.
    #[serde(with = "humantime_serde")]
    pub paused_recheck: Duration,
    /// `FLOODWAY_DISPATCHER__MAX_DEFERRAL`: longest deferral of a busy subscription's delivery; default `30s`.
    #[serde(with = "humantime_serde")]
    pub max_deferral: Duration,
    /// `FLOODWAY_DISPATCHER__MAX_RETRY_AFTER`: longest wait that an endpoint's `Retry-After` is granted; default `1h`.
    #[serde(with = "humantime_serde")]
    pub max_retry_after: Duration,
    /// `FLOODWAY_DISPATCHER__CONFIG_GRACE`: a retry or replay younger than this whose subscription is unknown is deferred and
    /// not dropped, for the subscription may be on its way; default `30s`.
    #[serde(with = "humantime_serde")]
    pub config_grace: Duration,
    /// `FLOODWAY_DISPATCHER__REPEAT_WINDOW`: an event with the tenant, source and id of one recorded at most this long before is
    /// taken for a repeat and not delivered; default `60s`. Zero delivers every record.
    #[serde(with = "humantime_serde")]
    pub repeat_window: Duration,
    /// `FLOODWAY_DISPATCHER__REPEAT_IDS`: events of one partition that are remembered for that; default 65536 (about 100 bytes each).
    /// With more in the window, the oldest are forgotten, and their repeats delivered.
    pub repeat_ids: usize,
    /// `FLOODWAY_DISPATCHER__COMMIT_INTERVAL`: time between commits of a partition's progress; default `300ms`. A crash repeats
    /// what was settled since the last one.
    #[serde(with = "humantime_serde")]
    pub commit_interval: Duration,
    /// `FLOODWAY_DISPATCHER__DRAIN_TIMEOUT`: how long attempts may go on after shutdown began; default `20s`. Attempts cut off
    /// are made again by the next owner of their partition.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            workers: 0,
            lane_in_flight: 64,
            lane_queue: 16_384,
            lane_wait: Duration::from_secs(5),
            lane_share: 4,
            breaker_failures: 20,
            breaker_percent: 90,
            breaker_pause: Duration::from_secs(5),
            breaker_max_pause: Duration::from_secs(60),
            return_rate: 500,
            max_return_wait: Duration::from_secs(1800),
            max_deliveries: 65_536,
            max_bytes: 256 * 1024 * 1024,
            tracker_window: 262_144,
            max_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(5),
            pool_idle_timeout: Duration::from_secs(30),
            pool_max_idle_per_host: 64,
            max_connections_per_host: 256,
            max_connections: 4096,
            http2: true,
            ca_file: None,
            allowed_networks: Vec::new(),
            paused_recheck: Duration::from_secs(15),
            max_deferral: Duration::from_secs(30),
            max_retry_after: Duration::from_secs(3600),
            config_grace: Duration::from_secs(30),
            repeat_window: Duration::from_secs(60),
            repeat_ids: 65_536,
            commit_interval: Duration::from_millis(300),
            drain_timeout: Duration::from_secs(20),
        }
    }
}

impl Settings {
    /// Checks what the types do not say.
    ///
    /// # Errors
    /// The name of the setting and what it must be.
    pub fn validate(&self) -> Result<(), String> {
        let counts = [
            ("lane_in_flight", self.lane_in_flight, 1),
            ("lane_share", self.lane_share, 2),
            ("max_deliveries", self.max_deliveries, 16),
            ("max_bytes", self.max_bytes, floodway_schemas::MAX_EVENT_BYTES),
            ("tracker_window", self.tracker_window, 16),
            ("max_connections_per_host", self.max_connections_per_host, 1),
            ("max_connections", self.max_connections, 1),
        ];
        for (name, value, least) in counts {
            if value < least {
                return Err(format!("dispatcher.{name} is {value}, it must be at least {least}"));
            }
        }
        if self.workers > MAX_WORKERS {
            return Err(format!("dispatcher.workers is {}, it must be at most {MAX_WORKERS}", self.workers));
        }
        if self.breaker_failures > BreakerLimits::MOST_FAILURES {
            let most = BreakerLimits::MOST_FAILURES;
            return Err(format!(
                "dispatcher.breaker_failures is {}, it must be at most {most}",
                self.breaker_failures
            ));
        }
        if !(1..=100).contains(&self.breaker_percent) {
            return Err(format!(
                "dispatcher.breaker_percent is {}, it must be from 1 to 100",
                self.breaker_percent
            ));
        }
        if self.return_rate == 0 {
            return Err("dispatcher.return_rate is 0, it must be at least 1".to_owned());
        }
        if self.breaker_max_pause < self.breaker_pause {
            return Err("dispatcher.breaker_max_pause must not be below dispatcher.breaker_pause".to_owned());
        }
        let durations = [
            ("max_timeout", self.max_timeout, 100),
            ("connect_timeout", self.connect_timeout, 10),
            ("pool_idle_timeout", self.pool_idle_timeout, 1),
            ("paused_recheck", self.paused_recheck, 100),
            ("max_deferral", self.max_deferral, 1000),
            ("commit_interval", self.commit_interval, 10),
            ("breaker_pause", self.breaker_pause, 100),
            ("max_return_wait", self.max_return_wait, 1000),
        ];
        for (name, value, least_ms) in durations {
            if value < Duration::from_millis(least_ms) {
                return Err(format!("dispatcher.{name} is {value:?}, it must be at least {least_ms} ms"));
            }
        }
        Ok(())
    }

    /// Threads that make deliveries.
    pub(crate) fn worker_threads(&self) -> usize {
        match self.workers {
            0 => thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS),
            workers => workers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_a_bad_value_is_named() {
        assert_eq!(Settings::default().validate(), Ok(()));
        let bad = Settings { lane_share: 1, ..Settings::default() };
        assert!(bad.validate().unwrap_err().contains("dispatcher.lane_share is 1"));
        let bad = Settings { commit_interval: Duration::ZERO, ..Settings::default() };
        assert!(bad.validate().unwrap_err().contains("dispatcher.commit_interval"));
        type Spoil = fn(&mut Settings);
        let table: [(Spoil, &str); 7] = [
            (|s| s.workers = 10_000, "dispatcher.workers"),
            (|s| s.max_connections = 0, "dispatcher.max_connections"),
            (|s| s.breaker_failures = 65, "dispatcher.breaker_failures"),
            (|s| s.breaker_percent = 0, "dispatcher.breaker_percent"),
            (|s| s.return_rate = 0, "dispatcher.return_rate"),
            (|s| s.max_return_wait = Duration::ZERO, "dispatcher.max_return_wait"),
            (|s| s.breaker_max_pause = Duration::from_secs(1), "dispatcher.breaker_max_pause"),
        ];
        for (spoil, name) in table {
            let mut settings = Settings::default();
            spoil(&mut settings);
            assert!(settings.validate().unwrap_err().contains(name), "{name}");
        }
    }

    #[test]
    fn settings_are_read_by_name_and_unknown_ones_refused() {
        let read: Settings =
            serde_json::from_str(r#"{"allowed_networks":["127.0.0.0/8"],"drain_timeout":"5s"}"#).unwrap();
        assert_eq!(read.drain_timeout, Duration::from_secs(5));
        assert!(read.allowed_networks[0].contains(&"127.0.0.1".parse::<std::net::IpAddr>().unwrap()));
        assert!(serde_json::from_str::<Settings>(r#"{"lanes":1}"#).is_err());
    }
}
