//! What can go wrong: an `Error` ends the role, a `Refusal` answers one request.

use crate::limit::LimitName;
use floodway_runtime::{kafka::KafkaError, topics::TopicsError};
use floodway_schemas::problem::Problem;
use std::{io, net::SocketAddr, time::Duration};
use thiserror::Error;

/// Why the role cannot start, or had to end.
#[derive(Debug, Error)]
pub enum Error {
    /// Correct the setting.
    #[error("setting {setting}: {reason}")]
    Setting {
        /// Its variable.
        setting: String,
        /// What it must be.
        reason: String,
    },
    /// Choose another address, or end the process that has it.
    #[error("cannot listen on {address} (FLOODWAY_INGEST__LISTEN): {source}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// Create or correct the topics.
    #[error(transparent)]
    Topics(#[from] TopicsError),
    /// The Kafka client refused its settings.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// The system did not give a thread or a runtime.
    #[error("cannot start a worker thread: {0}")]
    Worker(#[source] io::Error),
    /// A worker ended although nobody asked for it; the log says why.
    #[error("a worker thread ended unexpectedly")]
    WorkerEnded,
}

/// Why a whole request is refused. Nothing of it has been written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A target over the limit.
    TargetTooLong {
        /// In bytes.
        limit: usize,
    },
    /// Not exactly one `Host`.
    BadHost,
    /// No such path.
    NotFound,
    /// Not a POST.
    MethodNotAllowed,
    /// No key, or not a good one; the answer does not say which.
    Unauthorized,
    /// The key is good, its tenant is not.
    Suspended,
    /// A content type or encoding that is not read.
    UnsupportedMedia(&'static str),
    /// A content coding that is not read, or more than one.
    UnsupportedCoding,
    /// More bytes than the limit.
    BodyTooLarge {
        /// In bytes.
        limit: usize,
    },
    /// More bytes than the limit after the compression is undone.
    InflatedTooLarge {
        /// In bytes.
        limit: usize,
    },
    /// More events than the limit.
    BatchTooLarge {
        /// In events.
        limit: usize,
    },
    /// More events at once than a rate ever allows.
    BurstTooLarge {
        /// In events.
        limit: u32,
        /// Which rate.
        of: LimitName,
    },
    /// An array without events.
    EmptyBatch,
    /// Not JSON, or neither an object nor an array.
    Malformed(String),
    /// Headers that are no attributes of a CloudEvent.
    InvalidHeaders(String),
    /// The body broke off.
    BrokenBody,
    /// The body did not arrive in time.
    SlowBody {
        /// How long was waited.
        limit: Duration,
    },
    /// A rate is used up.
    RateLimited {
        /// When to come back, in seconds.
        retry_after: u64,
        /// Which rate.
        of: LimitName,
    },
    /// As many requests are in progress as may be.
    Busy,
    /// The bodies in memory take all that is set aside for them.
    ReadingFull,
    /// Not all keys are known yet.
    NotReady,
    /// Kafka cannot be reached.
    KafkaAway,
}

/// Seconds after which a client may repeat a request that failed for a passing reason.
pub(crate) const RETRY_AFTER_SECONDS: u64 = 1;

/// Every word of [`Refusal::reason`].
pub(crate) const REASONS: [&str; 17] = [
    "bad_request",
    "batch_too_large",
    "body_too_large",
    "busy",
    "empty_batch",
    "kafka_away",
    "malformed",
    "method",
    "not_found",
    "not_ready",
    "rate_limited",
    "reading_full",
    "slow_body",
    "suspended",
    "target_too_long",
    "unauthorized",
    "unsupported_media",
];

impl Refusal {
    /// The reason as a label of metrics.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::TargetTooLong { .. } => "target_too_long",
            Self::BadHost | Self::BrokenBody => "bad_request",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method",
            Self::Unauthorized => "unauthorized",
            Self::Suspended => "suspended",
            Self::UnsupportedMedia(_) | Self::UnsupportedCoding => "unsupported_media",
            Self::BodyTooLarge { .. } | Self::InflatedTooLarge { .. } => "body_too_large",
            Self::BatchTooLarge { .. } | Self::BurstTooLarge { .. } => "batch_too_large",
            Self::EmptyBatch => "empty_batch",
            Self::Malformed(_) | Self::InvalidHeaders(_) => "malformed",
            Self::SlowBody { .. } => "slow_body",
            Self::RateLimited { .. } => "rate_limited",
            Self::Busy => "busy",
            Self::ReadingFull => "reading_full",
            Self::NotReady => "not_ready",
            Self::KafkaAway => "kafka_away",
        }
    }

