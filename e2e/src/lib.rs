//! Whole-process tests: the released binary's roles as processes of their own, on real servers, with faults.
//!
//! A test starts a [`pipeline::Pipeline`], lets a [`producer::Producer`] send events, injects a fault, and reconciles
//! the ledgers: every acknowledged event against what the receivers got and what was dead-lettered.

pub mod backup;
pub mod front;
pub mod load;
pub mod pipeline;
pub mod producer;
pub mod progress;
pub mod reconcile;
pub mod role;
pub mod stack;
pub mod takeovers;
pub mod topic_reader;
pub mod unreliable_network;
