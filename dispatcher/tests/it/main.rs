//! The dispatcher against a real Kafka and real HTTP receivers.
#![allow(clippy::unwrap_used, reason = "a panic in a test is the report, in its support code, too")]

mod attributes;
mod away;
mod bad_input;
mod batches;
mod deferrals;
mod durability;
mod frames;
mod hand_over;
mod http2;
mod isolation;
mod outcomes;
mod receiver;
mod selection;
mod sources;
mod storm;
mod tls;
mod world;
