//! The connections of one worker: unused ones are kept for the next request, and their number is bounded.
//!
//! A server gets at most a share of the connections that are not in use, and always one: servers that hang, however many,
//! leave some for the others. Who finds no room waits for a connection of the same server to become free, within the time that its
//! attempt has.

use crate::{
    connect::{ConnectError, Connector, Dial},
    connection::{Answer, Connection, ExchangeError, Noted},
    metrics::PoolMetrics,
    target::Origin,
};
use floodway_schemas::ids::TenantId;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

/// Divisor of the connections not in use that one server may have.
const SHARE: usize = 4;

/// What bounds a worker's connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PoolLimits {
    /// Connections, to all servers.
    pub(crate) connections: usize,
    /// Connections to one server.
    pub(crate) per_host: usize,
    /// Unused ones of these that are kept.
    pub(crate) idle_per_host: usize,
    /// How long they are kept.
    pub(crate) idle_timeout: Duration,
}

/// The connections of one worker.
pub(crate) struct Pool {
    connector: Connector,
    limits: PoolLimits,
    state: Mutex<State>,
    metrics: PoolMetrics,
}

#[derive(Default)]
struct State {
    hosts: HashMap<Origin, Host>,
    /// Connections, those that are being made included.
    open: usize,
    /// Of these unused.
    idle: usize,
}

#[derive(Default)]
struct Host {
    /// The one that was used last is at the end.
    idle: VecDeque<Idle>,
    open: usize,
    /// Who waits for one of them.
    waiting: VecDeque<oneshot::Sender<()>>,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

/// A connection in use, or the room for one. It is closed when dropped, unless it is [kept](Lease::keep).
pub(crate) struct Lease<'p> {
    pool: &'p Pool,
    origin: &'p Origin,
    connection: Option<Connection>,
    is_reused: bool,
    /// Whether the pool counts on it to be given back.
    is_counted: bool,
}

/// Waits for a connection to become free.
struct Turn<'p> {
    pool: &'p Pool,
    origin: &'p Origin,
    free: oneshot::Receiver<()>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // Its time was up just when its turn had come: it is the next one's.
        if self.free.try_recv().is_ok()
            && let Some(host) = self.pool.lock().hosts.get_mut(self.origin)
        {
            host.wake_one();
        }
    }
}

/// What the pool has for a request.
enum Found {
    Idle(Connection),
    Room,
    Wait(oneshot::Receiver<()>),
}

impl Pool {
    /// Without connections.
    pub(crate) fn new(connector: Connector, limits: PoolLimits) -> Self {
        Self { connector, limits, state: Mutex::default(), metrics: PoolMetrics::new() }
    }

    /// A connection to a server: an unused one, or a new one.
    pub(crate) async fn connection<'p>(
        &'p self,
        origin: &'p Origin,
        tenant: TenantId,
        dial: &mut Dial,
    ) -> Result<Lease<'p>, ConnectError> {
        loop {
            let connection = match self.find(origin) {
                Found::Idle(connection) => Some(connection),
                Found::Room => None,
                Found::Wait(free) => {
                    let mut turn = Turn { pool: self, origin, free };
                    // Sent, or dropped with the pool: either way there is something to find.
                    let _ = (&mut turn.free).await;
                    continue;
                }
            };
            let is_reused = connection.is_some();
            let mut lease = Lease { pool: self, origin, connection, is_reused, is_counted: true };
            match &lease.connection {
                Some(connection) => {
                    *dial = Dial { reused: true, address: Some(connection.address()), ..Dial::default() };
                }
                None => lease.connect(tenant, dial).await?,
            }
            return Ok(lease);
        }
    }

    /// Closes what was not used for too long. Called every now and then.
    pub(crate) fn reap(&self, now: Instant) {
        let mut closed = Vec::new();
        let mut state = self.lock();
        let State { hosts, open, idle } = &mut *state;
        hosts.retain(|_, host| {
            while host
                .idle
                .front()
                .is_some_and(|unused| now.saturating_duration_since(unused.since) >= self.limits.idle_timeout)
            {
                closed.extend(host.idle.pop_front());
                host.open -= 1;
                *open -= 1;
                *idle -= 1;
            }
            host.open > 0 || !host.waiting.is_empty()
        });
        // Closing sockets takes a system call each.
        drop(state);
        self.metrics.connections.decrement(closed.len() as f64);
    }

    fn find(&self, origin: &Origin) -> Found {
        let mut state = self.lock();
        if !state.hosts.contains_key(origin) {
            state.hosts.insert(origin.clone(), Host::default());
        }
        let State { hosts, open, idle } = &mut *state;
        // It was there before, or has just been put there.
        let Some(host) = hosts.get_mut(origin) else { return Found::Room };
        while let Some(Idle { mut connection, .. }) = host.idle.pop_back() {
            *idle -= 1;
            if !connection.is_stale() {
                return Found::Idle(connection);
            }
            host.open -= 1;
            *open -= 1;
            self.metrics.connections.decrement(1.0);
        }
        let unused = self.limits.connections.saturating_sub(*open - *idle);
        let share = self.limits.per_host.min(unused / SHARE).max(1);
        if host.open >= share {
            let (free, waits) = oneshot::channel();
            host.waiting.push_back(free);
            return Found::Wait(waits);
        }
        host.open += 1;
        *open += 1;
        self.metrics.connections.increment(1.0);
        if *open > self.limits.connections && *idle > 0 {
            state.close_one_idle();
            self.metrics.connections.decrement(1.0);
        }
        Found::Room
    }

    /// Every critical section leaves the counts right: a panic elsewhere is no reason to stop.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Closes an unused connection of some server, to make room for another server's.
    fn close_one_idle(&mut self) {
        if let Some(host) = self.hosts.values_mut().find(|host| !host.idle.is_empty()) {
            host.idle.pop_front();
            host.open -= 1;
            self.open -= 1;
            self.idle -= 1;
        }
    }
}

