//! What commands to pending retries mean for each of them. Pure: the marks of one shard, and a verdict per row.
//!
//! A command covers the retries of its scope whose outcomes precede it in the log, that is, whose ids are lower than its own; never a
//! lease, whose delivery is under way. One that is read again, because the log was cut short, covers of these what is read again with it:
//! what was there before has heeded it, and what followed it then has lower ids, too. Of several commands that cover a row:
//!
//! - Where a `now` has done its work, the row is gone: it was produced, or told cancelled, before its time.
//! - Else a `cancel` holds, whether it came before a `now` or after it.
//! - Else the row fires, by a `now` that comes to it or when its time comes, whichever is earlier.
//!
//! A mark is stored with the position of its command, and `done` with the cursor, so whoever owns the shard next reads the same verdicts.

use crate::{batch::Commanded, subject::Subject};
use floodway_schemas::retry_command::RetryAction;
use floodway_store::{
    DbInstant,
    mark_bounds::Kept,
    retry::{PendingRetry, Position},
    retry_marks::Mark,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};
use uuid::Uuid;

/// For how long after a `now` for a whole subscription its deferrals are short. A dispatcher that has not heard of its resumption goes
/// on deferring its deliveries by up to an hour, and what it defers follows the command in the log.
pub(crate) const RESUMED_WITHIN: Duration = Duration::from_secs(120);

/// What becomes of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It fires.
    Fires,
    /// This command cancelled it.
    Cancelled(Uuid),
    /// It was settled before its time.
    Gone,
}

/// The marks of one shard, filed by what they are about: a row looks at those of its own, however many there are of others.
#[derive(Debug, Default)]
pub(crate) struct Marks {
    by_id: BTreeMap<i64, Mark>,
    /// Each with its last mark.
    commands: HashMap<Uuid, i64>,
    /// How many each tenant has; `of_all` does not count.
    of_tenants: HashMap<Uuid, Kept>,
    of_rows: HashMap<i64, Vec<i64>>,
    of_subscriptions: HashMap<Uuid, OfSubscription>,
    /// By tenant: of an event whatever the subscription.
    of_events: HashMap<Uuid, HashMap<String, Vec<i64>>>,
    /// By mark: what is settled beyond its `done`, while something before it is refused.
    beyond: HashMap<i64, BTreeSet<i64>>,
    /// Whose `done` is not stored.
    unsaved: BTreeSet<i64>,
    /// The end of the last subscription's resumption.
    resumed_until: Option<DbInstant>,
}

/// The marks of one subscription.
#[derive(Debug, Default)]
struct OfSubscription {
    /// About all of it.
    whole: Vec<i64>,
    /// About one of its events.
    events: HashMap<String, Vec<i64>>,
}

/// Whether a mark covers the row with this id.
pub(crate) fn covers(mark: &Mark, id: i64, tenant: Uuid, subscription: Uuid, event_id: &str) -> bool {
    (mark.first_id..mark.id).contains(&id)
        && mark.tenant == tenant
        && mark.subscription.is_none_or(|wanted| wanted == subscription)
        && mark.event_id.as_deref().is_none_or(|wanted| wanted == event_id)
        && mark.retry_id.is_none_or(|wanted| wanted == id)
}

/// What a command becomes in its place of the log; how long it lasts beyond the least is not known yet.
pub(crate) fn mark(given: &Commanded, now: DbInstant) -> Mark {
    let Commanded { id, first_id, command, .. } = given;
    Mark {
        id: *id,
        first_id: *first_id,
        until: now.plus(RESUMED_WITHIN),
        recorded_at: now,
        command: command.command.0,
        action: command.action,
        tenant: command.tenant.0,
        subscription: command.scope.subscription.map(|subscription| subscription.0),
        event_id: command.scope.event_id.clone(),
        retry_id: command.scope.retry.map(|retry| retry.id),
        done: -1,
    }
}

