//! The retry scheduler against the real Kafka and PostgreSQL: `. .stack/env` first.

mod outages;
mod ownership;
mod partitions;
mod schedule;
mod world;
