//! The dispatcher against a real Kafka and real HTTP receivers.

mod attributes;
mod deferrals;
mod durability;
mod isolation;
mod outcomes;
mod receiver;
mod selection;
mod world;