impl Marks {
    /// As they were stored.
    pub(crate) fn new(stored: Vec<Mark>) -> Self {
        let mut marks = Self::default();
        stored.into_iter().for_each(|mark| marks.add(mark));
        marks
    }

    /// A command was stored.
    pub(crate) fn add(&mut self, mark: Mark) {
        let file = match (mark.retry_id, mark.subscription, mark.event_id.clone()) {
            (Some(row), _, _) => self.of_rows.entry(row).or_default(),
            (None, Some(subscription), None) => {
                &mut self.of_subscriptions.entry(subscription).or_default().whole
            }
            (None, Some(subscription), Some(event)) => {
                self.of_subscriptions.entry(subscription).or_default().events.entry(event).or_default()
            }
            (None, None, Some(event)) => {
                self.of_events.entry(mark.tenant).or_default().entry(event).or_default()
            }
            (None, None, None) => return,
        };
        file.push(mark.id);
        let is_narrow = mark.event_id.is_some() || mark.retry_id.is_some();
        self.of_tenants.entry(mark.tenant).or_default().add(is_narrow);
        if is_whole_subscription(&mark) {
            self.resumed_until = self.resumed_until.max(Some(mark.recorded_at.plus(RESUMED_WITHIN)));
        }
        self.commands.entry(mark.command).and_modify(|last| *last = mark.id.max(*last)).or_insert(mark.id);
        self.by_id.insert(mark.id, mark);
    }

