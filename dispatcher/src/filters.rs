//! Filters ready to decide, by their text: compiled when an event first needs them, and kept while there is room. What they take of a
//! partition's thread is bounded for each tenant, see [`FilterTime`].

use crate::filter_time::{FilterTime, Payer};
use floodway_schemas::filter::{Filter, FilterError, Subject};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Most filters kept: more than a tenant has subscriptions, each with a filter of its own. A usual one takes 3 KB, all of them 50 MB.
const MAX_COMPILED: usize = 16_384;
/// Most bytes of their texts, each of which takes about 36 once it is compiled: 150 MB. A tenant's ten thousand may have 400 each.
const MAX_TEXT_BYTES: usize = 4 << 20;
/// Part of them that make room when there are more, written as its divisor: any, for to tell those in use from others would cost more.
const EVICTED: usize = 16;
/// Compiling has an account of its own, for a tenant has no part in that its filters are not kept, as after a start. It is a bound for when
/// more are in use than are kept. A tenant may use its part of so long at once: two seconds, a few times what all of its filters take.
const COMPILING_BURST: Duration = Duration::from_secs(8);

/// The compiled filters. Equal texts share one.
#[derive(Debug)]
pub(crate) struct Filters {
    kept: Mutex<Kept>,
    /// What evaluations took.
    time: FilterTime,
    /// What compiling took. Asked only when there is something to compile.
    compiling: FilterTime,
}

#[derive(Debug, Default)]
struct Kept {
    by_text: HashMap<String, Arc<Filter>>,
    /// Of their texts.
    bytes: usize,
}

