//! Places for requests on a connection that many share: as many as the endpoint takes at a time.
//!
//! Who waits for one has sent nothing, and knows it: when the connection ends, the request is made on another one.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tokio::sync::{Semaphore, SemaphorePermit};

/// The places of one connection, given out in the order in which they are asked for. Used on one thread.
#[derive(Debug)]
pub(crate) struct Places {
    free: Semaphore,
    limit: AtomicUsize,
    /// Places in use beyond a limit that became smaller: they are not given out again.
    excess: AtomicUsize,
}

/// A place. Free again when dropped.
pub(crate) struct Place<'p> {
    places: &'p Places,
    permit: Option<SemaphorePermit<'p>>,
}

impl Places {
    /// As many as `limit`, all free.
    pub(crate) fn new(limit: usize) -> Self {
        Self { free: Semaphore::new(limit), limit: AtomicUsize::new(limit), excess: AtomicUsize::new(0) }
    }

    /// Waits for a place; `None` once there will be none any more.
    pub(crate) async fn take(&self) -> Option<Place<'_>> {
        let permit = self.free.acquire().await.ok()?;
        Some(Place { places: self, permit: Some(permit) })
    }

    /// Changes the limit. More than the library can count are as good as no limit.
    pub(crate) fn allow(&self, limit: usize) {
        let limit = limit.min(Semaphore::MAX_PERMITS);
        let before = self.limit.swap(limit, Relaxed);
        if limit > before {
            let repaid = self.excess.load(Relaxed).min(limit - before);
            self.excess.fetch_sub(repaid, Relaxed);
            self.free.add_permits(limit - before - repaid);
        } else if limit < before {
            let taken_back = self.free.forget_permits(before - limit);
            self.excess.fetch_add(before - limit - taken_back, Relaxed);
        }
    }

    /// Sends everybody away who waits, or comes later.
    pub(crate) fn close(&self) {
        self.free.close();
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let excess = self.places.excess.load(Relaxed);
        if excess > 0
            && let Some(permit) = self.permit.take()
        {
            self.places.excess.store(excess - 1, Relaxed);
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn as_many_places_are_given_out_as_the_endpoint_takes_now() {
        let places = Places::new(1);
        let free = || places.free.available_permits();
        let first = places.take().await;
        assert_eq!(free(), 0);
        places.allow(3);
        let (second, third) = (places.take().await, places.take().await);
        assert_eq!(free(), 0);
        places.allow(1);
        drop(first);
        drop(second);
        assert_eq!(free(), 0);
        places.allow(2);
        assert_eq!(free(), 1);
        drop(third);
        assert_eq!(free(), 2);
        places.allow(usize::MAX);
        assert!(places.take().await.is_some());
        places.close();
        assert!(places.take().await.is_none());
    }
}
