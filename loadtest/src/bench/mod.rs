//! Benchmarks of whole processes: Floodway's roles, started from the binary that is shipped, under load from outside,
//! with what they use read from the kernel, and with floors beside them.
//!
//! A benchmark writes `report.json`, which holds everything that was measured, and pages made from it.

pub mod about;
pub mod acceptors;
pub mod chart;
pub mod database;
pub mod disk;
pub mod dispatcher;
pub mod document;
mod error;
pub mod figures;
pub mod floor;
pub mod goals;
pub mod html;
pub mod ingest;
pub mod installation;
pub mod machine;
pub mod markdown;
pub mod measure;
pub mod process;
pub mod result;
pub mod scenario;
pub mod scheduler;
pub mod sink;
pub mod summary;
pub mod sweep;
pub mod topics;

pub use self::error::BenchError;
