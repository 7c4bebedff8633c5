//! The section `[ingest]`: every field's variable, unit and default.

use crate::{error::Error, inflate::MAX_WINDOW_BYTES};
use floodway_schemas::MAX_EVENT_BYTES;
use serde::{Deserialize, Deserializer, de};
use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    path::PathBuf,
    thread,
    time::Duration,
};

/// Most worker threads: far more than one machine profits from, and a bound on the sockets opened.
const MAX_WORKERS: usize = 256;
/// Least size of the header buffer's partner, the body limit, in bytes: one event of the largest size must fit.
const MIN_BODY_BYTES: usize = MAX_EVENT_BYTES;
/// What a queued record takes besides its value: the key, the header and the client's own bookkeeping, in bytes.
pub(crate) const RECORD_OVERHEAD_BYTES: usize = 1024;

/// Settings of the ingest role.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// `FLOODWAY_INGEST__LISTEN`: address and port of the HTTP listener; default `127.0.0.1:8080`.
    pub listen: SocketAddr,
    /// `FLOODWAY_INGEST__WORKERS`: threads that serve HTTP; default 0, one per available core. The Kafka client has
    /// threads of its own beside them.
    pub workers: usize,
    /// `FLOODWAY_INGEST__MAX_CONNECTIONS`: open connections over all workers; default 10,000. Further ones are
    /// answered 503 and closed.
    pub max_connections: usize,
    /// `FLOODWAY_INGEST__MAX_CONNECTIONS_PER_ADDRESS`: those of one client address, an IPv6 network of 64 bits counting as
    /// one; default 5,000, half of the default of all: lower it with that one. 0 for no limit, where a proxy speaks for all
    /// clients.
    pub max_connections_per_address: usize,
    /// `FLOODWAY_INGEST__MAX_REQUESTS`: requests in progress over all workers, each of which has an equal part; default
    /// 20,000. Further ones are answered 503.
    pub max_requests: usize,
    /// `FLOODWAY_INGEST__TLS_CERTIFICATE`: PEM file with the certificate and its chain. With it the listener speaks TLS only;
    /// default none. A renewed pair of files is taken over without a restart.
    pub tls_certificate: Option<PathBuf>,
    /// `FLOODWAY_INGEST__TLS_KEY`: PEM file with the certificate's private key; needed with the certificate.
    pub tls_key: Option<PathBuf>,
    /// `FLOODWAY_INGEST__TLS_MIN_VERSION`: oldest version of TLS that is spoken, `1.3` or `1.2`; default `1.3`.
    pub tls_min_version: TlsVersion,
    /// `FLOODWAY_INGEST__TLS_HANDSHAKE_TIMEOUT`: longest time for a TLS handshake; default `10s`. Handshakes in progress
    /// count as connections.
    #[serde(with = "humantime_serde")]
    pub tls_handshake_timeout: Duration,
    /// `FLOODWAY_INGEST__MAX_BODY_BYTES`: largest request body in bytes; default 10 MiB.
    pub max_body_bytes: usize,
    /// `FLOODWAY_INGEST__MAX_INFLATED_BYTES`: largest request body in bytes after its compression is undone; default
    /// 50 MiB. As sent it has at most `FLOODWAY_INGEST__MAX_BODY_BYTES`.
    pub max_inflated_bytes: usize,
    /// `FLOODWAY_INGEST__MAX_READING_BYTES`: request bodies in memory over all connections, in bytes, from their
    /// announcement to their answer; default 256 MiB. Requests beyond it are answered 503. One tenant takes at most
    /// half of it, or one body.
    pub max_reading_bytes: usize,
    /// `FLOODWAY_INGEST__MAX_BATCH_EVENTS`: most events in one request; default 10,000.
    pub max_batch_events: usize,
    /// `FLOODWAY_INGEST__HEADER_TIMEOUT`: longest wait for the header of the next request, idle time between
    /// requests included; default `30s`. Checked now and then: it may take half as long again.
    #[serde(with = "humantime_serde")]
    pub header_timeout: Duration,
    /// `FLOODWAY_INGEST__BODY_TIMEOUT`: longest time for a request's body to arrive; default `30s`.
    #[serde(with = "humantime_serde")]
    pub body_timeout: Duration,
    /// `FLOODWAY_INGEST__PUBLISH_TIMEOUT`: longest wait for Kafka's acknowledgement, from enqueueing; default `10s`.
    #[serde(with = "humantime_serde")]
    pub publish_timeout: Duration,
    /// `FLOODWAY_INGEST__DRAIN_TIMEOUT`: time for requests in flight when the process ends; default `25s`, below
    /// the 30 s that Kubernetes grants.
    #[serde(with = "humantime_serde")]
    pub drain_timeout: Duration,
    /// `FLOODWAY_INGEST__QUEUE_EVENTS`: events waiting for Kafka's acknowledgement over all requests; default 500,000.
    pub queue_events: u32,
    /// `FLOODWAY_INGEST__QUEUE_BYTES`: their bytes; default 512 MiB.
    pub queue_bytes: usize,
    /// `FLOODWAY_INGEST__PARTITION_QUEUE_BYTES`: bytes waiting for one partition; default 64 MiB. Keeps a partition
    /// without a leader from filling the queue of all.
    pub partition_queue_bytes: usize,
    /// `FLOODWAY_INGEST__DEFAULT_EVENTS_PER_SECOND`: rate of tenants that have none of their own, per process;
    /// default unlimited.
    pub default_events_per_second: Option<NonZeroU32>,
    /// `FLOODWAY_INGEST__DEFAULT_REQUESTS_PER_SECOND`: the same of requests; default unlimited.
    pub default_requests_per_second: Option<NonZeroU32>,
    /// `FLOODWAY_INGEST__BURST_SECONDS`: how many seconds' worth of events or requests a tenant or key with a rate may send
    /// at once; default 10.
    pub burst_seconds: NonZeroU32,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// 1.2, for clients that know no better.
    V1_2,
    /// 1.3.
    V1_3,
}

