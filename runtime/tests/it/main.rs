//! The runtime against a real broker.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is the report")]
#![allow(missing_docs)]

mod config_feed;
mod lost_brokers;
mod topics;
