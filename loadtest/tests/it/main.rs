//! The tool against servers of the test's own: what it receives, sends and reconciles.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in tests a panic is the report")]

mod bench;
mod demo;
mod dispatcher_bench;
mod fake_floodway;
mod http;
mod load;
mod receiver;
mod scheduler_bench;
mod sender;