impl<'de> Deserialize<'de> for TlsVersion {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Versions;

        impl de::Visitor<'_> for Versions {
            type Value = TlsVersion;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("1.2 or 1.3")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<TlsVersion, E> {
                match text {
                    "1.2" => Ok(TlsVersion::V1_2),
                    "1.3" => Ok(TlsVersion::V1_3),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }

            // A variable of the environment that looks like a number is read as one.
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<TlsVersion, E> {
                self.visit_str(&format!("{number}"))
            }
        }

        deserializer.deserialize_any(Versions)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            workers: 0,
            max_connections: 10_000,
            max_connections_per_address: 5_000,
            max_requests: 20_000,
            tls_certificate: None,
            tls_key: None,
            tls_min_version: TlsVersion::V1_3,
            tls_handshake_timeout: Duration::from_secs(10),
            max_body_bytes: 10 * 1024 * 1024,
            max_inflated_bytes: 50 * 1024 * 1024,
            max_reading_bytes: 256 * 1024 * 1024,
            max_batch_events: 10_000,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            publish_timeout: Duration::from_secs(10),
            drain_timeout: Duration::from_secs(25),
            queue_events: 500_000,
            queue_bytes: 512 * 1024 * 1024,
            partition_queue_bytes: 64 * 1024 * 1024,
            default_events_per_second: None,
            default_requests_per_second: None,
            burst_seconds: const { NonZeroU32::new(10).unwrap() },
        }
    }
}

