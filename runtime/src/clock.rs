//! The wall clock. Decision code takes an instant as an argument; only the edges call this.

use floodway_schemas::UnixMillis;
use std::time::{SystemTime, UNIX_EPOCH};

/// The current instant by the system's clock.
#[allow(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
pub fn now() -> UnixMillis {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX))
}
