//! Floodway as a user runs it: processes on real servers, with faults.
#![allow(missing_docs)]
#![allow(clippy::print_stdout, reason = "what a fault did is shown with --nocapture")]

mod batch;
mod delivery;
mod fallback;
mod groups;
mod kafka_cluster;
mod kafka_outage;
mod kafka_security;
mod kill;
mod members;
mod network;
mod outage;
mod outcomes_refused;
mod restore;
mod retries;
mod shutdown;
mod startup;
