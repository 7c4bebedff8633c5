//! Marks of dead letters that were asked to be delivered again. Append-only: a dead letter itself never changes.

use crate::{Error, timestamp};
use floodway_schemas::{
    UnixMillis,
    due::RetryKey,
    ids::{ReplayId, TenantId},
};
use tokio_postgres::{
    GenericClient,
    types::{ToSql, Type},
};

/// Marks `letters` as asked for again. Written after their records were acknowledged: a mark never promises a delivery
/// that nobody makes. The time is the server's, for it decides on the partition.
pub async fn mark(
    client: &impl GenericClient,
    tenant: TenantId,
    replay: ReplayId,
    letters: &[RetryKey],
) -> Result<(), Error> {
    let (shards, offsets): (Vec<i32>, Vec<i64>) = letters.iter().map(|key| (key.shard, key.id)).unzip();
    let sql = "-- replays::mark
        INSERT INTO dead_letter_replay (tenant_id, shard, outcome_offset, replay_id, requested_at)
        SELECT $1, shard, outcome_offset, $2, clock_timestamp() FROM unnest($3::int4[], $4::int8[]) AS letter (shard, outcome_offset)";
    let parameters: [(&(dyn ToSql + Sync), Type); 4] = [
        (&tenant.0, Type::UUID),
        (&replay.0, Type::UUID),
        (&shards, Type::INT4_ARRAY),
        (&offsets, Type::INT8_ARRAY),
    ];
    client.execute_typed(sql, &parameters).await?;
    Ok(())
}

/// Which of `letters` were asked for, how often and when last.
pub async fn marks(client: &impl GenericClient, letters: &[RetryKey]) -> Result<Vec<Marks>, Error> {
    let (shards, offsets): (Vec<i32>, Vec<i64>) = letters.iter().map(|key| (key.shard, key.id)).unzip();
    let sql = "-- replays::marks
        SELECT shard, outcome_offset, count(*) AS replays, max(requested_at) AS last_at
        FROM dead_letter_replay
        JOIN unnest($1::int4[], $2::int8[]) AS letter (shard, outcome_offset) USING (shard, outcome_offset)
        GROUP BY shard, outcome_offset";
    let parameters: [(&(dyn ToSql + Sync), Type); 2] =
        [(&shards, Type::INT4_ARRAY), (&offsets, Type::INT8_ARRAY)];
    let rows = client.query_typed(sql, &parameters).await?;
    rows.iter()
        .map(|row| {
            Ok(Marks {
                letter: RetryKey { shard: row.try_get("shard")?, id: row.try_get("outcome_offset")? },
                replays: row.try_get("replays")?,
                last_at: timestamp::column(row, "last_at")?,
            })
        })
        .collect()
}

/// How often a dead letter was asked for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marks {
    /// The dead letter.
    pub letter: RetryKey,
    /// Number of requests.
    pub replays: i64,
    /// The last of them.
    pub last_at: UnixMillis,
}
