//! Pages of a list. A cursor is opaque: clients send back what they were given.

use crate::error::Refusal;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use floodway_store::page::{HistoryCursor, Page};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

/// Items of a page unless the client asks for another number.
const DEFAULT_LIMIT: u32 = 100;
/// Most items of a page.
const MAX_LIMIT: u32 = 500;

/// Which part of a list.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct PageQuery {
    /// `next_cursor` of the page before; absent for the first.
    cursor: Option<String>,
    /// Most items to return, 1 to 500; default 100.
    limit: Option<u32>,
}

/// A part of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PageOf<T> {
    /// In the list's order. May be fewer than asked for although there are more: `next_cursor` alone tells.
    pub(crate) items: Vec<T>,
    /// Where the next page starts; null on the last one.
    pub(crate) next_cursor: Option<String>,
}

impl PageQuery {
    /// The last id of the page before.
    pub(crate) fn after(&self) -> Result<Option<Uuid>, Refusal> {
        let Some(cursor) = &self.cursor else { return Ok(None) };
        let bytes = decode_cursor(cursor)?;
        Uuid::from_slice(&bytes).map(Some).map_err(|_| invalid_cursor())
    }

    /// Items to return.
    pub(crate) fn limit(&self) -> Result<usize, Refusal> {
        checked_limit(self.limit)
    }
}

/// Items to return, within its bounds.
pub(crate) fn checked_limit(limit: Option<u32>) -> Result<usize, Refusal> {
    let limit = limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(Refusal::Invalid(format!("limit is {limit}, it must be from 1 to {MAX_LIMIT}")));
    }
    Ok(limit as usize)
}

/// What a cursor stands for.
pub(crate) fn decode_cursor(cursor: &str) -> Result<Vec<u8>, Refusal> {
    URL_SAFE_NO_PAD.decode(cursor).map_err(|_| invalid_cursor())
}

/// A cursor that stands for a place in a list.
pub(crate) fn encode_cursor(place: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(place)
}

/// A cursor that this list did not give out.
pub(crate) fn invalid_cursor() -> Refusal {
    Refusal::Invalid("cursor is not one that this list returned as next_cursor".to_owned())
}

/// Which part of a list by time: the place that it comes after, and how many items.
pub(crate) fn history_part(
    cursor: Option<&str>,
    limit: Option<u32>,
) -> Result<(Option<HistoryCursor>, usize), Refusal> {
    let place = |cursor| {
        let bytes = decode_cursor(cursor)?;
        std::str::from_utf8(&bytes).ok().and_then(|text| text.parse().ok()).ok_or_else(invalid_cursor)
    };
    Ok((cursor.map(place).transpose()?, checked_limit(limit)?))
}

/// A page of a list by time as clients see it.
impl<R, T: From<R>> From<Page<R>> for PageOf<T> {
    fn from(page: Page<R>) -> Self {
        Self {
            items: page.items.into_iter().map(T::from).collect(),
            next_cursor: page.next_cursor.map(|place| encode_cursor(place.as_bytes())),
        }
    }
}

impl<T> PageOf<T> {
    /// A page of at most `limit` of `rows`, which are one more when there is a next page.
    pub(crate) fn of<R>(
        mut rows: Vec<R>,
        limit: usize,
        id: impl Fn(&R) -> Uuid,
        view: impl Fn(R) -> T,
    ) -> Self {
        let more = rows.len() > limit;
        rows.truncate(limit);
        let next_cursor = rows.last().filter(|_| more).map(|last| encode_cursor(id(last).as_bytes()));
        Self { items: rows.into_iter().map(view).collect(), next_cursor }
    }
}

/// How many rows to read for a page of `limit`: one more tells whether there is a next page.
pub(crate) fn rows_for(limit: usize) -> i64 {
    // At most MAX_LIMIT + 1.
    limit as i64 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_leads_to_where_its_page_ended() {
        let ids: Vec<Uuid> = (1..=3).map(Uuid::from_u128).collect();
        let page = PageOf::of(ids.clone(), 2, |id| *id, |id| id);
        assert_eq!(page.items, ids[..2]);
        let query = PageQuery { cursor: page.next_cursor, limit: None };
        assert_eq!(query.after(), Ok(Some(ids[1])));
        assert_eq!(PageOf::of(ids, 3, |id| *id, |id| id).next_cursor, None);
    }

    #[test]
    fn limits_and_foreign_cursors_are_refused() {
        assert_eq!(checked_limit(None), Ok(100));
        assert!(checked_limit(Some(0)).is_err() && checked_limit(Some(501)).is_err());
        for cursor in ["", "!", "AAAA"] {
            let query = PageQuery { cursor: Some(cursor.to_owned()), limit: None };
            assert!(query.after().is_err(), "{cursor}");
        }
    }
}
