//! Floodway seen from outside: a webhook sink that keeps a ledger, an event sender that records every event's end,
//! and a demo that runs both around a local Floodway and reconciles what they saw with what Floodway reports.
//!
//! Beside them a load generator, and benchmarks that start Floodway's roles and measure what they cost.
//!
//! Everything here uses public interfaces only: the ingest API, the control plane's REST API, webhooks and Kafka's topics.

pub mod admin_client;
pub mod bench;
pub mod child;
pub mod demo;
pub mod file_error;
pub mod live_line;
pub mod load;
pub mod receive;
pub mod report;
pub mod send;
