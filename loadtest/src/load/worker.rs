//! What one connection does from the start of a run to its end, and what those of one thread share.

use super::{
    answer::{Classifier, Settled},
    arrivals::{Arrivals, Next},
    connection::{Connection, NoAnswer},
    content::Arena,
    ledger::ConnectionLedger,
    monotonic,
    progress::Progress,
    request::{EncodedPool, Template},
    tally::{Ending, Exchange, Tally},
};
use crate::send::answer::Fate;
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// Pause after a connection could not be made, so that a server that is away is not asked without end.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);

/// What is sent.
#[derive(Clone)]
pub(super) struct Requests {
    pub(super) template: Arc<Template>,
    /// Instead of the template, if bodies are encoded.
    pub(super) pool: Option<Arc<EncodedPool>>,
    pub(super) classifier: Classifier,
    pub(super) events: u64,
}

/// What the connections of one thread share.
pub(super) struct Shared {
    /// The start of the run: all times are counted from it.
    pub(super) start: Instant,
    /// The same by the clock of the machine.
    start_micros: u64,
    pub(super) arrivals: RefCell<Arrivals>,
    pub(super) tally: RefCell<Tally>,
    /// Connections without a request, in the order in which they became free: taken in turns, all of them stay in use.
    free: RefCell<Free>,
    /// Copies of the request that are not being written.
    buffers: RefCell<Vec<Vec<u8>>>,
    arena: RefCell<Option<Arena>>,
    /// Set when answers are not waited for any longer.
    pub(super) given_up: Rc<Cell<bool>>,
    /// Requests sent so far, which encoded bodies take turns by.
    turn: Cell<u64>,
    /// A status that says that no request will ever be accepted.
    pub(super) unauthorized: Cell<Option<u16>>,
    /// Ends the whole run.
    pub(super) end: CancellationToken,
    progress: Arc<Progress>,
    /// What of `progress` is this thread's: requests that wait, and dropped ones.
    reported: Cell<(u64, u64)>,
}

#[derive(Default)]
struct Free {
    order: VecDeque<usize>,
    /// By connection.
    seats: Vec<Seat>,
    /// Whether there will be nothing more.
    over: bool,
}

/// A connection's place to wait at.
#[derive(Default)]
struct Seat {
    request: Option<Duration>,
    waker: Option<Waker>,
}

impl Shared {
    pub(super) fn new(
        start: Instant,
        connections: usize,
        arrivals: Arrivals,
        tally: Tally,
        arena: Option<Arena>,
        given_up: Rc<Cell<bool>>,
        (end, progress): (CancellationToken, Arc<Progress>),
    ) -> Self {
        let seats = std::iter::repeat_with(Seat::default).take(connections).collect();
        Self {
            start,
            start_micros: monotonic::micros_of(start),
            arrivals: RefCell::new(arrivals),
            tally: RefCell::new(tally),
            free: RefCell::new(Free { seats, ..Free::default() }),
            buffers: RefCell::default(),
            arena: RefCell::new(arena),
            given_up,
            turn: Cell::new(0),
            unauthorized: Cell::new(None),
            end,
            progress,
            reported: Cell::default(),
        }
    }

    /// Time since the start of the run.
    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Gives what has become due to free connections. Returns when the next request will be due.
    pub(super) fn dispatch(&self, now: Duration) -> Option<Duration> {
        let mut free = self.free.borrow_mut();
        let mut arrivals = self.arrivals.borrow_mut();
        if let Arrivals::Open(backlog) = &mut *arrivals {
            backlog.advance(now);
        }
        while let Some(&seat) = free.order.front() {
            match arrivals.take(now) {
                Next::Due(due) => {
                    free.order.pop_front();
                    free.seats[seat].request = Some(due);
                    free.seats[seat].wake();
                }
                Next::Wait => break,
                Next::Over => {
                    free.end();
                    break;
                }
            }
        }
        self.report_backlog(&arrivals);
        arrivals.next_due()
    }

    /// A request of a connection, in a buffer that is to be given back.
    fn render(&self, template: &Template, connection: u32, first: u64, due: Duration) -> Vec<u8> {
        let buffer = self.buffers.borrow_mut().pop();
        let mut request = buffer.unwrap_or_else(|| template.bytes().to_vec());
        template.patch(&mut request, connection, first, self.arena.borrow_mut().as_mut());
        template.stamp(&mut request, self.start_micros + due.as_micros() as u64);
        request
    }

    /// Ends the run: what is on its way goes on.
    pub(super) fn stop(&self) {
        self.arrivals.borrow_mut().end();
        self.free.borrow_mut().end();
        self.report_backlog(&self.arrivals.borrow());
    }

    /// Gives up what is on its way.
    pub(super) fn give_up(&self) {
        self.stop();
        self.given_up.set(true);
        self.free.borrow_mut().seats.iter_mut().for_each(Seat::wake);
    }

    /// Shows how many requests wait, over all threads.
    fn report_backlog(&self, arrivals: &Arrivals) {
        let now = (arrivals.waiting() as u64, arrivals.dropped());
        let before = self.reported.replace(now);
        if now == before {
            return;
        }
        // Wraps around and back: the sum over all threads is never negative.
        self.progress.backlog.fetch_add(now.0.wrapping_sub(before.0), Relaxed);
        self.progress.dropped.fetch_add(now.1 - before.1, Relaxed);
    }
}

