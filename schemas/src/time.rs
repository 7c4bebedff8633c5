//! Instants as Floodway's records carry them.

use ::time::{OffsetDateTime, format_description::well_known::Rfc3339};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Milliseconds since 1970-01-01T00:00:00Z. Integer on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMillis(pub i64);

impl UnixMillis {
    /// This instant plus `delay`; saturates at the end of time.
    pub fn plus(self, delay: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)))
    }

    /// Time from `earlier` to this instant; zero when `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// Parses RFC 3339, the form of CloudEvents timestamps. `None` when it is not one.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let instant = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        i64::try_from(instant.unix_timestamp_nanos().div_euclid(1_000_000)).ok().map(Self)
    }

    /// Writes RFC 3339 in UTC with milliseconds, for example `2026-11-21T15:34:00.123Z`.
    /// Instants outside the years 0–9999 are clamped to that range.
    pub fn write_rfc3339(self, out: &mut Vec<u8>) {
        let at = self.to_datetime();
        let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
        let mut text = *b"0000-00-00T00:00:00.000Z";
        put_digits(&mut text[0..4], year.unsigned_abs());
        put_digits(&mut text[5..7], u32::from(month));
        put_digits(&mut text[8..10], u32::from(day));
        put_digits(&mut text[11..13], u32::from(at.hour()));
        put_digits(&mut text[14..16], u32::from(at.minute()));
        put_digits(&mut text[17..19], u32::from(at.second()));
        put_digits(&mut text[20..23], u32::from(at.millisecond()));
        out.extend_from_slice(&text);
    }

    /// RFC 3339 text of this instant, see [`UnixMillis::write_rfc3339`].
    pub fn to_rfc3339(self) -> String {
        let mut text = Vec::with_capacity(24);
        self.write_rfc3339(&mut text);
        // The writer emits ASCII digits and separators only.
        String::from_utf8(text).unwrap_or_default()
    }

    /// This instant as a date and time in UTC, clamped to the years 0–9999.
    pub fn to_datetime(self) -> OffsetDateTime {
        const YEAR_0: i64 = -62_167_219_200_000;
        const YEAR_9999_END: i64 = 253_402_300_799_999;
        let millis = self.0.clamp(YEAR_0, YEAR_9999_END);
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    /// The instant of a date and time, rounded down to the millisecond.
    pub fn from_datetime(at: OffsetDateTime) -> Self {
        Self(i64::try_from(at.unix_timestamp_nanos().div_euclid(1_000_000)).unwrap_or(i64::MAX))
    }
}

fn put_digits(out: &mut [u8], mut value: u32) {
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rfc3339_text_is_utc_with_milliseconds() {
        assert_eq!(UnixMillis(1_795_275_240_123).to_rfc3339(), "2026-11-21T15:34:00.123Z");
        assert_eq!(
            UnixMillis::parse_rfc3339("2026-11-21T16:34:00.123+01:00"),
            Some(UnixMillis(1_795_275_240_123))
        );
        assert_eq!(UnixMillis::parse_rfc3339("yesterday"), None);
    }

    proptest! {
        #[test]
        fn rfc3339_round_trips(millis in 0i64..253_402_300_799_999) {
            let at = UnixMillis(millis);
            prop_assert_eq!(UnixMillis::parse_rfc3339(&at.to_rfc3339()), Some(at));
        }
    }
}
