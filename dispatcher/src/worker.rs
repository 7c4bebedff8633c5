//! The threads that make deliveries.
//!
//! Each has a single-threaded runtime and the connections of its own servers, so an attempt never changes its thread and waits for
//! no lock that another thread holds. Partition threads put deliveries into a worker's mailbox and signal it once for all that they
//! have at hand: waking another thread costs a system call.

use crate::{
    deliver::Deliverer,
    delivery::Delivery,
    lag::Lag,
    pool::{Pool, PoolLimits},
};
use atomic_waker::AtomicWaker;
use std::{
    future::poll_fn,
    io, mem,
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::task_tracker::TaskTrackerToken;

/// How often connections that were not used for too long are looked for.
const REAP_PAUSE: Duration = Duration::from_secs(1);

/// The worker threads and their mailboxes.
pub(crate) struct Workers {
    mailboxes: Box<[Mailbox]>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What the deliveries of one worker share.
pub(crate) struct Worker {
    /// Connections to its servers.
    pub(crate) pool: Pool,
    /// How far its thread is behind.
    pub(crate) lag: Arc<Lag>,
}

/// Deliveries that begin, in the order in which they do. Bounded by the lanes.
#[derive(Default)]
struct Mailbox {
    state: Mutex<State>,
    /// Whether something was put in since the worker was signalled.
    unsignalled: AtomicBool,
    worker: AtomicWaker,
    lag: Arc<Lag>,
}

#[derive(Default)]
struct State {
    begin: Vec<Begin>,
    /// Nobody looks any more.
    is_closed: bool,
}

/// A delivery that has a place in its lane, and counts as under way.
struct Begin {
    delivery: Delivery,
    under_way: TaskTrackerToken,
}

impl Workers {
    /// So many mailboxes, at least one, for threads that are to be started.
    pub(crate) fn new(count: usize) -> Self {
        Self { mailboxes: (0..count.max(1)).map(|_| Mailbox::default()).collect(), threads: Mutex::default() }
    }

    /// Starts the threads. They end when the deliverer's work is cut off.
    pub(crate) fn start(deliverer: &Arc<Deliverer>, limits: PoolLimits) -> io::Result<()> {
        let count = deliverer.workers.mailboxes.len();
        let limits = PoolLimits { connections: limits.connections.div_ceil(count), ..limits };
        for index in 0..count {
            let deliverer = Arc::clone(deliverer);
            let threads = Arc::clone(&deliverer);
            let thread = std::thread::Builder::new()
                .name(format!("deliver-{index}"))
                .spawn(move || run(&deliverer, index, limits))?;
            threads.workers.lock_threads().push(thread);
        }
        Ok(())
    }

    /// Puts a delivery into its worker's mailbox; [`Workers::signal`] must follow.
    pub(crate) fn begin(&self, delivery: Delivery, under_way: TaskTrackerToken) {
        let spread = delivery.target().map_or(0, |target| target.spread);
        let mailbox = &self.mailboxes[spread % self.mailboxes.len()];
        mailbox.put(Begin { delivery, under_way });
    }

    /// Tells workers that there is something in their mailboxes. Cheap when there is not.
    pub(crate) fn signal(&self) {
        for mailbox in &self.mailboxes {
            if mailbox.unsignalled.load(Ordering::Relaxed)
                && mailbox.unsignalled.swap(false, Ordering::AcqRel)
            {
                mailbox.worker.wake();
            }
        }
    }

    /// Whether a worker is behind, so that this process, or the machine, is the limit of what is delivered.
    pub(crate) fn are_behind(&self, now: Instant) -> bool {
        self.mailboxes.iter().any(|mailbox| mailbox.lag.is_behind(now))
    }

    /// Waits for the threads. Blocks the thread.
    pub(crate) fn join(&self) {
        let threads = mem::take(&mut *self.lock_threads());
        if threads.into_iter().any(|thread| thread.join().is_err()) {
            tracing::error!("a worker panicked");
        }
    }

    /// Takes what is to begin, of which some may have no thread.
    #[cfg(test)]
    pub(crate) fn take_begun(&self) -> Vec<Delivery> {
        let begun = self.mailboxes.iter().flat_map(|mailbox| mem::take(&mut mailbox.lock().begin));
        begun.map(|begin| begin.delivery).collect()
    }

    fn lock_threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mailbox {
    fn put(&self, begin: Begin) {
        let mut state = self.lock();
        // Of one that is closed nothing is made: dropped, it is left to the next owner of its partition.
        if !state.is_closed {
            state.begin.push(begin);
            drop(state);
            self.unsignalled.store(true, Ordering::Release);
        }
    }

    /// Swaps what is in it with an empty list.
    fn take(&self, empty: &mut Vec<Begin>) {
        mem::swap(&mut self.lock().begin, empty);
    }

    fn close(&self) -> Vec<Begin> {
        let mut state = self.lock();
        state.is_closed = true;
        mem::take(&mut state.begin)
    }

    /// Each critical section is one operation of the list: a panic elsewhere cannot leave it half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body of a worker's thread.
fn run(deliverer: &Arc<Deliverer>, index: usize, limits: PoolLimits) {
    let mailbox = &deliverer.workers.mailboxes[index];
    while !deliverer.cut_off.is_cancelled() {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(%error, "a worker has no runtime");
                std::thread::sleep(REAP_PAUSE);
                continue;
            }
        };
        let serve = AssertUnwindSafe(|| runtime.block_on(serve(deliverer, mailbox, limits)));
        if std::panic::catch_unwind(serve).is_err() {
            tracing::error!("a worker panicked and goes on: deliveries under way are left to the next owner");
        }
        // Drops the attempts under way, and does not wait for name servers.
        runtime.shutdown_background();
    }
    drop(mailbox.close());
}

/// Begins what is put into the mailbox, until the work is cut off.
async fn serve(deliverer: &Arc<Deliverer>, mailbox: &Mailbox, limits: PoolLimits) {
    let pool = Pool::new(deliverer.connector.clone(), limits);
    let worker = Arc::new(Worker { pool, lag: Arc::clone(&mailbox.lag) });
    let mut cut_off = pin!(deliverer.cut_off.cancelled());
    let mut reap = interval(REAP_PAUSE);
    reap.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut begin = Vec::new();
    poll_fn(|context| {
        mailbox.worker.register(context.waker());
        mailbox.take(&mut begin);
        for Begin { delivery, under_way } in begin.drain(..) {
            deliverer.tasks.spawn(Arc::clone(deliverer).work(delivery, Arc::clone(&worker)));
            drop(under_way);
        }
        while reap.poll_tick(context).is_ready() {
            worker.pool.reap(Instant::now());
        }
        if cut_off.as_mut().poll(context).is_ready() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}