    /// Whether the command is known already: whenever it was read, or since ids began there.
    pub(crate) fn knows(&self, command: Uuid, first_id: i64) -> bool {
        self.commands.get(&command).is_some_and(|last| *last >= first_id)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// How many there are, as a tenant sees it.
    pub(crate) fn kept(&self, tenant: Uuid) -> Kept {
        let of_tenant = self.of_tenants.get(&tenant).copied().unwrap_or_default();
        Kept { of_all: self.by_id.len(), ..of_tenant }
    }

    /// A mark.
    pub(crate) fn get(&self, id: i64) -> Option<&Mark> {
        self.by_id.get(&id)
    }

    /// Those whose retries are to fire now and have not all, in the order of the log.
    pub(crate) fn at_work(&self) -> impl Iterator<Item = &Mark> {
        self.by_id.values().filter(|mark| mark.action == RetryAction::Now && mark.done < mark.id)
    }

    /// What becomes of a row whose turn it is.
    pub(crate) fn verdict(&self, row: &PendingRetry) -> Verdict {
        if !self.may_cover(row) {
            return Verdict::Fires;
        }
        Subject::of(&row.record).map_or(Verdict::Fires, |subject| self.of_subject(row.position.id, &subject))
    }

    /// The same, when its subject is known.
    pub(crate) fn of_subject(&self, id: i64, subject: &Subject<'_>) -> Verdict {
        if subject.is_lease {
            return Verdict::Fires;
        }
        let (tenant, subscription) = (subject.tenant, subject.subscription);
        let covering = self.covering(id, tenant, subscription, &subject.event_id);
        let mut verdict = Verdict::Fires;
        for mark in covering {
            match mark.action {
                RetryAction::Now if self.has_settled(mark, id) => return Verdict::Gone,
                RetryAction::Now => {}
                RetryAction::Cancel => verdict = Verdict::Cancelled(mark.command),
            }
        }
        verdict
    }

    /// Whether a row is gone by what is stored of marks, or is about to be: an owner that starts with that does not look at it again.
    pub(crate) fn is_done(&self, id: i64, tenant: Uuid, subscription: Uuid, event_id: &str) -> bool {
        let mut covering = self.covering(id, tenant, subscription, event_id);
        covering.any(|mark| mark.action == RetryAction::Now && id <= mark.done)
    }

    fn covering(
        &self,
        id: i64,
        tenant: Uuid,
        subscription: Uuid,
        event_id: &str,
    ) -> impl Iterator<Item = &Mark> {
        let filed = self.filed(id, tenant, subscription, event_id);
        filed.filter(move |mark| covers(mark, id, tenant, subscription, event_id))
    }

    /// Those that may cover a row.
    fn filed(
        &self,
        id: i64,
        tenant: Uuid,
        subscription: Uuid,
        event_id: &str,
    ) -> impl Iterator<Item = &Mark> {
        let of_subscription = self.of_subscriptions.get(&subscription);
        let files = [
            self.of_rows.get(&id),
            of_subscription.map(|marks| &marks.whole),
            of_subscription.and_then(|marks| marks.events.get(event_id)),
            self.of_events.get(&tenant).and_then(|events| events.get(event_id)),
        ];
        files.into_iter().flatten().flatten().filter_map(|mark| self.by_id.get(mark))
    }

    /// Whether it is worth reading what the row is about.
    fn may_cover(&self, row: &PendingRetry) -> bool {
        if self.by_id.is_empty() {
            return false;
        }
        let subscription = row.record_key.split('/').next().and_then(|id| Uuid::try_parse(id).ok());
        !self.of_events.is_empty()
            || self.of_rows.contains_key(&row.position.id)
            || subscription.is_none_or(|id| self.of_subscriptions.contains_key(&id))
    }

    /// Whether the mark has settled the row with this id.
    pub(crate) fn has_settled(&self, mark: &Mark, id: i64) -> bool {
        id <= mark.done || self.beyond.get(&mark.id).is_some_and(|beyond| beyond.contains(&id))
    }

    /// The work of a mark is done for ids up to this one.
    pub(crate) fn advance(&mut self, id: i64, done: i64) {
        if let Some(mark) = self.by_id.get_mut(&id)
            && mark.done < done
        {
            mark.done = done;
            self.unsaved.insert(id);
            if let Some(beyond) = self.beyond.remove(&id) {
                self.settled_beyond(id, beyond);
            }
        }
    }

    /// Rows that a mark has settled though not all before them. Not stored: after a takeover they are produced again.
    pub(crate) fn settled_beyond(&mut self, id: i64, rows: impl IntoIterator<Item = i64>) {
        let Some(done) = self.by_id.get(&id).map(|mark| mark.done) else { return };
        let beyond = rows.into_iter().filter(|row| *row > done).collect::<BTreeSet<_>>();
        if !beyond.is_empty() {
            self.beyond.entry(id).or_default().extend(beyond);
        }
    }

    /// Marks to be stored again, for how far they are.
    pub(crate) fn unsaved(&self) -> Vec<Mark> {
        self.unsaved.iter().filter_map(|id| self.by_id.get(id)).cloned().collect()
    }

    /// They were stored.
    pub(crate) fn saved(&mut self) {
        self.unsaved.clear();
    }

    /// Forgets those that cover nothing behind the cursor.
    pub(crate) fn expire(&mut self, cursor: Position) {
        let is_over = |mark: &Mark| mark.until < cursor.due;
        if !self.by_id.values().any(is_over) {
            return;
        }
        let left = std::mem::take(&mut self.by_id).into_values().filter(|mark| !is_over(mark)).collect();
        let (unsaved, mut beyond) = (std::mem::take(&mut self.unsaved), std::mem::take(&mut self.beyond));
        *self = Self::new(left);
        beyond.retain(|mark, _| self.by_id.contains_key(mark));
        (self.unsaved, self.beyond) = (unsaved, beyond);
    }

    /// Whether deliveries of a subscription were just asked for, by these marks or by `others`.
    pub(crate) fn is_resumed(&self, subscription: Uuid, now: DbInstant, others: &[Mark]) -> bool {
        let resumes = |mark: &Mark| {
            is_whole_subscription(mark)
                && mark.subscription == Some(subscription)
                && now < mark.recorded_at.plus(RESUMED_WITHIN)
        };
        if others.iter().any(resumes) {
            return true;
        }
        if self.resumed_until.is_none_or(|until| until <= now) {
            return false;
        }
        let filed = self.of_subscriptions.get(&subscription).into_iter().flat_map(|marks| &marks.whole);
        filed.filter_map(|id| self.by_id.get(id)).any(resumes)
    }
}

fn is_whole_subscription(mark: &Mark) -> bool {
    mark.action == RetryAction::Now
        && mark.subscription.is_some()
        && mark.event_id.is_none()
        && mark.retry_id.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use floodway_schemas::{
        UnixMillis,
        due::{DUE_VERSION, Due, Origin, RetryKey},
        ids::{SubscriptionId, TenantId},
    };
    use proptest::{option, prelude::*, sample::select};

    fn id_of(number: u128) -> Uuid {
        Uuid::from_u128(number)
    }

    fn row(id: i64, tenant: u128, subscription: u128, event: &str, lease: bool) -> PendingRetry {
        let event = format!(r#"{{"type":"t","id":"{event}"}}"#);
        let due = Due {
            v: DUE_VERSION,
            origin: Origin::RetryKey(RetryKey { shard: 0, id }),
            tenant: TenantId(id_of(tenant)),
            subscription: SubscriptionId(id_of(subscription)),
            attempt: 2,
            since: UnixMillis(0),
            lease,
            event: serde_json::from_str(&event).unwrap(),
        };
        PendingRetry {
            position: Position { due: DbInstant(7), id },
            record_key: format!("{}/k", id_of(subscription)),
            record: due.encode().unwrap(),
        }
    }

    fn now_for(id: i64, subscription: u128) -> Mark {
        Mark {
            id,
            first_id: 0,
            until: DbInstant(1_000),
            recorded_at: DbInstant(500),
            command: id_of(id.unsigned_abs().into()),
            action: RetryAction::Now,
            tenant: id_of(1),
            subscription: Some(id_of(subscription)),
            event_id: None,
            retry_id: None,
            done: -1,
        }
    }

    #[test]
    fn a_row_that_a_now_has_settled_is_gone_and_a_lease_never_is() {
        let mut marks = Marks::new(vec![now_for(10, 2)]);
        let verdict = |marks: &Marks, id, lease| marks.verdict(&row(id, 1, 2, "e", lease));
        assert_eq!(verdict(&marks, 4, false), Verdict::Fires);
        assert!(marks.at_work().map(|mark| mark.id).eq([10]));
        marks.advance(10, 5);
        assert_eq!((verdict(&marks, 5, false), verdict(&marks, 6, false)), (Verdict::Gone, Verdict::Fires));
        assert_eq!(verdict(&marks, 5, true), Verdict::Fires);
        assert_eq!(marks.unsaved()[0].done, 5);
        marks.advance(10, 10);
        assert_eq!(verdict(&marks, 10, false), Verdict::Fires, "it follows the command");
        assert!(marks.at_work().next().is_none());
    }

    #[test]
    fn a_cancel_holds_whether_it_came_before_a_now_or_after_it() {
        for cancel in [5, 20] {
            let cancel = Mark { action: RetryAction::Cancel, ..now_for(cancel, 2) };
            let marks = Marks::new(vec![now_for(10, 2), cancel.clone()]);
            assert_eq!(marks.verdict(&row(4, 1, 2, "e", false)), Verdict::Cancelled(cancel.command));
        }
    }

    #[test]
    fn a_row_looks_at_marks_about_its_own_event_and_not_at_those_about_others() {
        let of_event = |id: i64, subscription, event: i64| Mark {
            action: RetryAction::Cancel,
            subscription,
            event_id: Some(event.to_string()),
            ..now_for(id, 0)
        };
        let some = (100..2_000).map(|n| of_event(n, (n % 2 == 0).then_some(id_of(2)), n));
        let marks = Marks::new(some.chain([now_for(2_000, 2)]).collect());
        for (event, looked_at) in [("500", 2), ("501", 2), ("e", 1)] {
            let row = row(4, 1, 2, event, false);
            let subject = Subject::of(&row.record).unwrap();
            assert_eq!(
                marks.filed(4, subject.tenant, subject.subscription, &subject.event_id).count(),
                looked_at,
                "{event}"
            );
            let is_cancelled = matches!(marks.verdict(&row), Verdict::Cancelled(_));
            assert_eq!(is_cancelled, looked_at == 2);
        }
        assert_eq!(marks.kept(id_of(1)), Kept { of_all: 1_901, of_tenant: 1_901, narrow: 1_900 });
        assert_eq!(marks.kept(id_of(9)), Kept { of_all: 1_901, ..Kept::default() });
    }

    #[test]
    fn marks_are_forgotten_when_the_cursor_has_passed_all_that_they_cover() {
        let mut marks = Marks::new(vec![now_for(10, 2), Mark { until: DbInstant(5), ..now_for(11, 3) }]);
        marks.expire(Position { due: DbInstant(6), id: 0 });
        assert!(marks.get(11).is_none() && marks.get(10).is_some());
        assert!(marks.knows(id_of(10), 0) && !marks.knows(id_of(11), 0));
    }

    #[test]
    fn for_a_while_after_its_resumption_a_subscription_is_resumed() {
        let marks = Marks::new(vec![now_for(10, 2)]);
        let (soon, later) = (DbInstant(501), DbInstant(500).plus(RESUMED_WITHIN));
        assert!(marks.is_resumed(id_of(2), soon, &[]) && !marks.is_resumed(id_of(3), soon, &[]));
        assert!(!marks.is_resumed(id_of(2), later, &[]));
        assert!(Marks::default().is_resumed(id_of(3), soon, &[now_for(11, 3)]));
    }

    fn any_mark() -> impl Strategy<Value = Mark> {
        let scope = (option::of(0u128..3), option::of(select(vec!["a", "b"])), option::of(0i64..12));
        (1u128..3, any::<bool>(), scope, -1i64..14, 0i64..5).prop_map(
            |(tenant, now, (subscription, event, row), done, first_id)| Mark {
                first_id,
                action: if now { RetryAction::Now } else { RetryAction::Cancel },
                tenant: id_of(tenant),
                subscription: subscription.map(id_of),
                event_id: event.map(str::to_owned),
                retry_id: row,
                done,
                ..now_for(0, 0)
            },
        )
    }

    proptest! {
        #[test]
        fn a_verdict_is_what_all_marks_together_say(
            drawn in proptest::collection::vec(any_mark(), 0..12), id in 0i64..14, tenant in 1u128..3,
            subscription in 0u128..3, event in select(vec!["a", "b"]), lease in any::<bool>(),
        ) {
            let restricts = |mark: &Mark| {
                mark.subscription.is_some() || mark.event_id.is_some() || mark.retry_id.is_some()
            };
            let drawn: Vec<Mark> = drawn.into_iter().filter(restricts).zip(2..).map(|(mark, place)| {
                Mark { id: place, command: id_of(place.unsigned_abs().into()), ..mark }
            }).collect();
            let covering: Vec<&Mark> = drawn.iter().filter(|mark| {
                !lease && id >= mark.first_id && id < mark.id && mark.tenant == id_of(tenant)
                    && [None, Some(id_of(subscription))].contains(&mark.subscription)
                    && [None, Some(event)].contains(&mark.event_id.as_deref())
                    && [None, Some(id)].contains(&mark.retry_id)
            }).collect();
            let is_gone = covering.iter().any(|mark| mark.action == RetryAction::Now && id <= mark.done);
            let is_cancelled = covering.iter().any(|mark| mark.action == RetryAction::Cancel);
            let verdict = Marks::new(drawn.clone()).verdict(&row(id, tenant, subscription, event, lease));
            match verdict {
                Verdict::Gone => prop_assert!(is_gone),
                Verdict::Cancelled(command) => prop_assert!(
                    !is_gone && covering.iter().any(|mark| mark.command == command)
                ),
                Verdict::Fires => prop_assert!(!is_gone && !is_cancelled),
            }
        }
    }
}
