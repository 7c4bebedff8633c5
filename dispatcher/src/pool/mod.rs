//! The connections of one worker: unused ones are kept for the next request, and their number is bounded.
//!
//! A server gets at most a share of the connections that are not in use, and always one: servers that hang, however many,
//! leave some for the others. Who finds no room waits for a connection of the same server to become free, within the time that its
//! attempt has.
//!
//! A server that speaks HTTP/2 gets one connection for all requests of a tenant: what one tenant's requests block there holds up no
//! other tenant's. Only tenants for whose own connection the server's share has no room use another one's. Which protocol a server
//! speaks shows when the first connection to it is made: the tenant's other requests wait for that for a moment, and use the
//! connection if they can.

mod host;
mod lease;

pub(crate) use lease::Lease;

use crate::{
    connect::{ConnectError, Connector, Dial, Offer},
    connection::Connection,
    metrics::PoolMetrics,
    session::{Opened, Session},
    target::Origin,
};
use floodway_schemas::ids::TenantId;
use host::{Host, Idle, Shared, Speaks, age};
use lease::Held;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};
use tokio::{sync::oneshot, time::timeout_at};
use tokio_util::task::TaskTracker;

/// Divisor of the connections not in use that one server may have.
const SHARE: usize = 4;
/// Longest wait for another request's connection that may turn out to be for both: enough for a handshake with the other side of the
/// world, and little beside the timeout of an attempt if there is no answer at all.
const PROTOCOL_WAIT: Duration = Duration::from_secs(1);

/// What bounds a worker's connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PoolLimits {
    /// Connections, to all servers.
    pub(crate) connections: usize,
    /// Connections to one server, and requests at a time over one that they share.
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
    /// What reads and writes connections that many requests share. Each ends soon after the last one that uses it.
    tasks: TaskTracker,
}

#[derive(Default)]
struct State {
    hosts: HashMap<Origin, Host>,
    /// Connections, those that are being made included.
    open: usize,
    /// Of these unused.
    idle: usize,
}

/// Waits for a connection to become free.
struct Turn<'p> {
    pool: &'p Pool,
    origin: &'p Origin,
    tenant: TenantId,
    free: oneshot::Receiver<()>,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // Its time was up just when its turn had come: it is the next one's.
        if self.free.try_recv().is_ok()
            && let Some(host) = self.pool.lock().hosts.get_mut(self.origin)
        {
            host.wake_for(self.tenant);
        }
    }
}

/// A connection that is being made. Once it is, or is not, those who are curious look again.
struct Making<'p> {
    pool: &'p Pool,
    origin: &'p Origin,
    tenant: TenantId,
}

impl<'p> Making<'p> {
    fn new(pool: &'p Pool, origin: &'p Origin, tenant: TenantId) -> Self {
        if let Some(host) = pool.lock().hosts.get_mut(origin) {
            host.connecting.push(tenant);
        }
        Self { pool, origin, tenant }
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        if let Some(host) = self.pool.lock().hosts.get_mut(self.origin) {
            if let Some(at) = host.connecting.iter().position(|&tenant| tenant == self.tenant) {
                host.connecting.swap_remove(at);
            }
            for curious in host.curious.drain(..) {
                // Who gave up needs no word.
                let _ = curious.send(());
            }
        }
    }
}

/// What the pool has for a request.
enum Found {
    Idle(Connection),
    Place(Arc<Session>),
    Room,
    Wait(oneshot::Receiver<()>),
    /// A connection is being made that may be for this request, too.
    WaitToSee(oneshot::Receiver<()>),
}

impl Pool {
    /// Without connections.
    pub(crate) fn new(connector: Connector, limits: PoolLimits) -> Self {
        Self {
            connector,
            limits,
            state: Mutex::default(),
            metrics: PoolMetrics::new(),
            tasks: TaskTracker::new(),
        }
    }

