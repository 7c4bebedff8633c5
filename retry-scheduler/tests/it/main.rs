//! The retry scheduler against the real Kafka and PostgreSQL: `. .stack/env` first.
#![allow(clippy::unwrap_used, reason = "a panic in a test is its report, in its helpers too")]

mod commands;
mod connections;
mod counts;
mod crashes;
mod lost_tail;
mod outages;
mod ownership;
mod pages;
mod partitions;
mod pooler;
mod process;
mod schedule;
mod tables;
mod world;
