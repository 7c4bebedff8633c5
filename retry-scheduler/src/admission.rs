//! Which of the commands that were read are kept as marks. Pure.
//!
//! A command that was kept already is passed over, and so is one beyond the bounds: of a shard, and of each tenant, so that no tenant
//! takes what others need. Whoever owns the shard next decides the same, for it has the same marks.

use crate::{
    batch::Commanded,
    marks::{self, Marks},
};
use floodway_store::{
    DbInstant,
    mark_bounds::{Full, Kept, is_narrow},
    retry_marks::Mark,
};
use std::collections::{HashMap, HashSet};
use uuid::Uuid;

/// What becomes of some commands.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Admission {
    /// Those that are kept.
    pub(crate) marks: Vec<Mark>,
    /// The others: whose, and why.
    pub(crate) passed_over: Vec<(Uuid, PassedOver)>,
}

/// Why a command is passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PassedOver {
    /// It was written twice.
    Known,
    /// There are too many.
    Full(Full),
}

impl PassedOver {
    /// Every reason.
    pub(crate) const ALL: [Self; 1 + Full::ALL.len()] =
        [Self::Known, Self::Full(Full::Narrow), Self::Full(Full::Tenant), Self::Full(Full::Shard)];

    /// The reason's name, in metrics and logs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Full(full) => full.as_str(),
        }
    }

    /// The reason, for people.
    pub(crate) fn told(self) -> String {
        match self {
            Self::Known => "written twice".to_owned(),
            Self::Full(full) => full.to_string(),
        }
    }
}

/// Decides about commands that follow the ones that `marks` has, in the order of the log.
pub(crate) fn admit(commands: &[Commanded], marks: &Marks, now: DbInstant) -> Admission {
    let (mut admission, mut seen) = (Admission::default(), HashSet::new());
    let mut of_tenants: HashMap<Uuid, Kept> = HashMap::new();
    for given in commands {
        let Commanded { command, first_id, .. } = given;
        let tenant = command.tenant.0;
        let of_tenant = of_tenants.entry(tenant).or_insert_with(|| marks.kept(tenant));
        let kept = Kept { of_all: marks.len() + admission.marks.len(), ..*of_tenant };
        let passed_over = if marks.knows(command.command.0, *first_id) || !seen.insert(command.command.0) {
            Some(PassedOver::Known)
        } else {
            kept.has_room(&command.scope).err().map(PassedOver::Full)
        };
        match passed_over {
            Some(reason) => admission.passed_over.push((tenant, reason)),
            None => {
                of_tenant.add(is_narrow(&command.scope));
                admission.marks.push(marks::mark(given, now));
            }
        }
    }
    admission
}

#[cfg(test)]
mod tests {
    use super::*;
    use floodway_schemas::{
        UnixMillis,
        ids::{RetryCommandId, SubscriptionId, TenantId},
        retry_command::{RETRY_COMMAND_VERSION, RetryAction, RetryCommand, RetryScope},
    };
    use floodway_store::mark_bounds::{MAX_KEPT, MAX_NARROW, MAX_OF_TENANT};
    use std::ops::Range;

    fn given(id: i64, tenant: u128, scope: RetryScope) -> Commanded {
        let command = RetryCommand {
            v: RETRY_COMMAND_VERSION,
            command: RetryCommandId(Uuid::from_u128(id.unsigned_abs().into())),
            action: RetryAction::Cancel,
            tenant: TenantId(Uuid::from_u128(tenant)),
            scope,
            at: UnixMillis(0),
        };
        Commanded { offset: id, id, first_id: 0, command }
    }

    fn of_subscription() -> RetryScope {
        RetryScope::of_subscription(SubscriptionId(Uuid::nil()))
    }

    fn of_event() -> RetryScope {
        RetryScope { event_id: Some("e".into()), ..RetryScope::default() }
    }

    fn kept(marks: &mut Marks, commands: &[Commanded]) -> (usize, Vec<(Uuid, PassedOver)>) {
        let Admission { marks: new, passed_over } = admit(commands, marks, DbInstant(0));
        let n = new.len();
        new.into_iter().for_each(|mark| marks.add(mark));
        (n, passed_over)
    }

    fn reasons(passed_over: &[(Uuid, PassedOver)]) -> Vec<&'static str> {
        passed_over.iter().map(|(_, reason)| reason.as_str()).collect()
    }

    #[test]
    fn a_command_counts_once_in_one_batch_or_in_two() {
        let mut marks = Marks::default();
        let twice = [given(1, 1, of_event()), Commanded { id: 2, ..given(1, 1, of_event()) }];
        assert_eq!(kept(&mut marks, &twice), (1, vec![(Uuid::from_u128(1), PassedOver::Known)]));
        assert_eq!(reasons(&kept(&mut marks, &twice).1), ["known", "known"]);
    }

    #[test]
    fn a_command_that_is_read_again_counts_once_more_for_what_is_read_again_with_it() {
        let mut marks = Marks::default();
        assert_eq!(kept(&mut marks, &[given(1, 1, of_event())]).0, 1);
        let again = |id| Commanded { id, first_id: 100, ..given(1, 1, of_event()) };
        let (n, passed_over) = kept(&mut marks, &[again(101), again(102)]);
        assert_eq!((n, reasons(&passed_over)), (1, vec!["known"]));
        assert_eq!(marks.get(101).map(|mark| mark.first_id), Some(100));
        // Written once more by whoever got no answer, behind what is read again.
        assert_eq!(
            reasons(&kept(&mut marks, &[Commanded { id: 200, ..given(1, 1, of_event()) }]).1),
            ["known"]
        );
    }

    #[test]
    fn a_tenant_that_gave_too_many_is_refused_and_another_one_is_not() {
        let mut marks = Marks::default();
        let many = |ids: Range<i64>, tenant, scope: fn() -> RetryScope| -> Vec<Commanded> {
            ids.map(|id| given(id, tenant, scope())).collect()
        };
        let (n, passed_over) = kept(&mut marks, &many(0..1_501, 1, of_event));
        assert_eq!((n, reasons(&passed_over)), (MAX_NARROW, vec!["narrow"]));
        let (n, passed_over) = kept(&mut marks, &many(2_000..2_501, 1, of_subscription));
        assert_eq!((n, reasons(&passed_over)), (MAX_OF_TENANT - MAX_NARROW, vec!["tenant"]));
        assert_eq!(kept(&mut marks, &[given(3_000, 2, of_event())]).0, 1);
    }

    #[test]
    fn beyond_what_a_shard_keeps_nobody_is_served_until_marks_expire() {
        let mut marks = Marks::default();
        let all: Vec<Commanded> =
            (0..20_001).map(|id| given(id, 1 + id.unsigned_abs() as u128 / 1_000, of_event())).collect();
        let (n, passed_over) = kept(&mut marks, &all);
        assert_eq!((n, reasons(&passed_over)), (MAX_KEPT, vec!["shard"]));
        marks.expire(floodway_store::retry::Position::end_of(DbInstant(i64::MAX)));
        assert_eq!(kept(&mut marks, &all[..10]).0, 10);
    }
}