    /// A connection to a server: an unused one, one that many requests share, or a new one.
    pub(crate) async fn connection<'p>(
        &'p self,
        origin: &'p Origin,
        tenant: TenantId,
        dial: &mut Dial,
    ) -> Result<Lease<'p>, ConnectError> {
        let mut see_until = None;
        let mut is_curious = true;
        loop {
            let held = match self.find(origin, tenant, is_curious, Instant::now()) {
                Found::Idle(connection) => Held::Own(connection),
                Found::Place(session) => Held::Place(session),
                Found::Room => Held::Room,
                Found::Wait(free) => {
                    let mut turn = Turn { pool: self, origin, tenant, free };
                    // Sent, or dropped with what it was about: either way it is time to look again.
                    let _ = (&mut turn.free).await;
                    continue;
                }
                Found::WaitToSee(made) => {
                    let until = *see_until.get_or_insert_with(|| tokio::time::Instant::now() + PROTOCOL_WAIT);
                    is_curious = timeout_at(until, made).await.is_ok();
                    continue;
                }
            };
            let mut lease = Lease { pool: self, origin, held, is_reused: true };
            match lease.address() {
                Some(address) => *dial = Dial { reused: true, address: Some(address), ..Dial::default() },
                // Of its own on the heap, as all that is rare: each delivery's task has room for everything it may wait for.
                None => Box::pin(lease.connect(tenant, dial)).await?,
            }
            return Ok(lease);
        }
    }

    /// Closes what was not used for too long. Called every now and then.
    pub(crate) fn reap(&self, now: Instant) {
        let (mut closed, mut closed_shared) = (Vec::new(), Vec::new());
        let mut state = self.lock();
        let State { hosts, open, idle } = &mut *state;
        let timeout = self.limits.idle_timeout;
        hosts.retain(|_, host| {
            let before = closed.len() + closed_shared.len();
            while host
                .idle
                .front()
                .is_some_and(|unused| now.saturating_duration_since(unused.since) >= timeout)
            {
                closed.extend(host.idle.pop_front());
            }
            closed_shared.extend(host.shared.extract_if(.., |shared| {
                shared.requests == 0
                    && (now.saturating_duration_since(shared.since) >= timeout || !shared.is_fresh(now))
            }));
            let count = closed.len() + closed_shared.len() - before;
            host.open -= count;
            *open -= count;
            *idle -= count;
            host.open > 0 || !host.waiting.is_empty() || !host.curious.is_empty()
        });
        // Closing sockets takes a system call each.
        drop(state);
        self.metrics.connections.decrement((closed.len() + closed_shared.len()) as f64);
    }

    fn find(&self, origin: &Origin, tenant: TenantId, is_curious: bool, now: Instant) -> Found {
        let mut state = self.lock();
        if !state.hosts.contains_key(origin) {
            state.hosts.insert(origin.clone(), Host::default());
        }
        let State { hosts, open, idle } = &mut *state;
        // It was there before, or has just been put there.
        let Some(host) = hosts.get_mut(origin) else { return Found::Room };
        let ended = host.retire_unusable(now);
        if ended > 0 {
            host.open -= ended;
            *open -= ended;
            *idle -= ended;
            self.metrics.connections.decrement(ended as f64);
        }
        let per_host = self.limits.per_host;
        let own = host.shared.iter_mut().find(|shared| shared.tenant == tenant && !shared.is_retired);
        if let Some(shared) = own {
            if shared.requests < per_host {
                *idle -= usize::from(shared.requests == 0);
                return Found::Place(shared.take_place());
            }
            let (free, waits) = oneshot::channel();
            shared.waiting.push_back(free);
            return Found::Wait(waits);
        }
        while let Some(Idle { mut connection, .. }) = host.idle.pop_back() {
            *idle -= 1;
            if !connection.is_stale() {
                return Found::Idle(connection);
            }
            host.open -= 1;
            *open -= 1;
            self.metrics.connections.decrement(1.0);
        }
        if is_curious && host.connecting.contains(&tenant) && self.may_share(origin, host) {
            let (made, waits) = oneshot::channel();
            host.curious.push(made);
            return Found::WaitToSee(waits);
        }
        let unused = self.limits.connections.saturating_sub(*open - *idle);
        let share = per_host.min(unused / SHARE).max(1);
        if host.open >= share {
            let others = host.shared.iter_mut().filter(|shared| shared.has_room(per_host));
            if let Some(shared) = others.min_by_key(|shared| shared.requests) {
                *idle -= usize::from(shared.requests == 0);
                return Found::Place(shared.take_place());
            }
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

    /// Whether a connection that is being made may turn out to be for many requests.
    fn may_share(&self, origin: &Origin, host: &Host) -> bool {
        origin.https && self.connector.offers_http2() && host.speaks == Speaks::Any
    }

    /// What a server may choose from, as long as it is not forgotten.
    fn offer(&self, origin: &Origin) -> Offer {
        match self.lock().hosts.get(origin) {
            Some(host) if host.speaks == Speaks::Http1Only => Offer::Http1,
            _ => Offer::All,
        }
    }

    /// Notes that the server chose HTTP/1.1.
    fn note_http1(&self, origin: &Origin) {
        if let Some(host) = self.lock().hosts.get_mut(origin)
            && host.speaks == Speaks::Any
        {
            host.speaks = Speaks::Http1;
        }
    }

    /// Notes that the server asked for HTTP/1.1. Its connections of HTTP/2 get no further requests.
    fn require_http1(&self, origin: &Origin) {
        if let Some(host) = self.lock().hosts.get_mut(origin)
            && host.speaks != Speaks::Http1Only
        {
            host.speaks = Speaks::Http1Only;
            host.shared.iter_mut().for_each(Shared::retire);
            self.metrics.http1_required.increment(1);
        }
    }

    /// Shares a new connection, for which there is room, and takes a place on it; or on an earlier one of the tenant that is as good,
    /// instead: then `true`.
    fn share(&self, origin: &Origin, tenant: TenantId, opened: Opened) -> Option<(Arc<Session>, bool)> {
        let mut state = self.lock();
        let State { hosts, open, idle } = &mut *state;
        let host = hosts.get_mut(origin)?;
        if host.speaks == Speaks::Http1 {
            host.speaks = Speaks::Any;
        }
        // Who waited for a connection of its own finds a place now.
        for waiting in host.waiting.drain(..) {
            let _ = waiting.send(());
        }
        let now = Instant::now();
        let is_as_good = |shared: &&mut Shared| {
            shared.tenant == tenant && shared.has_room(self.limits.per_host) && shared.is_fresh(now)
        };
        if let Some(earlier) = host.shared.iter_mut().find(is_as_good) {
            *idle -= usize::from(earlier.requests == 0);
            host.open -= 1;
            *open -= 1;
            self.metrics.connections.decrement(1.0);
            return Some((earlier.take_place(), true));
        }
        let session = Arc::new(Session::start(opened, &self.tasks));
        host.shared.push(Shared {
            session: Arc::clone(&session),
            tenant,
            requests: 1,
            waiting: VecDeque::new(),
            // It was being made when the server asked for HTTP/1.1.
            is_retired: host.speaks == Speaks::Http1Only,
            since: now,
            old_at: now + age(rand::random()),
        });
        Some((session, false))
    }

    /// Gives back a place on a connection that many requests share.
    fn leave(&self, origin: &Origin, session: &Arc<Session>, retire: bool) {
        let mut state = self.lock();
        let State { hosts, open, idle } = &mut *state;
        let Some(host) = hosts.get_mut(origin) else { return };
        let Some(at) = host.shared.iter().position(|shared| Arc::ptr_eq(&shared.session, session)) else {
            return;
        };
        let shared = &mut host.shared[at];
        let tenant = shared.tenant;
        shared.requests -= 1;
        shared.since = Instant::now();
        if retire || session.is_spent() {
            shared.retire();
        }
        match (shared.requests, shared.is_retired) {
            (0, true) => {
                host.shared.swap_remove(at);
                host.open -= 1;
                *open -= 1;
                self.metrics.connections.decrement(1.0);
                host.wake_one();
            }
            (requests, false) => {
                *idle += usize::from(requests == 0);
                host.wake_for(tenant);
            }
            // Those who still use it are the last ones.
            (_, true) => {}
        }
    }

    /// Every critical section leaves the counts right: a panic elsewhere is no reason to stop.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Closes an unused connection of some server, to make room for another server's.
    fn close_one_idle(&mut self) {
        let unused = |shared: &Shared| shared.requests == 0;
        let has_idle = |host: &&mut Host| !host.idle.is_empty() || host.shared.iter().any(unused);
        if let Some(host) = self.hosts.values_mut().find(has_idle) {
            if host.idle.pop_front().is_none()
                && let Some(at) = host.shared.iter().position(unused)
            {
                host.shared.swap_remove(at);
            }
            host.open -= 1;
            self.open -= 1;
            self.idle -= 1;
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.metrics.connections.decrement(self.lock().open as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::{
        host::{MAX_AGE, MIN_AGE},
        *,
    };
    use crate::{
        config::Settings,
        connection::{Answer, ExchangeError, Noted},
    };
    use bytes::Bytes;
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
        timeout(DEADLINE, lease.exchange(|out| out.push(b'?'), &Bytes::new(), &mut Noted::default()))
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

    const HEAD: &[u8] = b"POST / HTTP/1.1\r\nhost: localhost\r\n\r\n";

    /// A server that speaks HTTP/2 and answers every request, or says nothing but its settings.
    struct SharedServer {
        origin: Origin,
        connections: Arc<AtomicUsize>,
        _tasks: JoinSet<()>,
    }

    impl SharedServer {
        /// The server, and a pool that trusts it.
        async fn start(limits: PoolLimits, is_silent: bool) -> (Self, Pool) {
            let key = rcgen::KeyPair::generate().unwrap();
            let certificate =
                rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
            let file = std::env::temp_dir().join(format!("floodway-pool-{}.pem", Uuid::now_v7()));
            std::fs::write(&file, certificate.pem()).unwrap();
            let settings = Settings {
                allowed_networks: vec!["127.0.0.0/8".parse().unwrap()],
                ca_file: Some(file.clone()),
                ..Settings::default()
            };
            let pool = Pool::new(Connector::new(&settings).unwrap(), limits);
            std::fs::remove_file(file).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let mut config = rustls::ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(
                    vec![certificate.der().clone()],
                    rustls::pki_types::PrivateKeyDer::Pkcs8(key.serialize_der().into()),
                )
                .unwrap();
            config.alpn_protocols = vec![b"h2".to_vec()];
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let connections = Arc::new(AtomicUsize::new(0));
            let count = Arc::clone(&connections);
            let mut tasks = JoinSet::new();
            tasks.spawn(async move {
                let mut served = JoinSet::new();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let stream = acceptor.accept(stream).await.unwrap();
                    count.fetch_add(1, Ordering::SeqCst);
                    served.spawn(async move {
                        let mut requests = h2::server::handshake(stream).await.unwrap();
                        if is_silent {
                            std::future::pending::<()>().await;
                        }
                        while let Some(Ok((_, mut respond))) = requests.accept().await {
                            respond.send_response(http::Response::new(()), true).unwrap();
                        }
                    });
                }
            });
            let origin = Origin { https: true, host: "localhost".into(), port };
            (Self { origin, connections, _tasks: tasks }, pool)
        }

        async fn lease<'p>(&'p self, pool: &'p Pool) -> Lease<'p> {
            self.lease_for(pool, TENANT).await
        }

        async fn lease_for<'p>(&'p self, pool: &'p Pool, tenant: TenantId) -> Lease<'p> {
            timeout(DEADLINE, pool.connection(&self.origin, tenant, &mut Dial::default()))
                .await
                .unwrap()
                .unwrap()
        }

        fn connections(&self) -> usize {
            self.connections.load(Ordering::SeqCst)
        }
    }

    async fn try_ask(lease: &mut Lease<'_>) -> Result<Answer, ExchangeError> {
        lease.exchange(|out| out.extend_from_slice(HEAD), &Bytes::new(), &mut Noted::default()).await
    }

    #[tokio::test]
    async fn requests_at_the_same_time_share_the_connection_that_the_first_one_makes() {
        let (server, pool) = SharedServer::start(LIMITS, false).await;
        let (mut first, mut second, third) =
            tokio::join!(server.lease(&pool), server.lease(&pool), server.lease(&pool));
        assert_eq!([first.is_reused(), second.is_reused(), third.is_reused()], [false, true, true]);
        let (one, other) = tokio::join!(try_ask(&mut first), try_ask(&mut second));
        assert_eq!((one.unwrap().status, other.unwrap().status), (200, 200));
        first.keep(Instant::now());
        drop(third);
        assert_eq!((counts(&pool), server.connections()), ((1, 0), 1));
        drop(second);
        assert_eq!(counts(&pool), (1, 1));
        pool.reap(Instant::now());
        assert_eq!(counts(&pool), (1, 1));
        assert!(server.lease(&pool).await.is_reused());
        pool.reap(Instant::now() + LIMITS.idle_timeout);
        assert_eq!(counts(&pool), (0, 0));
        assert!(!server.lease(&pool).await.is_reused());
    }

    #[tokio::test]
    async fn who_finds_a_shared_connection_full_waits_for_a_place() {
        let (server, pool) = SharedServer::start(PoolLimits { per_host: 2, ..LIMITS }, false).await;
        let (first, _second) = (server.lease(&pool).await, server.lease(&pool).await);
        let mut dial = Dial::default();
        let third = pool.connection(&server.origin, TENANT, &mut dial);
        let (third, ()) = tokio::join!(timeout(DEADLINE, third), async {
            tokio::task::yield_now().await;
            assert_eq!(pool.lock().hosts[&server.origin].shared[0].waiting.len(), 1);
            drop(first);
        });
        let mut third = third.unwrap().unwrap();
        assert!(third.is_reused() && try_ask(&mut third).await.is_ok());
        assert_eq!((counts(&pool), server.connections()), ((1, 0), 1));
    }

    #[tokio::test]
    async fn a_replaced_connection_serves_those_who_use_it_and_goes_with_the_last() {
        let (server, pool) = SharedServer::start(LIMITS, false).await;
        let (mut first, mut second) = (server.lease(&pool).await, server.lease(&pool).await);
        first.replace(TENANT, &mut Dial::default()).await.unwrap();
        let third = server.lease(&pool).await;
        assert_eq!((counts(&pool), first.is_reused(), third.is_reused()), ((2, 0), false, true));
        assert!(try_ask(&mut second).await.is_ok() && try_ask(&mut first).await.is_ok());
        drop(second);
        assert_eq!(counts(&pool), (1, 0));
        drop((first, third));
        assert_eq!(counts(&pool), (1, 1));
    }

    #[tokio::test]
    async fn an_unused_shared_connection_makes_room_for_another_server() {
        let (server, pool) = SharedServer::start(PoolLimits { connections: 1, ..LIMITS }, false).await;
        let plain = Server::start(1).await;
        drop(server.lease(&pool).await);
        assert_eq!(counts(&pool), (1, 1));
        let used = lease(&pool, &plain).await;
        assert_eq!(counts(&pool), (1, 0));
        drop(used);
        assert!(!server.lease(&pool).await.is_reused());
    }

    #[tokio::test]
    async fn who_waits_to_see_a_protocol_does_not_wait_for_long() {
        let (_, pool) = SharedServer::start(LIMITS, false).await;
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = silent.local_addr().unwrap().port();
        let origin = Origin { https: true, host: "localhost".into(), port };
        let (mut one, mut other) = (Dial::default(), Dial::default());
        let both = async {
            tokio::join!(
                pool.connection(&origin, TENANT, &mut one),
                pool.connection(&origin, TENANT, &mut other)
            )
        };
        let made_two = async {
            for _ in 0..2 {
                silent.accept().await.unwrap();
            }
        };
        timeout(DEADLINE, async {
            tokio::select! {
                _ = both => panic!("there is no answer"),
                () = made_two => {}
            }
        })
        .await
        .unwrap();
        assert_eq!(counts(&pool), (0, 0));
    }

    #[tokio::test]
    async fn tenants_have_connections_of_their_own_as_long_as_there_is_room_for_them() {
        let (server, pool) = SharedServer::start(PoolLimits { per_host: 2, ..LIMITS }, false).await;
        let [one, other, third] = [1, 2, 3].map(|number| TenantId(Uuid::from_u128(number)));
        let mut first = server.lease_for(&pool, one).await;
        let (mut second, mut again) =
            tokio::join!(server.lease_for(&pool, other), server.lease_for(&pool, one));
        assert_eq!([second.is_reused(), again.is_reused()], [false, true]);
        // The first one's connection is full, and the server's share is used up.
        let mut borrowed = server.lease_for(&pool, third).await;
        assert!(borrowed.is_reused());
        assert_eq!(counts(&pool), (2, 0));
        for lease in [&mut first, &mut second, &mut again, &mut borrowed] {
            assert_eq!(try_ask(lease).await.unwrap().status, 200);
        }
        let mut dials = [Dial::default(), Dial::default()];
        let [of_one, of_third] = &mut dials;
        let of_one = timeout(DEADLINE, pool.connection(&server.origin, one, of_one));
        let of_third = timeout(DEADLINE, pool.connection(&server.origin, third, of_third));
        // Both wait; a place on the first one's connection is for its own request before it is for others'.
        let (of_one, of_third, ()) = tokio::join!(of_one, of_third, async {
            tokio::task::yield_now().await;
            drop((first, borrowed));
        });
        assert!(of_one.unwrap().unwrap().is_reused() && of_third.unwrap().unwrap().is_reused());
        drop((second, again));
        assert_eq!((counts(&pool), server.connections()), ((2, 2), 2));
    }

    #[tokio::test]
    async fn an_old_shared_connection_gets_no_further_requests() {
        assert_eq!([age(0.0), age(1.0)], [MIN_AGE, MAX_AGE]);
        let (server, pool) = SharedServer::start(LIMITS, false).await;
        let mut first = server.lease(&pool).await;
        assert!(server.lease(&pool).await.is_reused());
        let expire = |host: &mut Host| host.shared[0].old_at = Instant::now();
        pool.lock().hosts.get_mut(&server.origin).map(expire).unwrap();
        assert!(!server.lease(&pool).await.is_reused());
        assert!(try_ask(&mut first).await.is_ok());
        drop(first);
        assert_eq!(counts(&pool), (1, 1));
    }

    #[tokio::test]
    async fn a_request_that_is_given_up_unheard_takes_its_connection_with_it() {
        let (server, pool) = SharedServer::start(LIMITS, true).await;
        timeout(DEADLINE, async {
            // The first ones may still hear its settings.
            while server.connections() < 2 {
                let mut lease = server.lease(&pool).await;
                assert!(timeout(Duration::from_millis(50), try_ask(&mut lease)).await.is_err());
            }
        })
        .await
        .unwrap();
        assert!(counts(&pool).0 <= 1);
    }

    #[tokio::test]
    async fn a_connection_without_a_sign_of_life_is_given_up_whatever_is_sent_over_it() {
        let (server, pool) = SharedServer::start(LIMITS, true).await;
        let mut first = server.lease(&pool).await;
        // Places for more requests than are made until a silent connection is given up.
        let mut others = Vec::new();
        for _ in 0..30 {
            others.push(server.lease(&pool).await);
        }
        let sends_on = async {
            for mut other in others {
                let _ = timeout(Duration::from_millis(500), try_ask(&mut other)).await;
            }
            std::future::pending::<()>().await;
        };
        let failed = tokio::select! {
            failed = timeout(DEADLINE, try_ask(&mut first)) => failed.unwrap(),
            () = sends_on => panic!("it ends by itself"),
        };
        assert!(matches!(failed, Err(ExchangeError::Http2(error)) if error.is_io()));
        assert!(!server.lease(&pool).await.is_reused());
    }
}
