//! A read replica: how far it is behind.

use crate::{Error, pool::Client};
use std::time::Duration;

/// How old what a server shows is. Zero for a primary, and for a replica that has applied all it received and still receives.
/// One that was cut off is as old as the last transaction it has.
pub async fn lag(client: &Client) -> Result<Duration, Error> {
    let sql = "-- replica_lag
        SELECT CASE
            WHEN NOT pg_is_in_recovery() THEN 0
            WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() AND EXISTS (SELECT FROM pg_stat_wal_receiver) THEN 0
            ELSE coalesce(extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()), 'Infinity')
        END::float8";
    let seconds: f64 = client.query_typed_one(sql, &[]).await?.try_get(0)?;
    Ok(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX))
}
