//! Filters ready to decide, by their text: compiled when an event first needs them, and kept while there is room. What they take of a
//! partition's thread is bounded for each tenant, see [`FilterTime`].

use crate::filter_time::{FilterTime, Payer};
use floodway_schemas::filter::{Filter, FilterError, Subject};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Most filters kept. One takes some ten kilobytes at most, and about 50 µs to compile.
const MAX_COMPILED: usize = 4096;

/// The compiled filters. Equal texts share one.
#[derive(Debug, Default)]
pub(crate) struct Filters {
    compiled: Mutex<HashMap<String, Arc<Filter>>>,
    time: FilterTime,
}

/// What a filter says about an event.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// Whether it passes, or why that cannot be told.
    Decided(Result<bool, FilterError>),
    /// It was not asked: its tenant's turn comes after this time.
    NotYet(Duration),
}

impl Filters {
    /// Whether an event passes the filter with this text, at the cost of `payer`.
    pub(crate) fn ask(&self, text: &str, payer: Payer, subject: &mut Subject<'_>) -> Verdict {
        let began = Instant::now();
        if let Some(wait) = self.time.wait(payer, began) {
            return Verdict::NotYet(wait);
        }
        let passes = self.compiled(text).and_then(|filter| filter.passes(subject));
        let ended = Instant::now();
        self.time.used(payer, ended - began, ended);
        Verdict::Decided(passes)
    }

    fn compiled(&self, text: &str) -> Result<Arc<Filter>, FilterError> {
        // The map is whole at every point: a panic elsewhere is no reason to stop.
        let lock = || self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(filter) = lock().get(text) {
            return Ok(Arc::clone(filter));
        }
        // The control plane compiled it before: only an older dispatcher does not know what a newer one lets through.
        let filter = Filter::compile(text).map_err(|error| FilterError::Failed(error.to_string()))?;
        let filter = Arc::new(filter);
        let mut compiled = lock();
        if compiled.len() >= MAX_COMPILED {
            // Those in use come back; to tell them from others would cost more.
            compiled.clear();
        }
        compiled.insert(text.to_owned(), Arc::clone(&filter));
        Ok(filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_share_a_filter_and_their_number_is_bounded() {
        let filters = Filters::default();
        let first = filters.compiled("data.a == 1").unwrap();
        assert!(Arc::ptr_eq(&first, &filters.compiled("data.a == 1").unwrap()));
        for number in 0..MAX_COMPILED {
            // Made by hand: compiling thousands would take long.
            filters.compiled.lock().unwrap().insert(number.to_string(), Arc::clone(&first));
        }
        filters.compiled("data.b == 1").unwrap();
        assert_eq!(filters.compiled.lock().unwrap().len(), 1);
        assert!(filters.compiled("data.a ==").is_err());
    }
}
