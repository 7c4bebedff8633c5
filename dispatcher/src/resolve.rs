//! Resolving host names, one look-up per host at a time.
//!
//! The system's resolver blocks a thread of a bounded pool for as long as a name server does not answer, and cannot be
//! cancelled. Attempts at one host therefore share a look-up: a name server that hangs holds one thread per host
//! and not one per attempt, which would keep other endpoints from being resolved. Whatever the number of hosts, most of the pool
//! is left to others; what waits for its look-up does so within its own timeout, and a look-up that nobody waits for any more is
//! not made.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;

/// Look-ups under way at a time: a quarter of the threads that the runtime has for blocking work.
const MAX_LOOK_UPS: usize = 128;

/// The result of a look-up, shared by those who wait for it.
type Answer = Result<Arc<[SocketAddr]>, io::ErrorKind>;
/// A host with the port to connect to.
type Target = (String, u16);

/// The look-ups under way. Cheap to clone; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Resolver {
    under_way: Arc<Mutex<HashMap<Target, watch::Receiver<Option<Answer>>>>>,
    room: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Default for Resolver {
    fn default() -> Self {
        Self {
            under_way: Arc::default(),
            room: Arc::new(Semaphore::new(MAX_LOOK_UPS)),
            tasks: TaskTracker::new(),
        }
    }
}

impl Resolver {
    /// The addresses of a host, which may be an address itself.
    pub(crate) async fn resolve(&self, host: &str, port: u16) -> io::Result<Arc<[SocketAddr]>> {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Ok([SocketAddr::new(ip, port)].into());
        }
        let mut answer = self.look_up((host.to_owned(), port));
        // The sender goes away without an answer only when the look-up panicked.
        let answer =
            answer.wait_for(Option::is_some).await.map_err(|_| io::Error::from(io::ErrorKind::Other))?;
        answer.clone().unwrap_or(Err(io::ErrorKind::Other)).map_err(io::Error::from)
    }

    /// Joins the look-up of this host that is under way, or starts one.
    fn look_up(&self, target: Target) -> watch::Receiver<Option<Answer>> {
        let mut under_way = self.lock();
        if let Some(answer) = under_way.get(&target) {
            return answer.clone();
        }
        let (sender, answer) = watch::channel(None);
        under_way.insert(target.clone(), answer.clone());
        drop(under_way);
        let this = self.clone();
        self.tasks.spawn(async move {
            // Never closed.
            let _room = this.room.acquire().await;
            if this.is_given_up(&target, &sender) {
                return;
            }
            let found = tokio::net::lookup_host((target.0.as_str(), target.1)).await;
            this.lock().remove(&target);
            sender.send_replace(Some(found.map(Iterator::collect).map_err(|error| error.kind())));
        });
        answer
    }

    /// Whether nobody but the list of look-ups waits for this one, which is taken off the list then.
    fn is_given_up(&self, target: &Target, sender: &watch::Sender<Option<Answer>>) -> bool {
        // Whoever joins the look-up does so under this lock.
        let mut under_way = self.lock();
        let given_up = sender.receiver_count() <= 1;
        if given_up {
            under_way.remove(target);
        }
        given_up
    }

    /// Each critical section is one operation of the map: a panic elsewhere cannot leave it half done.
    fn lock(&self) -> MutexGuard<'_, HashMap<Target, watch::Receiver<Option<Answer>>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn attempts_at_one_host_share_a_look_up() {
        let resolver = Resolver::default();
        let first = resolver.look_up(("localhost".to_owned(), 1));
        let second = resolver.look_up(("localhost".to_owned(), 1));
        assert!(first.same_channel(&second));
        let found = resolver.resolve("localhost", 1).await.unwrap();
        assert!(!found.is_empty() && found.iter().all(|address| address.ip().is_loopback()));
        resolver.tasks.close();
        resolver.tasks.wait().await;
        assert!(resolver.lock().is_empty());
    }

    #[tokio::test]
    async fn look_ups_beyond_the_bound_wait_and_are_not_made_once_nobody_waits() {
        let resolver = Resolver { room: Arc::new(Semaphore::new(1)), ..Resolver::default() };
        let room = resolver.room.acquire().await.unwrap();
        let given_up = resolver.look_up(("given-up.invalid".to_owned(), 1));
        drop(given_up);
        let mut waiting = resolver.look_up(("localhost".to_owned(), 1));
        tokio::task::yield_now().await;
        assert!(waiting.borrow().is_none());
        assert_eq!(resolver.lock().len(), 2);
        drop(room);
        assert!(matches!(*waiting.wait_for(Option::is_some).await.unwrap(), Some(Ok(_))));
        resolver.tasks.close();
        resolver.tasks.wait().await;
        assert!(resolver.lock().is_empty());
    }

    #[tokio::test]
    async fn an_address_needs_no_look_up() {
        let resolver = Resolver::default();
        for host in ["127.0.0.1", "[::1]"] {
            assert_eq!(resolver.resolve(host, 5).await.unwrap().len(), 1, "{host}");
        }
        assert!(resolver.lock().is_empty());
    }
}
