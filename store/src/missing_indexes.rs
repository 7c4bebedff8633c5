//! Indexes that a migration began: built partition by partition while everything goes on.
//!
//! To build an index over rows that are there, a migration would lock their table for as long as it takes. So it creates the index
//! `ON ONLY` the table, which takes a moment. Partitions that are made from then on have it; those that were there get it here,
//! concurrently, the newest first. When all have it the table's index is valid, and there is nothing left to do.

use crate::{Error, pool::DedicatedClient};
use std::time::{Duration, Instant};

/// Longest time for one partition, in milliseconds: tens of millions of rows, and everybody who was there before to leave.
const BUILD_TIMEOUT_MS: u32 = 1_800_000;

/// Longest wait for a partition before its index is attached, in milliseconds.
const ATTACH_LOCK_MS: u32 = 500;

/// How long a pass goes on to another partition, so that it comes to an end when there are many.
const PASS: Duration = Duration::from_secs(60);

/// A partition that lacks an index of its table.
#[derive(Debug)]
struct Missing {
    /// The table's index.
    index: String,
    partition: String,
    /// What follows the table's name in the definition.
    definition: String,
    /// What the partition's index is called.
    name: String,
    /// There is one of this name already, and whether it is complete.
    found: Option<bool>,
}

/// Builds what partitions lack and answers the names of the new indexes. The caller holds the maintenance lock.
///
/// # Errors
/// The first one. What was built stays.
pub async fn complete(client: &mut DedicatedClient) -> Result<Vec<String>, Error> {
    let (started, mut built) = (Instant::now(), Vec::new());
    for missing in missing(client).await? {
        if started.elapsed() >= PASS {
            break;
        }
        let limits = format!(
            "-- missing_indexes: limits\nSET statement_timeout = {BUILD_TIMEOUT_MS}; SET transaction_timeout = 0"
        );
        client.batch_execute(&limits).await?;
        for statement in missing.statements() {
            client.batch_execute(&statement).await?;
        }
        built.push(missing.name);
    }
    Ok(built)
}

async fn missing(client: &DedicatedClient) -> Result<Vec<Missing>, Error> {
    let sql = "-- missing_indexes
        SELECT x.relname::text, p.relname::text, pg_get_indexdef(i.indexrelid),
               p.relname || substr(x.relname, length(t.relname) + 1), (
                   SELECT own.indisvalid FROM pg_index own JOIN pg_class c ON c.oid = own.indexrelid
                   WHERE own.indrelid = p.oid AND c.relname = p.relname || substr(x.relname, length(t.relname) + 1)
               )
        FROM pg_index i
        JOIN pg_class x ON x.oid = i.indexrelid AND x.relkind = 'I'
        JOIN pg_class t ON t.oid = i.indrelid AND t.relnamespace = 'public'::regnamespace
        JOIN pg_inherits h ON h.inhparent = t.oid AND NOT h.inhdetachpending
        JOIN pg_class p ON p.oid = h.inhrelid
        WHERE NOT i.indisvalid AND NOT EXISTS (
            SELECT FROM pg_inherits attached JOIN pg_index own ON own.indexrelid = attached.inhrelid
            WHERE attached.inhparent = i.indexrelid AND own.indrelid = p.oid
        )
        ORDER BY x.relname, p.relname DESC";
    let rows = client.query_typed(sql, &[]).await?;
    rows.iter()
        .map(|row| {
            let definition: String = row.try_get(2)?;
            let (_, definition) = definition.split_once(" USING ").unwrap_or(("", &definition));
            Ok(Missing {
                index: row.try_get(0)?,
                partition: row.try_get(1)?,
                definition: format!("USING {definition}"),
                name: row.try_get(3)?,
                found: row.try_get(4)?,
            })
        })
        .collect()
}

impl Missing {
    /// What is to be done, a transaction each. Names are our own migrations', so nothing needs quoting.
    fn statements(&self) -> Vec<String> {
        let Self { index, partition, definition, name, found } = self;
        let mut statements = Vec::new();
        if *found == Some(false) {
            statements.push(format!("-- missing_indexes: interrupted\nDROP INDEX CONCURRENTLY {name}"));
        }
        if *found != Some(true) {
            statements.push(format!("CREATE INDEX CONCURRENTLY {name} ON {partition} {definition}"));
        }
        // It locks the partition for a moment; while a reader has it, who writes must not wait behind this. The next pass tries again.
        statements.push(format!(
            "-- missing_indexes: attach\nSET LOCAL lock_timeout = {ATTACH_LOCK_MS}; ALTER INDEX {index} ATTACH PARTITION {name}"
        ));
        statements
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_interrupted_is_built_again_and_what_is_there_is_taken() {
        let missing = |found| Missing {
            index: "letter_by_type".to_owned(),
            partition: "letter_202611".to_owned(),
            definition: "USING btree (a)".to_owned(),
            name: "letter_202611_by_type".to_owned(),
            found,
        };
        assert_eq!(missing(Some(true)).statements().len(), 1);
        assert_eq!(missing(Some(false)).statements().len(), 3);
        let [build, attach] = &missing(None).statements()[..] else { panic!() };
        assert_eq!(build, "CREATE INDEX CONCURRENTLY letter_202611_by_type ON letter_202611 USING btree (a)");
        assert!(attach.ends_with("ALTER INDEX letter_by_type ATTACH PARTITION letter_202611_by_type"));
    }
}
