//! An instant as PostgreSQL keeps it.

use bytes::{BufMut, BytesMut};
use floodway_schemas::UnixMillis;
use std::{error::Error, time::Duration};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, to_sql_checked};

/// 2000-01-01T00:00:00Z, where the server's own count starts, in microseconds since 1970.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

/// Microseconds since 1970-01-01T00:00:00Z, the resolution of `timestamptz`: values survive the way there and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DbInstant(pub i64);

impl DbInstant {
    /// This instant plus `delay`; saturates.
    pub fn plus(self, delay: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(delay.as_micros()).unwrap_or(i64::MAX)))
    }

    /// This instant minus `delay`; saturates.
    pub fn minus(self, delay: Duration) -> Self {
        Self(self.0.saturating_sub(i64::try_from(delay.as_micros()).unwrap_or(i64::MAX)))
    }

    /// Time from `earlier` to this instant; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The instant in milliseconds, rounded down.
    pub fn to_millis(self) -> UnixMillis {
        UnixMillis(self.0.div_euclid(1_000))
    }

    /// The instant of a record, clamped to the years that both sides can express.
    pub fn from_millis(at: UnixMillis) -> Self {
        const YEAR_1_MS: i64 = -62_135_596_800_000;
        const YEAR_9999_END_MS: i64 = 253_402_300_799_999;
        Self(at.0.clamp(YEAR_1_MS, YEAR_9999_END_MS) * 1_000)
    }
}

impl<'a> FromSql<'a> for DbInstant {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn Error + Sync + Send>> {
        let raw: [u8; 8] = raw.try_into()?;
        Ok(Self(i64::from_be_bytes(raw).saturating_add(POSTGRES_EPOCH_US)))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }
}

impl ToSql for DbInstant {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.put_i64(self.0.saturating_sub(POSTGRES_EPOCH_US));
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TIMESTAMPTZ
    }

    to_sql_checked!();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_have_the_servers_binary_form() {
        let mut out = BytesMut::new();
        let instant = DbInstant(POSTGRES_EPOCH_US + 5);
        instant.to_sql(&Type::TIMESTAMPTZ, &mut out).unwrap();
        assert_eq!(out[..], 5i64.to_be_bytes());
        assert_eq!(DbInstant::from_sql(&Type::TIMESTAMPTZ, &out).unwrap(), instant);
    }

    #[test]
    fn differences_do_not_go_below_zero() {
        assert_eq!(DbInstant(5).since(DbInstant(9)), Duration::ZERO);
        assert_eq!(DbInstant(9).since(DbInstant(5)), Duration::from_micros(4));
    }
}
