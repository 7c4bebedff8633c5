//! Floodway seen from outside: a webhook sink that keeps a ledger, an event sender that records every event's end,
//! and a demo that runs both around a local Floodway and reconciles what they saw with what Floodway reports.
//!
//! Everything here uses public interfaces only: the ingest API, the control plane's REST API and webhooks.

pub mod admin_client;
pub mod bench;
pub mod child;
pub mod demo;
pub mod live_line;
pub mod load;
pub mod receive;
pub mod report;
pub mod send;