    /// The problem document of this refusal.
    pub(crate) fn problem(&self) -> Problem {
        match self {
            Self::TargetTooLong { limit } => {
                Problem::new("urn:floodway:problem:target-too-long", "URI too long", 414)
                    .with_detail(format!("a request's target may have at most {limit} bytes"))
            }
            Self::BadHost => Problem::new("urn:floodway:problem:bad-host", "Bad request", 400)
                .with_detail("a request must have exactly one \"Host\""),
            Self::NotFound => Problem::new("urn:floodway:problem:not-found", "Not found", 404)
                .with_detail("events are sent to POST /v1/events"),
            Self::MethodNotAllowed => {
                Problem::new("urn:floodway:problem:method-not-allowed", "Method not allowed", 405)
                    .with_detail("events are sent with POST")
            }
            Self::Unauthorized => Problem::new("urn:floodway:problem:unauthorized", "Unauthorized", 401)
                .with_detail("send a valid API key as \"Authorization: Bearer <key>\""),
            Self::Suspended => Problem::new("urn:floodway:problem:tenant-suspended", "Tenant suspended", 403)
                .with_detail("the tenant of this API key is suspended"),
            Self::UnsupportedMedia(detail) => {
                Problem::new("urn:floodway:problem:unsupported-media-type", "Unsupported media type", 415)
                    .with_detail(*detail)
            }
            Self::BodyTooLarge { limit } => {
                Problem::new("urn:floodway:problem:body-too-large", "Body too large", 413)
                    .with_detail(format!("a request body may have at most {limit} bytes"))
            }
            Self::UnsupportedCoding => Problem::new(
                "urn:floodway:problem:unsupported-content-coding",
                "Unsupported content coding",
                415,
            )
            .with_detail("the body may be compressed once, with gzip or zstd"),
            Self::InflatedTooLarge { limit } => {
                Problem::new("urn:floodway:problem:inflated-body-too-large", "Inflated body too large", 413)
                    .with_detail(format!("a request body may have at most {limit} bytes when inflated"))
            }
            Self::InvalidHeaders(detail) => {
                Problem::new("urn:floodway:problem:invalid-event", "Invalid event", 400)
                    .with_detail(detail.clone())
            }
            Self::BatchTooLarge { limit } => {
                batch_too_large(format!("a batch may have at most {limit} events"))
            }
            Self::BurstTooLarge { limit, of } => batch_too_large(format!(
                "this {}'s rate allows at most {limit} {} at once",
                of.owner(),
                of.unit()
            )),
            Self::EmptyBatch => Problem::new("urn:floodway:problem:empty-batch", "Empty batch", 400)
                .with_detail("a batch must have at least one event"),
            Self::Malformed(reason) => malformed(reason.clone()),
            Self::BrokenBody => malformed("the body ended before its announced length".to_owned()),
            Self::SlowBody { limit } => {
                Problem::new("urn:floodway:problem:slow-body", "Request timeout", 408)
                    .with_detail(format!("the body must arrive within {} ms", limit.as_millis()))
            }
            Self::RateLimited { retry_after, of } => {
                Problem::new("urn:floodway:problem:rate-limited", "Too many requests", 429).with_detail(
                    format!(
                        "the {}'s {} per second are used up; retry after {retry_after} s",
                        of.owner(),
                        of.unit()
                    ),
                )
            }
            Self::Busy => unavailable("too many requests are in progress; nothing was written"),
            Self::ReadingFull => {
                unavailable("request bodies take all the memory set aside for them; nothing was written")
            }
            Self::NotReady => {
                unavailable("this server is still reading its configuration; nothing was written")
            }
            Self::KafkaAway => unavailable("Kafka cannot be reached; nothing was written"),
        }
    }

    /// When a passing reason should be tried again, in seconds.
    pub(crate) fn retry_after(&self) -> Option<u64> {
        match self {
            Self::RateLimited { retry_after, .. } => Some(*retry_after),
            Self::Busy | Self::ReadingFull | Self::NotReady | Self::KafkaAway => Some(RETRY_AFTER_SECONDS),
            _ => None,
        }
    }
}

fn batch_too_large(detail: String) -> Problem {
    Problem::new("urn:floodway:problem:batch-too-large", "Batch too large", 413).with_detail(detail)
}

fn malformed(detail: String) -> Problem {
    Problem::new("urn:floodway:problem:malformed-body", "Malformed body", 400).with_detail(detail)
}

fn unavailable(detail: &'static str) -> Problem {
    Problem::new("urn:floodway:problem:unavailable", "Service unavailable", 503).with_detail(detail)
}
