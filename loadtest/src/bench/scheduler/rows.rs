//! Rows of retries as COPY takes them, in batches that are made once and sent many times.

use super::{
    outcomes::{DUE_ATTRIBUTE, TENANT, event, subscription},
    stage::Stage,
};
use crate::{bench::BenchError, report::count};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::SinkExt;
use std::pin::pin;
use tokio_postgres::Client;

/// Rows of one batch, which is one transaction: as many as the scheduler stores at once.
pub(super) const BATCH_ROWS: usize = 5_000;

const SQL: &str = "COPY retry (shard, due_at, id, tenant_id, subscription_id, event_id, attempt, record_key, rec) \
                   FROM STDIN BINARY";
/// What a stream of COPY's binary format begins with: its signature, no flags, no extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// 2000-01-01T00:00:00Z, where PostgreSQL's count of microseconds starts, in milliseconds since 1970.
const POSTGRES_EPOCH_MS: i64 = 946_684_800_000;
/// Bytes sent at a time.
const PIECE: usize = 256 * 1024;

/// A batch of rows of which only shard, due time and id change.
pub(super) struct CopyBatch {
    bytes: BytesMut,
    /// Of each row: where its shard, its due time, its id and the digits of the due time in its record begin.
    places: Vec<[usize; 4]>,
}

impl CopyBatch {
    /// Rows with a whole event each, or with a short record.
    pub(super) fn new(whole: bool) -> Self {
        let mut batch = Self { bytes: BytesMut::from(HEADER), places: Vec::with_capacity(BATCH_ROWS) };
        (0..BATCH_ROWS as u64).for_each(|number| batch.push(number, whole));
        // What follows the last row.
        batch.bytes.put_i16(-1);
        batch
    }

    fn push(&mut self, number: u64, whole: bool) {
        let out = &mut self.bytes;
        let uuid = |text: String| u128::from_str_radix(&text.replace('-', ""), 16).unwrap_or(0);
        let record = match whole {
            true => format!(
                "{{\"v\":1,\"origin\":{{\"retry_key\":\"0-{number}\"}},\"tenant\":\"{TENANT}\",\"subscription\":\"{}\",\
                 \"attempt\":2,\"since\":1795275240123,\"event\":{}}}",
                subscription(number),
                event(number, 0)
            ),
            false => format!("{{\"v\":1,{DUE_ATTRIBUTE}0000000000000}}"),
        };
        let digits = record.find(DUE_ATTRIBUTE).unwrap_or(0) + DUE_ATTRIBUTE.len();
        out.put_i16(9);
        out.put_i32(4);
        let shard = out.len();
        out.put_i32(0);
        out.put_i32(8);
        let due = out.len();
        out.put_i64(0);
        out.put_i32(8);
        let id = out.len();
        out.put_i64(0);
        out.put_i32(16);
        out.put_u128(uuid(TENANT.to_owned()));
        out.put_i32(16);
        out.put_u128(uuid(subscription(number)));
        let mut text = |text: &str| {
            out.put_i32(i32::try_from(text.len()).unwrap_or(0));
            out.put_slice(text.as_bytes());
        };
        text(&format!("order-{number:010}"));
        out.put_i32(4);
        out.put_i32(2);
        let mut text = |text: &str| {
            out.put_i32(i32::try_from(text.len()).unwrap_or(0));
            out.put_slice(text.as_bytes());
        };
        text(&format!("{}/customer-{}", subscription(number), number % 1000));
        let record_at = out.len() + 4;
        let mut text = |text: &str| {
            out.put_i32(i32::try_from(text.len()).unwrap_or(0));
            out.put_slice(text.as_bytes());
        };
        text(&record);
        self.places.push([shard, due, id, record_at + digits]);
    }

    /// Appends the first `rows` ids from `first` on, each with the shard and the due time in microseconds since 1970 that
    /// `place` gives it. One transaction.
    ///
    /// # Errors
    /// When the server does not take them.
    pub(super) async fn write(
        &mut self,
        client: &Client,
        first: u64,
        place: impl Fn(u64) -> (i32, i64),
    ) -> Result<(), BenchError> {
        for (index, places) in self.places.iter().enumerate() {
            let [shard_at, due_at, id_at, digits_at] = *places;
            let id = first + index as u64;
            let (shard, due) = place(id);
            let bytes = &mut self.bytes;
            bytes[shard_at..shard_at + 4].copy_from_slice(&shard.to_be_bytes());
            bytes[due_at..due_at + 8].copy_from_slice(&(due - POSTGRES_EPOCH_MS * 1_000).to_be_bytes());
            // Ids are offsets of outcomes; those of the table's own start far behind them.
            bytes[id_at..id_at + 8].copy_from_slice(&i64::try_from(id).unwrap_or(i64::MAX).to_be_bytes());
            bytes[digits_at..digits_at + 13].copy_from_slice(format!("{:013}", due / 1_000).as_bytes());
        }
        let mut sink = pin!(client.copy_in::<_, Bytes>(SQL).await?);
        let mut rest = Bytes::copy_from_slice(&self.bytes);
        while !rest.is_empty() {
            let piece = rest.split_to(PIECE.min(rest.len()));
            sink.send(piece).await?;
        }
        sink.finish().await?;
        Ok(())
    }
}

/// Writes rows of pending retries by COPY.
pub(super) async fn fill(
    stage: &mut Stage<'_>,
    number: u64,
    whole: bool,
    place: impl Fn(u64) -> (i32, i64),
) -> Result<(), BenchError> {
    let mut batch = CopyBatch::new(whole);
    let mut first = 0;
    while first < number {
        stage.live.update(format!("writing rows: {} of {}", count(first), count(number)));
        batch.write(&stage.client, first, &place).await?;
        first += BATCH_ROWS as u64;
    }
    Ok(())
}

/// What a record says of when it is due, in milliseconds.
pub(super) fn due_in(record: &[u8]) -> Option<u64> {
    let at = memchr::memmem::find(record, DUE_ATTRIBUTE.as_bytes())? + DUE_ATTRIBUTE.len();
    std::str::from_utf8(record.get(at..at + 13)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_when_it_is_due() {
        assert_eq!(due_in(event(3, 1_795_275_240_123).as_bytes()), Some(1_795_275_240_123));
        assert_eq!(due_in(b"{}"), None);
    }

    #[test]
    fn the_places_of_a_batch_hold_what_they_are_for() {
        let batch = CopyBatch::new(true);
        assert_eq!(batch.places.len(), BATCH_ROWS);
        let [shard, due, id, digits] = batch.places[17];
        let length = |at: usize| batch.bytes[at - 4..at].to_vec();
        assert_eq!(
            (length(shard), length(due), length(id)),
            (vec![0, 0, 0, 4], vec![0, 0, 0, 8], vec![0, 0, 0, 8])
        );
        assert_eq!(&batch.bytes[digits..digits + 13], b"0000000000000");
    }
}
