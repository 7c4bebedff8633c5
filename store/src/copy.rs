//! Writing `COPY … FROM STDIN BINARY`.
//!
//! The client's own writer hands rows to the connection in pieces of 4 KiB, that is a few rows at a time, and each piece
//! wakes the connection's task and waits for it. Here rows are encoded into pieces that take a while to send, so the server
//! works on one while the next is encoded.

use crate::retry::WriteError;
use bytes::{BufMut, Bytes, BytesMut};
use deadpool_postgres::Transaction;
use futures_util::SinkExt;
use std::pin::Pin;
use tokio_postgres::{
    CopyInSink,
    types::{IsNull, ToSql, Type},
};

/// What a stream begins with: its signature, no flags, no extension.
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// Bytes handed over at a time. Three of them at most are in memory: being filled, waiting, being sent.
const PIECE: usize = 128 * 1024;
/// Room for the row that makes a piece full.
const SLACK: usize = 8 * 1024;

/// Rows on their way into one table.
pub(crate) struct CopyWriter<'t> {
    sink: Pin<Box<CopyInSink<Bytes>>>,
    types: &'t [Type],
    piece: BytesMut,
}

impl<'t> CopyWriter<'t> {
    /// Begins; `sql` names the columns, which have these types.
    pub(crate) async fn begin(
        transaction: &Transaction<'_>,
        sql: &str,
        types: &'t [Type],
    ) -> Result<Self, WriteError> {
        // Not kept: a named statement must not outlive its transaction where a pooler hands the session on.
        let statement = transaction.prepare(sql).await?;
        let sink = Box::pin(transaction.copy_in(&statement).await?);
        let mut piece = BytesMut::with_capacity(PIECE + SLACK);
        piece.put_slice(HEADER);
        Ok(Self { sink, types, piece })
    }

    /// Appends a row, with a value for each column.
    pub(crate) async fn write(&mut self, values: &[&(dyn ToSql + Sync)]) -> Result<(), WriteError> {
        encode(&mut self.piece, self.types, values)?;
        if self.piece.len() >= PIECE { self.send().await } else { Ok(()) }
    }

    /// Ends; the rows are the transaction's.
    pub(crate) async fn finish(mut self) -> Result<(), WriteError> {
        // What follows the last row.
        self.piece.put_i16(-1);
        self.send().await?;
        self.sink.as_mut().finish().await?;
        Ok(())
    }

    async fn send(&mut self) -> Result<(), WriteError> {
        let piece = std::mem::replace(&mut self.piece, BytesMut::with_capacity(PIECE + SLACK));
        Ok(self.sink.send(piece.freeze()).await?)
    }
}

/// One row: the number of its values, then each with its length, which is -1 for NULL.
fn encode(out: &mut BytesMut, types: &[Type], values: &[&(dyn ToSql + Sync)]) -> Result<(), WriteError> {
    let refused =
        |reason: &dyn std::fmt::Display| WriteError::Refused(format!("a value has no encoding: {reason}"));
    if values.len() != types.len() {
        return Err(refused(&"not one for each column"));
    }
    out.put_i16(i16::try_from(values.len()).map_err(|error| refused(&error))?);
    for (value, column) in values.iter().zip(types) {
        let length_at = out.len();
        out.put_i32(-1);
        if let IsNull::No = value.to_sql_checked(column, out).map_err(|error| refused(&error))? {
            let start = length_at + size_of::<i32>();
            let length = i32::try_from(out.len() - start).map_err(|error| refused(&error))?;
            out[length_at..start].copy_from_slice(&length.to_be_bytes());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_its_number_of_values_and_each_with_its_length() {
        let mut out = BytesMut::new();
        let none: Option<&str> = None;
        encode(&mut out, &[Type::INT4, Type::TEXT, Type::TEXT], &[&7_i32, &none, &"ab"]).unwrap();
        assert_eq!(&out[..], b"\0\x03\0\0\0\x04\0\0\0\x07\xff\xff\xff\xff\0\0\0\x02ab");
    }

    #[test]
    fn a_value_of_another_type_is_refused() {
        let mut out = BytesMut::new();
        for (types, values) in
            [(&[Type::INT4][..], &[&"x" as &(dyn ToSql + Sync)][..]), (&[Type::INT4], &[]), (&[], &[&1_i32])]
        {
            assert!(matches!(encode(&mut out, types, values), Err(WriteError::Refused(_))));
        }
    }
}
