//! The control plane against the real Kafka and PostgreSQL.

mod api_keys;
mod dead_letters;
mod disabling;
mod history;
mod publication;
mod requests;
mod settings;
mod subscriptions;
mod tenants;
mod world;
