//! How many commands to pending retries a shard keeps: of all tenants, and of each.
//!
//! Here, because more than one asks: the retry scheduler passes over what is beyond the bounds, and who writes a command refuses it
//! before that, as far as the table tells.

use crate::Error;
use floodway_schemas::retry_command::{RetryCommand, RetryScope};
use thiserror::Error as ThisError;
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

/// Commands that a shard keeps, about 300 bytes each in its owner's memory.
pub const MAX_KEPT: usize = 20_000;
/// Those of one tenant: a tenth, so that no few of them use up what others need.
pub const MAX_OF_TENANT: usize = 2_000;
/// Those of a tenant that are about single events or retries. The rest is for whole subscriptions: who has given too many small commands can
/// still give a large one.
pub const MAX_NARROW: usize = 1_500;

/// How many commands a shard keeps, as one tenant sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// Of all tenants.
    pub of_all: usize,
    /// Of this one.
    pub of_tenant: usize,
    /// Those of them that are about single events or retries.
    pub narrow: usize,
}

/// Which bound a command is beyond. Its text is for whoever gave the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ThisError)]
pub enum Full {
    /// [`MAX_NARROW`].
    #[error(
        "{MAX_NARROW} of the tenant's commands about single events and retries are kept already, as many as may be: name a whole \
         subscription, or wait until retries that were pending at the earliest ones have been due"
    )]
    Narrow,
    /// [`MAX_OF_TENANT`].
    #[error(
        "{MAX_OF_TENANT} of the tenant's commands to pending retries are kept already, as many as may be: wait until retries that were \
         pending at the earliest ones have been due"
    )]
    Tenant,
    /// [`MAX_KEPT`].
    #[error(
        "{MAX_KEPT} commands to pending retries are kept already, as many as there may be of all tenants: try again later"
    )]
    Shard,
}

impl Full {
    /// Every bound.
    pub const ALL: [Self; 3] = [Self::Narrow, Self::Tenant, Self::Shard];

    /// The bound's name, in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Narrow => "narrow",
            Self::Tenant => "tenant",
            Self::Shard => "shard",
        }
    }
}

impl Kept {
    /// Whether one more command is kept.
    ///
    /// # Errors
    /// The bound that it is beyond.
    pub fn has_room(self, scope: &RetryScope) -> Result<(), Full> {
        if is_narrow(scope) && self.narrow >= MAX_NARROW {
            return Err(Full::Narrow);
        }
        if self.of_tenant >= MAX_OF_TENANT {
            return Err(Full::Tenant);
        }
        if self.of_all >= MAX_KEPT { Err(Full::Shard) } else { Ok(()) }
    }

    /// Counts one more of the tenant's.
    pub fn add(&mut self, is_narrow: bool) {
        self.of_all += 1;
        self.of_tenant += 1;
        self.narrow += usize::from(is_narrow);
    }
}

/// Whether a command is about less than a whole subscription.
pub fn is_narrow(scope: &RetryScope) -> bool {
    scope.event_id.is_some() || scope.retry.is_some()
}

/// The bound that a command is beyond in one of the shards that it goes to, as far as commands before it were read.
pub async fn full_for(
    client: &tokio_postgres::Client,
    command: &RetryCommand,
) -> Result<Option<Full>, Error> {
    // Of a mark's rows the first one, and no other, has no progress.
    let sql = "-- marks_kept
        SELECT count(*), count(*) FILTER (WHERE m.tenant_id = $1),
               count(*) FILTER (WHERE m.tenant_id = $1 AND (m.event_id IS NOT NULL OR m.retry_id IS NOT NULL))
        FROM retry_mark m JOIN retry_shard s ON s.shard = m.shard
        WHERE m.done < 0 AND m.until >= s.cur_due AND ($2::int4 IS NULL OR m.shard = $2)
        GROUP BY m.shard";
    let shard = command.scope.retry.map(|retry| retry.shard);
    let parameters: [(&(dyn ToSql + Sync), Type); 2] =
        [(&command.tenant.0, Type::UUID), (&shard, Type::INT4)];
    for row in client.query_typed(sql, &parameters).await? {
        if let Err(full) = kept_from_row(&row)?.has_room(&command.scope) {
            return Ok(Some(full));
        }
    }
    Ok(None)
}

fn kept_from_row(row: &Row) -> Result<Kept, Error> {
    let number = |column| -> Result<usize, Error> {
        Ok(usize::try_from(row.try_get::<_, i64>(column)?).unwrap_or(usize::MAX))
    };
    Ok(Kept { of_all: number(0)?, of_tenant: number(1)?, narrow: number(2)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use floodway_schemas::ids::SubscriptionId;
    use uuid::Uuid;

    #[test]
    fn who_has_given_too_many_small_commands_can_still_give_a_large_one() {
        let whole = RetryScope::of_subscription(SubscriptionId(Uuid::nil()));
        let narrow = RetryScope { event_id: Some("e".into()), ..RetryScope::default() };
        let mut kept = Kept::default();
        (0..MAX_NARROW).for_each(|_| kept.add(true));
        assert_eq!((kept.has_room(&narrow), kept.has_room(&whole)), (Err(Full::Narrow), Ok(())));
        (MAX_NARROW..MAX_OF_TENANT).for_each(|_| kept.add(false));
        assert_eq!(kept.has_room(&whole), Err(Full::Tenant));
        let others = Kept { of_all: MAX_KEPT, ..Kept::default() };
        assert_eq!(others.has_room(&whole), Err(Full::Shard));
    }
}
