//! All SQL and migrations of Floodway.
//!
//! The control plane owns the configuration tables (`tenant`, `api_key`, `subscription`, the outbox), the retry
//! scheduler the rest. Ingest and dispatcher never come here. Every statement opens with a comment that names its
//! function, so that it is recognised in `pg_stat_activity` and in the server's log.

mod address;
pub mod advisory;
pub mod api_keys;
mod copy;
pub mod count_levels;
pub mod counts;
pub mod dead_letters;
pub mod deliveries;
pub mod delivery_indexes;
pub mod error;
pub mod instant;
pub mod mark_bounds;
pub mod migrate;
pub mod missing_indexes;
pub mod outbox;
pub mod page;
pub mod partitions;
pub mod pending_retries;
pub mod pool;
mod rate;
pub mod recover;
pub mod replays;
pub mod replica;
pub mod retry;
pub mod retry_marks;
pub mod subscriptions;
pub mod tenants;
#[cfg(feature = "testing")]
pub mod testing;
mod timestamp;
mod tls;
mod word;

pub use error::Error;
pub use instant::DbInstant;
pub use pool::Pool;
