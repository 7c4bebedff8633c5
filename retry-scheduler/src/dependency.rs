//! One health component that several threads report on: down while any of them says so.

use floodway_runtime::health::Component;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// Who reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reporter {
    /// The start of the role, and its check of the topics.
    Role,
    /// The task that keeps partitions.
    Maintenance,
    /// A shard.
    Shard(i32),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Dependency {
    component: Component,
    reasons: Mutex<BTreeMap<Reporter, String>>,
}

impl Dependency {
    pub(crate) fn new(component: Component) -> Self {
        Self { component, reasons: Mutex::default() }
    }

    /// It works, as far as `reporter` sees.
    pub(crate) fn up(&self, reporter: Reporter) {
        self.change(|reasons| {
            reasons.remove(&reporter);
        });
    }

    /// It does not work for `reporter`.
    pub(crate) fn down(&self, reporter: Reporter, reason: impl Into<String>) {
        self.change(|reasons| {
            reasons.insert(reporter, reason.into());
        });
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<Reporter, String>)) {
        // A panic between two plain map operations leaves a usable map.
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut reasons);
        match reasons.values().next() {
            None => self.component.up(),
            Some(reason) => self.component.down(reason.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use floodway_runtime::health::Health;

    #[test]
    fn it_is_down_while_anyone_says_so() {
        let health = Health::default();
        let dependency = Dependency::new(health.component("postgresql", true));
        assert!(!health.is_ready(), "starting");
        dependency.down(Reporter::Shard(1), "refused");
        dependency.up(Reporter::Maintenance);
        assert!(!health.is_ready());
        dependency.up(Reporter::Shard(1));
        assert!(health.is_ready());
    }
}
