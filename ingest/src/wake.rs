//! Waking many requests with one signal to their worker.
//!
//! Waking a task of a single-threaded runtime from another thread costs a system call, and a burst of delivery reports
//! ends many requests at once. So the producer's thread only puts their wakers on the worker's list; the first one on an
//! empty list signals the worker, which wakes its own requests without leaving its thread.

use atomic_waker::AtomicWaker;
use std::{
    cell::RefCell,
    future::poll_fn,
    mem,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    task::Waker,
};

thread_local! {
    /// The list of the worker that runs on this thread. A request never changes its thread.
    static CURRENT: RefCell<Option<Arc<WakeList>>> = const { RefCell::new(None) };
}

/// Requests of one worker that are to be woken. At most one entry per request in flight.
#[derive(Debug, Default)]
pub(crate) struct WakeList {
    wakers: Mutex<Vec<Waker>>,
    worker: AtomicWaker,
}

impl WakeList {
    /// The list of the worker on this thread; `None` outside of [`drive`].
    pub(crate) fn current() -> Option<Arc<Self>> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// Has the worker wake a request.
    pub(crate) fn push(&self, waker: Waker) {
        let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        wakers.push(waker);
        let first = wakers.len() == 1;
        drop(wakers);
        if first {
            self.worker.wake();
        }
    }

    /// Swaps the list with an empty one.
    fn take(&self, empty: &mut Vec<Waker>) {
        mem::swap(&mut *self.wakers.lock().unwrap_or_else(PoisonError::into_inner), empty);
    }
}

/// Runs a worker and wakes what is on its list; the main future of a worker's own thread.
pub(crate) async fn drive<F: Future>(work: F) -> F::Output {
    let list = Arc::new(WakeList::default());
    CURRENT.set(Some(Arc::clone(&list)));
    let mut work = pin!(work);
    let mut due = Vec::new();
    poll_fn(|context| {
        list.worker.register(context.waker());
        list.take(&mut due);
        due.drain(..).for_each(Waker::wake);
        work.as_mut().poll(context)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::{sync::oneshot, time::timeout};

    #[test]
    fn a_worker_wakes_what_other_threads_put_on_its_list() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let woken = drive(async {
            let list = WakeList::current().unwrap();
            let (told, hears) = oneshot::channel::<Waker>();
            let reporter = std::thread::spawn(move || {
                let waker = hears.blocking_recv().unwrap();
                (0..100).for_each(|_| list.push(waker.clone()));
            });
            let mut told = Some(told);
            let request = poll_fn(|context| match told.take() {
                Some(told) => {
                    told.send(context.waker().clone()).unwrap();
                    std::task::Poll::Pending
                }
                None => std::task::Poll::Ready(()),
            });
            timeout(Duration::from_secs(20), request).await.unwrap();
            reporter.join().unwrap();
        });
        runtime.block_on(woken);
        assert!(WakeList::current().is_some());
    }
}
