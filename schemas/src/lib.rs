//! The contract between Floodway's services: identifiers, records on Kafka topics, API keys,
//! sealed secrets and problem documents.
//!
//! Nothing here performs I/O or reads a clock: time and randomness are arguments. Services meet in
//! this crate and never depend on each other.

pub mod address;
pub mod api_key;
pub mod array;
pub mod batch;
pub mod breaker_policy;
pub mod config;
pub mod conform;
pub mod dead_letter;
pub mod due;
pub mod error;
pub mod event;
pub mod exchange;
pub mod filter;
pub mod ids;
pub mod outcome;
pub mod pattern;
pub mod problem;
pub mod retry_command;
pub mod retry_policy;
pub mod seal;
pub mod time;
pub mod topic;

pub use error::DecodeError;
pub use time::UnixMillis;

/// Largest event that ingest accepts, in bytes of its encoded envelope. Every topic's size limit follows from it.
pub const MAX_EVENT_BYTES: usize = 1024 * 1024;

/// Room that outcomes, due records, replays and dead letters have around the event they carry, in bytes.
/// Without it a near-limit event could never be settled.
pub const RECORD_MARGIN_BYTES: usize = 64 * 1024;
