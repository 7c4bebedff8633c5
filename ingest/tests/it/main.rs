//! Ingest against the real Kafka: what a client sees, and what is on the topic afterwards.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "in a test a panic is the report")]

mod accepting;
mod attacking;
mod ending;
mod formats;
mod harness;
mod inflating;
mod limiting;
mod outage;
mod refusing;
mod starting;
mod tls;
