//! The control plane against the real Kafka and PostgreSQL.

// A panic in a test is the report; the configured exception covers only the test functions themselves.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod api_keys;
mod dead_letters;
mod disabling;
mod history;
mod lost_brokers;
mod pending_retries;
mod pooler;
mod publication;
mod requests;
mod settings;
mod subscriptions;
mod tenants;
mod world;