impl Settings {
    /// Checks every setting against its bounds and against the others.
    ///
    /// # Errors
    /// [`Error::Setting`], naming the variable.
    pub fn validate(&self) -> Result<(), Error> {
        let seconds = |range: std::ops::RangeInclusive<u64>, value: Duration| {
            value >= Duration::from_secs(*range.start()) && value <= Duration::from_secs(*range.end())
        };
        let record = MAX_EVENT_BYTES + RECORD_OVERHEAD_BYTES;
        let rules: [(&'static str, bool, String); 17] = [
            ("WORKERS", self.workers <= MAX_WORKERS, format!("must be at most {MAX_WORKERS}")),
            ("MAX_CONNECTIONS", self.max_connections > 0, "must be at least 1".to_owned()),
            ("MAX_REQUESTS", self.max_requests > 0, "must be at least 1".to_owned()),
            (
                "MAX_BODY_BYTES",
                (MIN_BODY_BYTES..=1 << 30).contains(&self.max_body_bytes),
                format!("must be between {MIN_BODY_BYTES} (one event) and 1 GiB"),
            ),
            (
                "MAX_INFLATED_BYTES",
                (MIN_BODY_BYTES..=1 << 30).contains(&self.max_inflated_bytes),
                format!("must be between {MIN_BODY_BYTES} (one event) and 1 GiB"),
            ),
            (
                "MAX_READING_BYTES",
                self.max_reading_bytes >= self.max_body_bytes,
                "must be at least FLOODWAY_INGEST__MAX_BODY_BYTES (one body)".to_owned(),
            ),
            (
                "MAX_BATCH_EVENTS",
                (1..=1_000_000).contains(&self.max_batch_events),
                "must be between 1 and 1,000,000".to_owned(),
            ),
            (
                "TLS_KEY",
                self.tls_certificate.is_none() || self.tls_key.is_some(),
                "must be set with FLOODWAY_INGEST__TLS_CERTIFICATE".to_owned(),
            ),
            (
                "TLS_CERTIFICATE",
                self.tls_key.is_none() || self.tls_certificate.is_some(),
                "must be set with FLOODWAY_INGEST__TLS_KEY".to_owned(),
            ),
            ("TLS_HANDSHAKE_TIMEOUT", is_wait(self.tls_handshake_timeout), WAIT.to_owned()),
            ("HEADER_TIMEOUT", is_wait(self.header_timeout), WAIT.to_owned()),
            ("BODY_TIMEOUT", is_wait(self.body_timeout), WAIT.to_owned()),
            (
                "PUBLISH_TIMEOUT",
                seconds(1..=300, self.publish_timeout),
                "must be between 1s and 300s".to_owned(),
            ),
            (
                "DRAIN_TIMEOUT",
                self.drain_timeout >= self.publish_deadline(),
                format!("must be at least {:?}, for requests that wait for Kafka", self.publish_deadline()),
            ),
            (
                "QUEUE_EVENTS",
                (1..=10_000_000).contains(&self.queue_events),
                "must be between 1 and 10,000,000".to_owned(),
            ),
            (
                "QUEUE_BYTES",
                self.queue_bytes >= record && self.queue_bytes / 1024 <= 2_097_151,
                format!("must be between {record} (one event) and 2 GiB"),
            ),
            (
                "PARTITION_QUEUE_BYTES",
                (record..=self.queue_bytes).contains(&self.partition_queue_bytes),
                format!("must be between {record} (one event) and FLOODWAY_INGEST__QUEUE_BYTES"),
            ),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            Some((name, _, reason)) => {
                Err(Error::Setting { setting: format!("FLOODWAY_INGEST__{name}"), reason })
            }
            None => Ok(()),
        }
    }

    /// When a request stops waiting for acknowledgements. Later than the client's own timeout, which looks at its
    /// messages about once a second: so an event reported as failed is not written afterwards.
    pub(crate) fn publish_deadline(&self) -> Duration {
        self.publish_timeout + Duration::from_millis(1500)
    }

    /// Most bytes of an inflated body beside which `others` are held. What could never fit into the memory set aside for
    /// bodies is too large, and not worth another try.
    pub(crate) fn inflated_limit(&self, others: usize) -> usize {
        self.max_inflated_bytes.min(self.max_reading_bytes.saturating_sub(others))
    }

    /// Most memory that one body takes: as sent and inflated, and the decoder's window.
    pub(crate) fn largest_body(&self) -> usize {
        (self.max_body_bytes + self.max_inflated_bytes + MAX_WINDOW_BYTES).min(self.max_reading_bytes)
    }

    /// Threads that serve HTTP.
    pub(crate) fn worker_count(&self) -> usize {
        match self.workers {
            0 => thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS),
            workers => workers,
        }
    }
}

