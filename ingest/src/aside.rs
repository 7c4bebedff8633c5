//! A rare future beside a busy one: polled when it was woken itself, and not each time the busy one was.

use atomic_waker::AtomicWaker;
use std::{
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Poll, Wake, Waker},
};

/// What one of the two came to.
pub(crate) enum Either<M, A> {
    /// The busy future is done.
    Main(M),
    /// The rare one is.
    Aside(A),
}

/// Notes that the rare future was woken, and wakes the task.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rung: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl Bell {
    /// A bell that has rung: the rare future has to be polled a first time.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { rung: AtomicBool::new(true), task: AtomicWaker::new() })
    }
}

/// Waits for the first of both; `main` is always polled, and first. `bell` belongs to `aside`, for all of its life.
pub(crate) async fn either<M: Future, A: Future>(
    mut main: Pin<&mut M>,
    mut aside: Pin<&mut A>,
    bell: &Arc<Bell>,
) -> Either<M::Output, A::Output> {
    let waker = Waker::from(Arc::clone(bell));
    poll_fn(|context| {
        if let Poll::Ready(output) = main.as_mut().poll(context) {
            return Poll::Ready(Either::Main(output));
        }
        bell.task.register(context.waker());
        if bell.rung.swap(false, Ordering::AcqRel) {
            let mut context = std::task::Context::from_waker(&waker);
            return aside.as_mut().poll(&mut context).map(Either::Aside);
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        pin::pin,
        sync::atomic::AtomicUsize,
        task::{Context, Poll},
    };

    /// Counts its polls, and keeps the waker of the last one.
    #[derive(Default)]
    struct Rare {
        polls: AtomicUsize,
        waker: AtomicWaker,
    }

    #[test]
    fn the_rare_future_is_polled_only_when_it_was_woken() {
        let rare = Rare::default();
        let main = pin!(std::future::pending::<()>());
        let aside = pin!(poll_fn(|context| {
            rare.waker.register(context.waker());
            let polls = rare.polls.fetch_add(1, Ordering::Relaxed) + 1;
            if polls == 3 { Poll::Ready("done") } else { Poll::Pending }
        }));
        let bell = Bell::new();
        let mut both = pin!(either(main, aside, &bell));
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..5 {
            assert!(both.as_mut().poll(&mut context).is_pending());
        }
        assert_eq!(rare.polls.load(Ordering::Relaxed), 1);
        rare.waker.wake();
        for _ in 0..5 {
            assert!(both.as_mut().poll(&mut context).is_pending());
        }
        rare.waker.wake();
        let Poll::Ready(Either::Aside(output)) = both.as_mut().poll(&mut context) else {
            panic!("the rare future was not polled to its end");
        };
        assert_eq!((output, rare.polls.load(Ordering::Relaxed)), ("done", 3));
    }
}
