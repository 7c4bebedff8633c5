//! Numbers of outcomes, read across minutes, hours and days without counting anything twice.

use crate::{
    DbInstant, Error,
    count_levels::{Cover, Progress},
    pool::Client,
};
use floodway_schemas::{
    UnixMillis,
    ids::{SubscriptionId, TenantId},
};
use std::{collections::BTreeMap, fmt::Write as _, ops::Range};
use tokio_postgres::{
    IsolationLevel,
    types::{ToSql, Type},
};
use uuid::Uuid;

/// Before all counts and after them, where a filter leaves the ends open.
const ALWAYS: Range<UnixMillis> = UnixMillis(0)..UnixMillis(253_370_764_800_000);

/// Which outcomes to count. Fields that are `None` do not restrict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CountFilter {
    /// Whose; never left out.
    pub tenant: TenantId,
    /// To this subscription.
    pub subscription: Option<SubscriptionId>,
    /// Recorded in this minute or later.
    pub from: Option<UnixMillis>,
    /// Recorded in a minute that starts before this instant.
    pub to: Option<UnixMillis>,
}

/// Numbers of events, and the time that they are of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts {
    /// Where counting starts: what was asked for, moved back to a whole minute, and to a whole hour or day where nothing
    /// finer is kept. `None`: with the first outcome.
    pub from: Option<UnixMillis>,
    /// Where it ends, exclusive, moved forward in the same way. `None`: now.
    pub to: Option<UnixMillis>,
    /// By subscription.
    pub subscriptions: Vec<SubscriptionCounts>,
}

/// Events that one subscription had an outcome of, by the decision's name. A name without outcomes is absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionCounts {
    /// The subscription.
    pub subscription: SubscriptionId,
    /// How many events of each kind of outcome.
    pub by_kind: BTreeMap<String, i64>,
}

/// Counts outcomes. One snapshot shows how far they were rolled up and the rows themselves.
pub async fn count(client: &mut Client, filter: &CountFilter) -> Result<Counts, Error> {
    let snapshot = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?;
    let progress = Progress::read(&*snapshot).await?;
    let asked = DbInstant::from_millis(filter.from.unwrap_or(ALWAYS.start))
        ..DbInstant::from_millis(filter.to.unwrap_or(ALWAYS.end));
    let cover = progress.cover(asked);
    let (sql, bounds) = statement(&cover);
    let subscription = filter.subscription.map(|subscription| subscription.0);
    let mut parameters: Vec<(&(dyn ToSql + Sync), Type)> =
        vec![(&filter.tenant.0, Type::UUID), (&subscription, Type::UUID)];
    parameters.extend(bounds.iter().map(|bound| (bound as &(dyn ToSql + Sync), Type::TIMESTAMPTZ)));
    let mut subscriptions: Vec<SubscriptionCounts> = Vec::new();
    for row in snapshot.query_typed(&sql, &parameters).await? {
        let (subscription, kind, n): (Uuid, String, i64) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let subscription = SubscriptionId(subscription);
        match subscriptions.last_mut() {
            Some(last) if last.subscription == subscription => {
                last.by_kind.insert(kind, n);
            }
            _ => {
                subscriptions.push(SubscriptionCounts { subscription, by_kind: BTreeMap::from([(kind, n)]) })
            }
        }
    }
    snapshot.commit().await?;
    let from = filter.from.map(|_| cover.widened.start.to_millis());
    let to = filter.to.map(|_| cover.widened.end.to_millis());
    Ok(Counts { from, to, subscriptions })
}

/// One branch for each stretch of time, so that the planner sees constant bounds and prunes partitions.
fn statement(cover: &Cover) -> (String, Vec<DbInstant>) {
    let mut sql = "-- count_deliveries
        SELECT subscription_id, kind, sum(n)::bigint FROM (
            SELECT NULL::uuid AS subscription_id, NULL::text AS kind, 0::bigint AS n WHERE false"
        .to_owned();
    let mut bounds = Vec::new();
    for (level, span) in &cover.spans {
        let (table, column) = (level.table(), level.column());
        // Parameters 1 and 2 are the tenant and the subscription.
        let (from, to) = (bounds.len() + 3, bounds.len() + 4);
        // Writing to a String cannot fail.
        let _ = write!(
            sql,
            " UNION ALL SELECT subscription_id, kind, n FROM {table}
              WHERE tenant_id = $1 AND ($2::uuid IS NULL OR subscription_id = $2)
                AND {column} >= ${from} AND {column} < ${to}"
        );
        bounds.extend([span.start, span.end]);
    }
    sql.push_str(") AS counted GROUP BY subscription_id, kind ORDER BY subscription_id, kind");
    if cover.spans.is_empty() {
        // The parameters are to have a use.
        sql = "-- count_nothing\nSELECT $1::uuid, $2::uuid::text, 0::bigint WHERE false".to_owned();
    }
    (sql, bounds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::count_levels::Level;

    #[test]
    fn each_stretch_is_a_branch_with_bounds_of_its_own() {
        let at = DbInstant;
        let spans = vec![(Level::Minute, at(1)..at(2)), (Level::Day, at(2)..at(5))];
        let (sql, bounds) = statement(&Cover { widened: at(1)..at(5), spans });
        assert_eq!(bounds, [1, 2, 2, 5].map(DbInstant));
        assert!(
            sql.contains("FROM delivery_count\n") && sql.contains("minute >= $3 AND minute < $4"),
            "{sql}"
        );
        assert!(sql.contains("day >= $5 AND day < $6"), "{sql}");
    }
}