impl Default for Filters {
    fn default() -> Self {
        Self {
            kept: Mutex::default(),
            time: FilterTime::default(),
            compiling: FilterTime::with_burst(COMPILING_BURST),
        }
    }
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
        let mut began = Instant::now();
        if let Some(wait) = self.time.wait(payer, began) {
            return Verdict::NotYet(wait);
        }
        let filter = match self.known(text) {
            Some(filter) => filter,
            None => match self.compile(text, payer, began) {
                Ok(filter) => {
                    began = Instant::now();
                    filter
                }
                Err(verdict) => return verdict,
            },
        };
        let passes = filter.passes(subject);
        let ended = Instant::now();
        self.time.used(payer, ended - began, ended);
        Verdict::Decided(passes)
    }

    fn known(&self, text: &str) -> Option<Arc<Filter>> {
        self.lock().by_text.get(text).map(Arc::clone)
    }

    /// Compiles a filter, unless that has to wait, and keeps it.
    fn compile(&self, text: &str, payer: Payer, began: Instant) -> Result<Arc<Filter>, Verdict> {
        if let Some(wait) = self.compiling.wait(payer, began) {
            return Err(Verdict::NotYet(wait));
        }
        let compiled = Filter::compile(text);
        let ended = Instant::now();
        self.compiling.used(payer, ended - began, ended);
        // The control plane compiled it before: only an older dispatcher does not know what a newer one lets through.
        let filter =
            compiled.map_err(|error| Verdict::Decided(Err(FilterError::Failed(error.to_string()))))?;
        let filter = Arc::new(filter);
        self.keep(text, &filter);
        Ok(filter)
    }

    fn keep(&self, text: &str, filter: &Arc<Filter>) {
        let mut kept = self.lock();
        let is_full = kept.by_text.len() >= MAX_COMPILED || kept.bytes + text.len() > MAX_TEXT_BYTES;
        let evicted = if is_full { kept.evict() } else { Vec::new() };
        if kept.by_text.insert(text.to_owned(), Arc::clone(filter)).is_none() {
            kept.bytes += text.len();
        }
        // Others wait for the lock, and not for these to be freed.
        drop(kept);
        drop(evicted);
    }

    /// What is kept is whole at every point, and its count of bytes about right: a panic elsewhere is no reason to stop.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Takes a part of them out.
    fn evict(&mut self) -> Vec<(String, Arc<Filter>)> {
        let mut number = 0;
        let is_evicted = |_: &String, _: &mut Arc<Filter>| {
            number += 1;
            number % EVICTED == 0
        };
        let evicted: Vec<_> = self.by_text.extract_if(is_evicted).collect();
        self.bytes -= evicted.iter().map(|(text, _)| text.len()).sum::<usize>();
        evicted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use floodway_schemas::{event::Event, ids::TenantId, topic::Topic};
    use std::collections::HashSet;
    use uuid::Uuid;

    const PAYER: Payer = (TenantId(Uuid::nil()), Topic::Events, 3);
    const EVENT: &[u8] = include_bytes!("../../schemas/golden/event-minimal.json");

    fn ask(filters: &Filters, text: &str) -> Verdict {
        let event = Event::decode(EVENT).unwrap();
        filters.ask(text, PAYER, &mut Subject::new(&event))
    }

    #[test]
    fn equal_texts_share_a_filter_and_their_number_is_bounded() {
        let filters = Filters::default();
        let passes = |text| matches!(ask(&filters, text), Verdict::Decided(Ok(true)));
        assert!(passes("event.type == 'a'"));
        let first = filters.known("event.type == 'a'").unwrap();
        assert!(passes("event.type == 'a'"));
        assert!(Arc::ptr_eq(&first, &filters.known("event.type == 'a'").unwrap()));
        // Made by hand: compiling thousands would take long.
        (1..MAX_COMPILED).for_each(|number| filters.keep(&number.to_string(), &first));
        assert_eq!(filters.lock().by_text.len(), MAX_COMPILED);
        let before: HashSet<String> = filters.lock().by_text.keys().cloned().collect();
        assert!(passes("event.source == 'key'"));
        let kept = filters.lock().by_text.keys().filter(|text| before.contains(*text)).count();
        assert_eq!(kept, MAX_COMPILED - MAX_COMPILED / EVICTED);
        assert_eq!(filters.lock().by_text.len(), kept + 1);
        assert!(matches!(ask(&filters, "data.a =="), Verdict::Decided(Err(_))));
    }

    #[test]
    fn the_filters_of_a_tenant_are_all_kept_and_the_bytes_of_texts_are_bounded() {
        const SUBSCRIPTIONS: usize = 10_000;
        let filters = Filters::default();
        let filter = Arc::new(Filter::compile("event.type == 'a'").unwrap());
        let keep = |width| {
            let text = |number| format!("{number:width$}");
            (0..SUBSCRIPTIONS).for_each(|number| filters.keep(&text(number), &filter));
            (0..SUBSCRIPTIONS).filter(|&number| filters.known(&text(number)).is_some()).count()
        };
        assert_eq!(keep(400), SUBSCRIPTIONS);
        assert_eq!(keep(400), SUBSCRIPTIONS, "kept twice");
        let kept = keep(1_000);
        assert!(kept > SUBSCRIPTIONS / 4 && kept < SUBSCRIPTIONS);
        let held: usize = filters.lock().by_text.keys().map(String::len).sum();
        assert_eq!(filters.lock().bytes, held);
        assert!(held <= MAX_TEXT_BYTES);
    }

    #[test]
    fn what_compiling_takes_keeps_no_filter_that_is_compiled_from_being_asked() {
        let filters = Filters::default();
        let is_decided = |text| matches!(ask(&filters, text), Verdict::Decided(Ok(_)));
        assert!(is_decided("event.type == 'a'"));
        let used = |time: &FilterTime, seconds| {
            time.used(PAYER, Duration::from_secs(seconds), Instant::now());
        };
        used(&filters.compiling, 1);
        assert!(is_decided("event.type == 'b'"), "a second at once is not much");
        used(&filters.compiling, 1_000);
        assert!(is_decided("event.type == 'a'") && is_decided("event.type == 'b'"));
        assert!(matches!(ask(&filters, "event.type == 'c'"), Verdict::NotYet(_)), "it is bounded");
        used(&filters.time, 1_000);
        assert!(matches!(ask(&filters, "event.type == 'a'"), Verdict::NotYet(_)));
    }
}