impl Free {
    fn end(&mut self) {
        self.over = true;
        for seat in self.order.drain(..) {
            self.seats[seat].wake();
        }
    }
}

impl Seat {
    fn wake(&mut self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }
}

/// One connection and its events.
pub(super) struct Worker {
    pub(super) shared: Rc<Shared>,
    pub(super) requests: Requests,
    pub(super) connection: Connection,
    /// Among the connections of its thread.
    pub(super) seat: usize,
    /// Among all connections.
    pub(super) number: u32,
    pub(super) ledger: ConnectionLedger,
    pub(super) keeps_ledger: bool,
}

impl Worker {
    /// Sends until nothing more is due.
    pub(super) async fn run(mut self) -> (u32, ConnectionLedger) {
        poll_fn(|context| {
            self.shared.enter(self.seat, context);
            Poll::Ready(())
        })
        .await;
        let mut free = self.shared.now();
        while let Some(due) = self.next(free).await {
            free = self.exchange(due, free).await;
        }
        (self.number, self.ledger)
    }

    /// The next request's due time; `None` at the end of the run.
    async fn next(&mut self, now: Duration) -> Option<Duration> {
        let (shared, seat) = (&self.shared, self.seat);
        let mut is_seated = false;
        poll_fn(|_| {
            if is_seated {
                return shared.poll_seat(seat);
            }
            is_seated = true;
            let next = shared.take(now);
            match next {
                Next::Due(due) => Poll::Ready(Some(due)),
                Next::Over => Poll::Ready(None),
                Next::Wait => {
                    shared.take_seat(seat);
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// One request and its answer. Returns when the connection was free again.
    async fn exchange(&mut self, due: Duration, free: Duration) -> Duration {
        let events = self.requests.events;
        let first = self.ledger.sent;
        self.ledger.sent += events;
        self.shared.tally.borrow_mut().send(events);
        let connected = self.connection.ensure().await;
        // In a closed loop a request is due when it is sent, and one look at the clock is enough.
        let sent = if due == free { free } else { self.shared.now() };
        let settled = match connected {
            Ok(()) => self.send(first, due, sent).await,
            Err(error) => Err(error),
        };
        let ended = self.shared.now();
        self.settle(first, &Exchange { due, free, sent, ended, events }, &settled);
        if !matches!(settled, Err(NoAnswer::NotConnected(_))) {
            return ended;
        }
        self.shared.end.run_until_cancelled(tokio::time::sleep(RECONNECT_PAUSE)).await;
        self.shared.now()
    }

    async fn send(&mut self, first: u64, due: Duration, sent: Duration) -> Result<Settled, NoAnswer> {
        let sent = self.shared.start + sent;
        match &self.requests.pool {
            Some(pool) => {
                let turn = self.shared.turn.get();
                self.shared.turn.set(turn + 1);
                self.connection.write(pool.request(turn), sent).await?;
            }
            None => {
                let request = self.shared.render(&self.requests.template, self.number, first, due);
                let written = self.connection.write(&request, sent).await;
                self.shared.buffers.borrow_mut().push(request);
                written?;
            }
        }
        let (head, body) = self.connection.read().await?;
        if matches!(head.status, 401 | 403) && self.ledger.sent == self.requests.events {
            self.shared.unauthorized.set(Some(head.status));
            self.shared.end.cancel();
        }
        Ok(self.requests.classifier.classify(head.status, body))
    }

    fn settle(&mut self, first: u64, exchange: &Exchange, settled: &Result<Settled, NoAnswer>) {
        let ending = settled.as_ref().map_or(Ending::Nothing, Ending::Answer);
        self.shared.tally.borrow_mut().settle(exchange, ending);
        if !self.keeps_ledger {
            return;
        }
        match settled {
            Ok(Settled::All(fate)) => self.ledger.settle_all(first, exchange.events, *fate),
            Ok(Settled::Each(fates)) => self.ledger.settle_each(first, fates),
            // What was never sent is certainly not stored.
            Err(NoAnswer::NotConnected(_)) => {
                self.ledger.settle_all(first, exchange.events, Fate::Refused(0))
            }
            Err(_) => self.ledger.settle_all(first, exchange.events, Fate::Unknown(0)),
        }
    }
}

impl Shared {
    /// Notes how to wake a connection's task, which has the same waker all its life.
    fn enter(&self, seat: usize, context: &Context<'_>) {
        self.free.borrow_mut().seats[seat].waker = Some(context.waker().clone());
    }

    /// The next request for a connection that is free.
    fn take(&self, now: Duration) -> Next {
        let mut arrivals = self.arrivals.borrow_mut();
        let next = arrivals.take(now);
        self.report_backlog(&arrivals);
        next
    }

    /// Makes a connection wait for a request.
    fn take_seat(&self, seat: usize) {
        self.free.borrow_mut().order.push_back(seat);
    }

    fn poll_seat(&self, seat: usize) -> Poll<Option<Duration>> {
        let mut free = self.free.borrow_mut();
        match free.seats[seat].request.take() {
            Some(due) => Poll::Ready(Some(due)),
            None if free.over => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}
