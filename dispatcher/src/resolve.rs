//! Resolving host names: one look-up per tenant and host at a time, whose answer is kept for a while.
//!
//! The system's resolver blocks a thread of a bounded pool for as long as a name server does not answer, cannot be
//! cancelled, and does not tell how long an answer holds. So attempts of one tenant at one host share a look-up, and a tenant has a
//! share of all look-ups: names that do not resolve, however many, keep nobody else's from being resolved. What waits for its
//! look-up does so within its own timeout, and a look-up that nobody waits for any more is not made. An answer is kept for
//! [`KEPT`], whatever its time to live.

use floodway_schemas::ids::TenantId;
use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;

/// Look-ups under way at a time: a quarter of the threads that a runtime has for blocking work.
const MAX_LOOK_UPS: usize = 128;
/// Of these for one tenant.
const MAX_LOOK_UPS_OF_TENANT: usize = 16;
/// How long an answer is used. Short enough to follow an endpoint that moves, and only new connections ask.
const KEPT: Duration = Duration::from_secs(30);
/// How long a failure is: retries of many deliveries need not ask each.
const FAILURE_KEPT: Duration = Duration::from_secs(1);
/// Answers that are kept; beyond, those that are out of date are thrown away, and all of them if there are none such.
const MAX_KEPT: usize = 10_000;

/// The result of a look-up, shared by those who wait for it.
type Answer = Result<Arc<[SocketAddr]>, io::ErrorKind>;
/// A host with the port to connect to, and on whose behalf: nobody waits for what another tenant began.
type Target = (TenantId, Box<str>, u16);

/// Looks names up. Cheap to clone; clones share look-ups and answers.
#[derive(Debug, Clone)]
pub(crate) struct Resolver {
    state: Arc<Mutex<State>>,
    room: Arc<Semaphore>,
    tasks: TaskTracker,
}

#[derive(Debug, Default)]
struct State {
    look_ups: HashMap<Target, LookUp>,
    tenants: HashMap<TenantId, Weak<Semaphore>>,
}

/// A look-up under way, or its answer.
#[derive(Debug)]
struct LookUp {
    answer: watch::Receiver<Option<Answer>>,
    /// When the answer is out of date; `None` while there is none.
    until: Option<Instant>,
}

impl Default for Resolver {
    fn default() -> Self {
        Self {
            state: Arc::default(),
            room: Arc::new(Semaphore::new(MAX_LOOK_UPS)),
            tasks: TaskTracker::new(),
        }
    }
}

impl Resolver {
    /// The addresses of a host, which may be an address itself.
    pub(crate) async fn resolve(
        &self,
        tenant: TenantId,
        host: &str,
        port: u16,
    ) -> io::Result<Arc<[SocketAddr]>> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok([SocketAddr::new(ip, port)].into());
        }
        let mut answer = self.look_up((tenant, host.into(), port), Instant::now());
        // The sender goes away without an answer only when the look-up panicked, or its worker ended.
        let answer =
            answer.wait_for(Option::is_some).await.map_err(|_| io::Error::from(io::ErrorKind::Other))?;
        answer.clone().unwrap_or(Err(io::ErrorKind::Other)).map_err(io::Error::from)
    }

    /// The look-up of this host that is under way or not long ago, or a new one.
    fn look_up(&self, target: Target, now: Instant) -> watch::Receiver<Option<Answer>> {
        let mut state = self.lock();
        if let Some(known) = state.look_ups.get(&target)
            && known.is_useful(now)
        {
            return known.answer.clone();
        }
        state.make_room(now);
        let (sender, answer) = watch::channel(None);
        state.look_ups.insert(target.clone(), LookUp { answer: answer.clone(), until: None });
        let share = state.share(target.0);
        drop(state);
        let this = self.clone();
        self.tasks.spawn(async move {
            // Neither is ever closed.
            let (_share, _room) = (share.acquire().await, this.room.acquire().await);
            if this.is_given_up(&target, &sender) {
                return;
            }
            let found = tokio::net::lookup_host((&*target.1, target.2)).await;
            let answer = found.map(Iterator::collect).map_err(|error| error.kind());
            let kept = if answer.is_ok() { KEPT } else { FAILURE_KEPT };
            if let Some(look_up) = this.lock().look_ups.get_mut(&target) {
                look_up.until = Some(Instant::now() + kept);
            }
            sender.send_replace(Some(answer));
        });
        answer
    }

    /// Whether nobody but the list of look-ups waits for this one, which is taken off the list then.
    fn is_given_up(&self, target: &Target, sender: &watch::Sender<Option<Answer>>) -> bool {
        // Whoever joins the look-up does so under this lock.
        let mut state = self.lock();
        let given_up = sender.receiver_count() <= 1;
        if given_up {
            state.look_ups.remove(target);
        }
        given_up
    }

    /// Each critical section leaves the maps usable: a panic elsewhere is no reason to stop.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LookUp {
    fn is_useful(&self, now: Instant) -> bool {
        match self.until {
            Some(until) => now < until,
            // Without its sender it will never be answered.
            None => self.answer.has_changed().is_ok(),
        }
    }
}

