//! One server: its connections, and who waits for one.

use crate::{connection::Connection, session::Session};
use floodway_schemas::ids::TenantId;
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// How long a connection that many requests share gets further ones, at most and at least: always in use, it would never follow an
/// endpoint that moves to another address. Between the two by chance, so that connections made together are not made anew together.
pub(super) const MAX_AGE: Duration = Duration::from_secs(5 * 60);
pub(super) const MIN_AGE: Duration = Duration::from_secs(4 * 60);

/// A server, and the connections to it.
#[derive(Default)]
pub(super) struct Host {
    /// The one that was used last is at the end.
    pub(super) idle: VecDeque<Idle>,
    /// Connections that many requests share. More than one per tenant only while requests of earlier ones are under way.
    pub(super) shared: Vec<Shared>,
    /// Connections, those that are being made included.
    pub(super) open: usize,
    /// Of these being made, by whose request.
    pub(super) connecting: Vec<TenantId>,
    /// What is known of the protocol that it chooses.
    pub(super) speaks: Speaks,
    /// Who waits for one of them, or for a place on another tenant's.
    pub(super) waiting: VecDeque<oneshot::Sender<()>>,
    /// Who waits to see which protocol it speaks.
    pub(super) curious: Vec<oneshot::Sender<()>>,
}

/// What is known of the protocol that a server chooses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Speaks {
    /// Perhaps HTTP/2.
    #[default]
    Any,
    /// HTTP/1.1 when it was asked last.
    Http1,
    /// It chose HTTP/2, and then asked for HTTP/1.1: it is not asked again.
    Http1Only,
}

/// A connection that is not in use.
pub(super) struct Idle {
    /// The connection.
    pub(super) connection: Connection,
    /// Since when.
    pub(super) since: Instant,
}

/// A connection that many requests share.
pub(super) struct Shared {
    /// The connection.
    pub(super) session: Arc<Session>,
    /// Whose requests it is for, first of all.
    pub(super) tenant: TenantId,
    /// Requests under way.
    pub(super) requests: usize,
    /// Who waits for a place on it, of the same tenant.
    pub(super) waiting: VecDeque<oneshot::Sender<()>>,
    /// Gets no further ones.
    pub(super) is_retired: bool,
    /// When it was used last.
    pub(super) since: Instant,
    /// From when on it gets no further ones.
    pub(super) old_at: Instant,
}

impl Host {
    /// Tells the first one who still waits for any connection that there is something to find.
    pub(super) fn wake_one(&mut self) {
        wake_one(&mut self.waiting);
    }

    /// The same after a place on a tenant's connection became free: its own requests come first.
    pub(super) fn wake_for(&mut self, tenant: TenantId) {
        let own = self.shared.iter_mut().find(|shared| shared.tenant == tenant && !shared.is_retired);
        if !own.is_some_and(|shared| wake_one(&mut shared.waiting)) {
            self.wake_one();
        }
    }

    /// Takes shared connections that came to their end out of use; returns how many were unused and are gone.
    pub(super) fn retire_unusable(&mut self, now: Instant) -> usize {
        let before = self.shared.len();
        self.shared.retain_mut(|shared| {
            if !shared.is_retired && !shared.is_fresh(now) {
                shared.retire();
            }
            !shared.is_retired || shared.requests > 0
        });
        before - self.shared.len()
    }
}

impl Shared {
    /// Whether it has a place for one more request.
    pub(super) fn has_room(&self, per_host: usize) -> bool {
        !self.is_retired && self.requests < per_host
    }

    /// Whether it may get further requests at all.
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        now < self.old_at && self.session.is_usable()
    }

    /// Takes a place on it.
    pub(super) fn take_place(&mut self) -> Arc<Session> {
        self.requests += 1;
        Arc::clone(&self.session)
    }

    /// Takes it out of use; who waits for a place on it looks again.
    pub(super) fn retire(&mut self) {
        self.is_retired = true;
        self.waiting.clear();
    }
}

/// Tells the first one who still waits that there is something to find. Whether there was one.
fn wake_one(waiting: &mut VecDeque<oneshot::Sender<()>>) -> bool {
    while let Some(first) = waiting.pop_front() {
        if first.send(()).is_ok() {
            return true;
        }
    }
    false
}

/// How long a shared connection gets further requests; `chance` is from 0 to 1.
pub(super) fn age(chance: f64) -> Duration {
    MIN_AGE + (MAX_AGE - MIN_AGE).mul_f64(chance)
}