const WAIT: &str = "must be between 10ms and 1h";

fn is_wait(value: Duration) -> bool {
    (Duration::from_millis(10)..=Duration::from_secs(3600)).contains(&value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        Settings::default().validate().unwrap();
    }

    #[test]
    fn a_bad_setting_is_refused_by_its_name() {
        type Spoil = fn(&mut Settings);
        let table: [(Spoil, &str); 12] = [
            (|s| s.max_connections = 0, "FLOODWAY_INGEST__MAX_CONNECTIONS"),
            (|s| s.max_requests = 0, "FLOODWAY_INGEST__MAX_REQUESTS"),
            (|s| s.max_body_bytes = 10, "FLOODWAY_INGEST__MAX_BODY_BYTES"),
            (|s| s.max_inflated_bytes = 10, "FLOODWAY_INGEST__MAX_INFLATED_BYTES"),
            (|s| s.max_reading_bytes = s.max_body_bytes - 1, "FLOODWAY_INGEST__MAX_READING_BYTES"),
            (|s| s.body_timeout = Duration::ZERO, "FLOODWAY_INGEST__BODY_TIMEOUT"),
            (|s| s.drain_timeout = Duration::from_secs(5), "FLOODWAY_INGEST__DRAIN_TIMEOUT"),
            (|s| s.partition_queue_bytes = 10, "FLOODWAY_INGEST__PARTITION_QUEUE_BYTES"),
            (|s| s.workers = 10_000, "FLOODWAY_INGEST__WORKERS"),
            (|s| s.tls_key = Some("key.pem".into()), "FLOODWAY_INGEST__TLS_CERTIFICATE"),
            (|s| s.tls_certificate = Some("certificate.pem".into()), "FLOODWAY_INGEST__TLS_KEY"),
            (|s| s.tls_handshake_timeout = Duration::ZERO, "FLOODWAY_INGEST__TLS_HANDSHAKE_TIMEOUT"),
        ];
        for (spoil, name) in table {
            let mut settings = Settings::default();
            spoil(&mut settings);
            let error = settings.validate().unwrap_err().to_string();
            assert!(error.starts_with(&format!("setting {name}: must be")), "{error}");
        }
    }

    #[test]
    fn durations_are_written_with_a_unit_and_unknown_keys_are_refused() {
        let settings: Settings =
            serde_json::from_str(r#"{"publish_timeout":"2s","listen":"127.0.0.1:0"}"#).unwrap();
        assert_eq!(settings.publish_timeout, Duration::from_secs(2));
        assert!(serde_json::from_str::<Settings>(r#"{"lissen":"127.0.0.1:0"}"#).is_err());
    }

    #[test]
    fn a_version_of_tls_is_read_as_text_and_as_a_number() {
        let read = |json: &str| serde_json::from_str::<TlsVersion>(json).map_err(|error| error.to_string());
        assert_eq!((read("1.2"), read("\"1.2\"")), (Ok(TlsVersion::V1_2), Ok(TlsVersion::V1_2)));
        assert_eq!((read("1.3"), read("\"1.3\"")), (Ok(TlsVersion::V1_3), Ok(TlsVersion::V1_3)));
        assert!(read("1.1").unwrap_err().contains("expected 1.2 or 1.3"));
    }
}