impl Host {
    /// Tells the first one who still waits that there is something to find.
    fn wake_one(&mut self) {
        while let Some(waiting) = self.waiting.pop_front() {
            if waiting.send(()).is_ok() {
                return;
            }
        }
    }
}

impl Lease<'_> {
    /// Makes the connection, instead of one that turned out to be closed if there was one.
    pub(crate) async fn connect(&mut self, tenant: TenantId, dial: &mut Dial) -> Result<(), ConnectError> {
        self.connection = None;
        self.is_reused = false;
        *dial = Dial::default();
        self.connection = Some(self.pool.connector.connect(self.origin, tenant, dial).await?);
        Ok(())
    }

    /// Makes a request over the connection, see [`Connection::exchange`].
    pub(crate) async fn exchange(
        &mut self,
        write_head: impl FnOnce(&mut Vec<u8>),
        body: &[u8],
        noted: &mut Noted,
    ) -> Result<Answer, ExchangeError> {
        match &mut self.connection {
            Some(connection) => connection.exchange(write_head, body, noted).await,
            None => Err(ExchangeError::Ended),
        }
    }

    /// Whether it served a request before.
    pub(crate) fn is_reused(&self) -> bool {
        self.is_reused
    }

    /// Gives the connection back for the next request.
    pub(crate) fn keep(mut self, now: Instant) {
        let Some(connection) = self.connection.take() else { return };
        let mut state = self.pool.lock();
        let State { hosts, idle, .. } = &mut *state;
        let Some(host) = hosts.get_mut(self.origin) else { return };
        // Beyond the bounds it is closed: dropping the lease counts it off.
        if host.idle.len() < self.pool.limits.idle_per_host {
            host.idle.push_back(Idle { connection, since: now });
            *idle += 1;
            host.wake_one();
            self.is_counted = false;
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if !self.is_counted {
            return;
        }
        let mut state = self.pool.lock();
        state.open -= 1;
        if let Some(host) = state.hosts.get_mut(self.origin) {
            host.open -= 1;
            host.wake_one();
        }
        drop(state);
        self.pool.metrics.connections.decrement(1.0);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.metrics.connections.decrement(self.lock().open as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        task::JoinSet,
        time::timeout,
    };
    use uuid::Uuid;

    const TENANT: TenantId = TenantId(Uuid::nil());
    const DEADLINE: Duration = Duration::from_secs(30);
    const LIMITS: PoolLimits = PoolLimits {
        connections: 100,
        per_host: 100,
        idle_per_host: 10,
        idle_timeout: Duration::from_secs(60),
    };

    fn pool(limits: PoolLimits) -> Pool {
        let allowed_networks = vec!["127.0.0.0/8".parse().unwrap()];
        let settings = Settings { allowed_networks, ..Settings::default() };
        Pool::new(Connector::new(&settings).unwrap(), limits)
    }

    /// A server that answers every request of one byte, as often as told on a connection, and then closes it.
    struct Server {
        origin: Origin,
        _tasks: JoinSet<()>,
    }

    static CLOSED: AtomicUsize = AtomicUsize::new(0);

    impl Server {
        async fn start(requests: usize) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let mut tasks = JoinSet::new();
            tasks.spawn(async move {
                let mut connections = JoinSet::new();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    connections.spawn(Self::serve(stream, requests));
                }
            });
            Self { origin: Origin { https: false, host: "127.0.0.1".into(), port }, _tasks: tasks }
        }

        async fn serve(mut stream: TcpStream, requests: usize) {
            for _ in 0..requests {
                if stream.read_exact(&mut [0]).await.is_err() {
                    return;
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            }
            drop(stream);
            CLOSED.fetch_add(1, Ordering::SeqCst);
        }
    }

    async fn ask(lease: &mut Lease<'_>) -> Answer {
        timeout(DEADLINE, lease.exchange(|out| out.push(b'?'), &[], &mut Noted::default()))
            .await
            .unwrap()
            .unwrap()
    }

    async fn lease<'p>(pool: &'p Pool, server: &'p Server) -> Lease<'p> {
        timeout(DEADLINE, pool.connection(&server.origin, TENANT, &mut Dial::default()))
            .await
            .unwrap()
            .unwrap()
    }

    fn counts(pool: &Pool) -> (usize, usize) {
        let state = pool.lock();
        (state.open, state.idle)
    }

    #[tokio::test]
    async fn a_connection_is_used_again_unless_the_server_closed_it() {
        let (pool, server) = (pool(LIMITS), Server::start(2).await);
        let mut first = lease(&pool, &server).await;
        assert!(!first.is_reused() && ask(&mut first).await.reusable);
        first.keep(Instant::now());
        assert_eq!(counts(&pool), (1, 1));
        let before = CLOSED.load(Ordering::SeqCst);
        let mut second = lease(&pool, &server).await;
        assert!(second.is_reused());
        ask(&mut second).await;
        second.keep(Instant::now());
        timeout(DEADLINE, async {
            while CLOSED.load(Ordering::SeqCst) == before {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        // The runtime hears of it with the next events.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let third = lease(&pool, &server).await;
        assert!(!third.is_reused());
        drop(third);
        assert_eq!(counts(&pool), (0, 0));
    }

    #[tokio::test]
    async fn who_finds_no_room_waits_for_the_same_server_only() {
        let (pool, server, other) =
            (pool(PoolLimits { per_host: 1, ..LIMITS }), Server::start(9).await, Server::start(9).await);
        let mut held = lease(&pool, &server).await;
        let no_room =
            timeout(Duration::from_millis(20), pool.connection(&server.origin, TENANT, &mut Dial::default()))
                .await;
        assert!(no_room.is_err());
        drop(lease(&pool, &other).await);
        let (waiting, ()) = tokio::join!(lease(&pool, &server), async {
            ask(&mut held).await;
            held.keep(Instant::now());
        });
        assert!(waiting.is_reused());
        let (fresh, ()) = tokio::join!(lease(&pool, &server), async { drop(waiting) });
        assert!(!fresh.is_reused());
    }

    #[tokio::test]
    async fn servers_that_hold_many_connections_leave_some_to_the_others() {
        let pool = pool(PoolLimits { connections: 16, ..LIMITS });
        let (hung, other) = (Server::start(1).await, Server::start(1).await);
        let mut held = Vec::new();
        while let Ok(lease) =
            timeout(Duration::from_millis(20), pool.connection(&hung.origin, TENANT, &mut Dial::default()))
                .await
        {
            held.push(lease.unwrap());
        }
        assert!((2..8).contains(&held.len()), "{}", held.len());
        lease(&pool, &other).await;
    }

    #[tokio::test]
    async fn unused_connections_make_room_and_are_closed_in_time() {
        let pool = pool(PoolLimits { connections: 1, ..LIMITS });
        let (first, second) = (Server::start(9).await, Server::start(9).await);
        let mut unused = lease(&pool, &first).await;
        ask(&mut unused).await;
        let now = Instant::now();
        unused.keep(now);
        let mut used = lease(&pool, &second).await;
        assert_eq!(counts(&pool), (1, 0));
        ask(&mut used).await;
        used.keep(now);
        pool.reap(now + LIMITS.idle_timeout / 2);
        assert_eq!(counts(&pool), (1, 1));
        pool.reap(now + LIMITS.idle_timeout);
        assert_eq!(counts(&pool), (0, 0));
        assert!(pool.lock().hosts.is_empty());
    }
}