impl State {
    fn make_room(&mut self, now: Instant) {
        if self.look_ups.len() < MAX_KEPT {
            return;
        }
        self.look_ups.retain(|_, look_up| look_up.is_useful(now));
        if self.look_ups.len() >= MAX_KEPT {
            self.look_ups.retain(|_, look_up| look_up.until.is_none());
        }
        self.tenants.retain(|_, share| share.strong_count() > 0);
    }

    /// What a tenant may have under way.
    fn share(&mut self, tenant: TenantId) -> Arc<Semaphore> {
        let held = self.tenants.entry(tenant).or_default();
        held.upgrade().unwrap_or_else(|| {
            let share = Arc::new(Semaphore::new(MAX_LOOK_UPS_OF_TENANT));
            *held = Arc::downgrade(&share);
            share
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const TENANT: TenantId = TenantId(Uuid::nil());

    fn target(host: &str) -> Target {
        (TENANT, host.into(), 1)
    }

    #[tokio::test]
    async fn attempts_at_one_host_share_a_look_up_and_its_answer_for_a_while() {
        let resolver = Resolver::default();
        let now = Instant::now();
        let first = resolver.look_up(target("localhost"), now);
        assert!(first.same_channel(&resolver.look_up(target("localhost"), now)));
        let other_tenant = (TenantId(Uuid::max()), "localhost".into(), 1);
        assert!(!first.same_channel(&resolver.look_up(other_tenant, now)));
        let found = resolver.resolve(TENANT, "localhost", 1).await.unwrap();
        assert!(!found.is_empty() && found.iter().all(|address| address.ip().is_loopback()));
        assert!(first.same_channel(&resolver.look_up(target("localhost"), now)));
        let later = Instant::now() + KEPT;
        assert!(!first.same_channel(&resolver.look_up(target("localhost"), later)));
    }

    #[tokio::test]
    async fn look_ups_beyond_the_bound_wait_and_are_not_made_once_nobody_waits() {
        let resolver = Resolver { room: Arc::new(Semaphore::new(1)), ..Resolver::default() };
        let room = resolver.room.acquire().await.unwrap();
        let now = Instant::now();
        drop(resolver.look_up(target("given-up.invalid"), now));
        let mut waiting = resolver.look_up(target("localhost"), now);
        tokio::task::yield_now().await;
        assert!(waiting.borrow().is_none());
        drop(room);
        assert!(matches!(*waiting.wait_for(Option::is_some).await.unwrap(), Some(Ok(_))));
        resolver.tasks.close();
        resolver.tasks.wait().await;
        let known: Vec<_> = resolver.lock().look_ups.keys().cloned().collect();
        assert_eq!(known, [target("localhost")]);
    }

    #[tokio::test]
    async fn a_tenant_waits_for_its_own_look_ups_and_for_no_others() {
        let resolver = Resolver::default();
        let share = resolver.lock().share(TENANT);
        let _all = share.acquire_many(u32::try_from(MAX_LOOK_UPS_OF_TENANT).unwrap()).await.unwrap();
        let waiting = resolver.look_up(target("localhost"), Instant::now());
        resolver.resolve(TenantId(Uuid::max()), "localhost", 1).await.unwrap();
        assert!(waiting.borrow().is_none());
    }

    #[tokio::test]
    async fn what_is_kept_is_bounded() {
        let resolver = Resolver::default();
        let now = Instant::now();
        let (sender, answer) = watch::channel(Some(Err(io::ErrorKind::NotFound)));
        for number in 0..=MAX_KEPT {
            let until = Some(now + KEPT);
            resolver
                .lock()
                .look_ups
                .insert(target(&number.to_string()), LookUp { answer: answer.clone(), until });
        }
        drop(sender);
        drop(resolver.look_up(target("localhost"), now));
        assert_eq!(resolver.lock().look_ups.len(), 1);
    }

    #[tokio::test]
    async fn an_address_needs_no_look_up() {
        let resolver = Resolver::default();
        for host in ["127.0.0.1", "::1"] {
            assert_eq!(resolver.resolve(TENANT, host, 5).await.unwrap().len(), 1, "{host}");
        }
        assert!(resolver.lock().look_ups.is_empty());
    }
}
