//! Queues of tenants that take turns. Pure.

use std::collections::{HashMap, VecDeque};
use uuid::Uuid;

/// What tenants wait for: each tenant's own in the order of its coming, and one of each tenant in turn.
#[derive(Debug)]
pub(crate) struct Turns<T> {
    queues: HashMap<Uuid, VecDeque<T>>,
    /// Tenants that have a queue, each once, the next one first.
    order: VecDeque<Uuid>,
    len: usize,
}

impl<T> Turns<T> {
    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether the tenant waits for something.
    pub(crate) fn has(&self, tenant: Uuid) -> bool {
        self.queues.contains_key(&tenant)
    }

    /// The tenants that wait, the next one first.
    pub(crate) fn tenants(&self) -> impl Iterator<Item = Uuid> {
        self.order.iter().copied()
    }

    /// Behind all that the tenant waits for; a tenant that waits for nothing is the last in turn.
    pub(crate) fn push(&mut self, tenant: Uuid, item: T) {
        let order = &mut self.order;
        self.queues
            .entry(tenant)
            .or_insert_with(|| {
                order.push_back(tenant);
                VecDeque::new()
            })
            .push_back(item);
        self.len += 1;
    }

    /// What is next.
    pub(crate) fn front(&self) -> Option<&T> {
        self.queues.get(self.order.front()?)?.front()
    }

    /// Takes what is next; its tenant then is the last in turn.
    pub(crate) fn pop(&mut self) -> Option<T> {
        let next = *self.order.front()?;
        self.pop_of(next)
    }

    /// The same, of this tenant.
    pub(crate) fn pop_of(&mut self, tenant: Uuid) -> Option<T> {
        let at = self.order.iter().position(|waiting| *waiting == tenant)?;
        self.order.remove(at);
        let queue = self.queues.get_mut(&tenant)?;
        let item = queue.pop_front()?;
        if queue.is_empty() {
            self.queues.remove(&tenant);
        } else {
            self.order.push_back(tenant);
        }
        self.len -= 1;
        Some(item)
    }
}

// Derived, it would ask for a `T` that has a default.
impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self { queues: HashMap::new(), order: VecDeque::new(), len: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tenants_take_turns_and_what_each_waits_for_stays_in_order() {
        let mut turns = Turns::default();
        let [one, other] = [Uuid::from_u128(1), Uuid::from_u128(2)];
        (1..=3).for_each(|item| turns.push(one, item));
        (11..=12).for_each(|item| turns.push(other, item));
        assert_eq!((turns.len(), turns.front()), (5, Some(&1)));
        assert_eq!(turns.pop_of(other), Some(11));
        let rest: Vec<i32> = std::iter::from_fn(|| turns.pop()).collect();
        assert_eq!(rest, [1, 12, 2, 3]);
        assert!(!turns.has(one) && turns.len() == 0 && turns.tenants().next().is_none());
    }
}
