//! Indexes of history, built when an hour has closed.
//!
//! While its hour lasts, a partition has one index of all its rows, by tenant and time, and the same of its batches. The others would be paid for with every row at the
//! moment when the most rows come; built at once over an hour that nobody writes to any more they cost a fraction, and their
//! pages are full. docs/decisions/018-history-indexed-on-close.md has the figures.
//!
//! They belong to the partitions and have no counterpart at the table itself: a partition that is attached gets every index
//! that its table has, before the first row.

use crate::{
    Error,
    partitions::{self, Span, Table},
    pool::DedicatedClient,
};
use std::{
    collections::HashSet,
    fmt::Write as _,
    time::{Duration, Instant},
};

/// What a closed hour can be looked through by besides tenant and time: name and definition. All but the look-up by event
/// end in the time, so that a page reads no more than it shows. Rows of one batch have one time, hence equal keys, of which
/// an index stores one: it takes a few bytes per row.
const INDEXES: [(&str, &str); 7] = [
    ("by_event", "(event_id)"),
    ("by_member", "USING gin (members) WHERE members IS NOT NULL"),
    ("by_subscription", "(subscription_id, recorded_at)"),
    ("by_kind", "(tenant_id, kind, recorded_at)"),
    ("by_type", "(tenant_id, event_type, recorded_at)"),
    ("by_status", "(tenant_id, status, recorded_at) WHERE status IS NOT NULL"),
    ("by_error", "(tenant_id, error, recorded_at) WHERE error IS NOT NULL"),
];

/// Wait after the end of an hour: transactions that began in it have ended.
const SETTLE: Duration = Duration::from_secs(60);

/// Longest time for one hour's indexes, in milliseconds: tens of millions of rows.
const BUILD_TIMEOUT_MS: u32 = 1_800_000;

/// How long a pass goes on to another hour, so that it comes to an end when there are many.
const PASS: Duration = Duration::from_secs(60);

/// Builds what closed hours lack, oldest first. An hour's indexes and its statistics are one transaction. Answers the hours'
/// names. The caller holds the maintenance lock.
///
/// # Errors
/// The first one of an hour, after the other hours were tried, too; at once when the database is away.
pub async fn build(client: &mut DedicatedClient) -> Result<Vec<String>, Error> {
    let (mut hours, now) = partitions::existing(client, Table::Delivery).await?;
    hours.retain(|hour| hour.end() <= now.minus(SETTLE));
    hours.sort_unstable_by_key(|hour| hour.start);
    let indexed = indexed(client).await?;
    let started = Instant::now();
    let mut built = Vec::new();
    let mut failed = None;
    for hour in hours {
        let name = hour.partition_of(Table::Delivery);
        if indexed.contains(&name) || started.elapsed() >= PASS {
            continue;
        }
        match build_hour(client, hour).await {
            Ok(()) => built.push(name),
            Err(error) if error.is_unavailable() => return Err(error),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(built), Err)
}

/// Names of the partitions that have the last of the indexes, hence all.
async fn indexed(client: &DedicatedClient) -> Result<HashSet<String>, Error> {
    let sql = format!(
        "-- indexed_partitions
        SELECT t.relname::text FROM pg_inherits i
        JOIN pg_class t ON t.oid = i.inhrelid
        JOIN pg_index x ON x.indrelid = t.oid
        JOIN pg_class c ON c.oid = x.indexrelid
        WHERE i.inhparent = 'delivery'::regclass AND c.relname = t.relname || '_{}'",
        INDEXES[INDEXES.len() - 1].0
    );
    let rows = client.query_typed(&sql, &[]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

async fn build_hour(client: &mut DedicatedClient, hour: Span) -> Result<(), Error> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(&build_sql(&hour.partition_of(Table::Delivery))).await?;
    Ok(transaction.commit().await?)
}

/// Names are made from numbers here, so nothing needs quoting.
fn build_sql(partition: &str) -> String {
    let mut sql = format!("-- build_indexes\nSET LOCAL statement_timeout = {BUILD_TIMEOUT_MS};\n");
    for (name, definition) in INDEXES {
        // Writing to a String cannot fail.
        let _ = writeln!(sql, "CREATE INDEX {partition}_{name} ON {partition} {definition};");
    }
    let _ = writeln!(sql, "ANALYZE {partition};");
    sql
}
