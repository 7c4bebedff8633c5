//! Connections to the database: bounded in number, and each bounded in what it may wait for.
//!
//! A connection may lead through a pooler that hands a server's session from one transaction to the next, such as PgBouncer
//! in transaction mode. So nothing that goes over a pooled connection may rely on its session: statements are unnamed and
//! typed, settings and locks end with their transaction. What needs a session takes a [`Pool::dedicated`] connection,
//! which goes past the pooler.

use crate::{
    Error,
    address::{Address, InTurn},
};
use deadpool_postgres::{ClientWrapper, Manager, ManagerConfig, Object, RecyclingMethod, Runtime, Timeouts};
use secrecy::SecretString;
use std::{fmt, time::Duration};
use tokio_postgres::Config;

/// Connections of one pool unless the caller says otherwise: above what the roles keep busy, far below the server's
/// default limit of 100 shared by all replicas.
pub const DEFAULT_POOL_SIZE: usize = 8;

/// Longest wait for a free connection. A request fails with "unavailable" rather than pile up behind others.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(3);

/// Longest time for connecting to one server, authentication included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Longest time that sent bytes stay unacknowledged before the connection counts as lost.
pub const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest statement, longest transaction and longest pause inside one. A cut-off process thus holds no row for longer,
/// except in the middle of a `COPY`: see [`crate::retry::end_hung_batches`].
/// Long maintenance takes a [`Pool::dedicated`] connection and lifts the limits there.
pub const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Columns of a query that set these limits for its transaction where nothing has set them: a pooler takes no options
/// from us. The third, of single statements, is up to the pooler's own settings or the role's.
pub(crate) const LIMITS: &str = "
    CASE WHEN current_setting('transaction_timeout') = '0' THEN set_config('transaction_timeout', '10s', true) END,
    CASE WHEN current_setting('idle_in_transaction_session_timeout') = '0'
        THEN set_config('idle_in_transaction_session_timeout', '10s', true) END";

const _: () = assert!(TRANSACTION_TIMEOUT.as_secs() == 10, "as in LIMITS");

/// Connections made at the same time past the pooler. Each leaves the pool at once for its one user.
const DIRECT_SIZE: usize = 2;
/// Longest statement that only reads history or counts. Their pages are cut off after a second (store/src/page.rs), so this is for
/// one that a missing index or a busy disk holds up: it makes room for the others.
pub const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Connections for reading history and counts, of the primary and of a replica each: apart from those that configuration is
/// written with, so that slow reading does not keep anybody from changing a subscription.
pub const READ_POOL_SIZE: usize = 4;

/// A connection borrowed from the pool; it returns when dropped.
pub type Client = Object;

/// A connection that belongs to its holder and ends when dropped, session locks included.
pub type DedicatedClient = ClientWrapper;

/// A bounded pool of connections. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    shared: deadpool_postgres::Pool,
    /// Where dedicated connections come from, if `shared` leads through a pooler.
    direct: Option<deadpool_postgres::Pool>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The manager knows the password.
        let status = self.shared.status();
        f.debug_struct("Pool").field("size", &status.size).field("max_size", &status.max_size).finish()
    }
}

impl Pool {
    /// A pool of at most `size` connections, which appear as `application_name` in `pg_stat_activity`. Connects nothing.
    ///
    /// # Errors
    /// [`Error::Other`] when `url` is not a PostgreSQL URL. The message does not quote it.
    pub fn new(url: &SecretString, application_name: &str, size: usize) -> Result<Self, Error> {
        let mut address = Address::parse(url)?;
        address.servers.iter_mut().for_each(limit);
        Ok(Self { shared: build(address, application_name, size)?, direct: None })
    }

    /// A pool whose connections can only read, for at most [`READ_TIMEOUT`] at a time. Their statements are planned for pages:
    /// few rows by indexes, whose newest pages are in memory, and too short for compiling them to be worth while. These are
    /// options of a session, so `url` must not lead through a pooler.
    ///
    /// # Errors
    /// As [`Pool::new`].
    pub fn read_only(url: &SecretString, application_name: &str, size: usize) -> Result<Self, Error> {
        let mut address = Address::parse(url)?;
        address.servers.iter_mut().for_each(limit_to_reading);
        // As an option of the session it would make every server look like a replica to `target_session_attrs=read-write`.
        address.on_connect = Some("-- only_read\nSET default_transaction_read_only = on");
        Ok(Self { shared: build(address, application_name, size)?, direct: None })
    }

    /// The same as [`Pool::new`], where `url` leads through a pooler of transactions and `direct_url` to the server itself.
    ///
    /// # Errors
    /// As [`Pool::new`].
    pub fn behind_pooler(
        url: &SecretString,
        direct_url: &SecretString,
        application_name: &str,
        size: usize,
    ) -> Result<Self, Error> {
        let direct = Self::new(direct_url, application_name, DIRECT_SIZE)?.shared;
        // Without limits of ours: they are options of a session, which poolers refuse.
        Ok(Self { shared: build(Address::parse(url)?, application_name, size)?, direct: Some(direct) })
    }

    /// The most connections that are borrowed at once.
    #[must_use]
    pub fn max_size(&self) -> usize {
        self.shared.status().max_size
    }

    /// Borrows a connection.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when none comes free or none can be made in time.
    pub async fn get(&self) -> Result<Client, Error> {
        Ok(self.shared.get().await?)
    }

    /// A connection for one user, straight to the server: for session locks and for settings that must not outlive their user.
    /// It does not count towards the pool's size.
    ///
    /// # Errors
    /// As [`Pool::get`].
    pub async fn dedicated(&self) -> Result<DedicatedClient, Error> {
        Ok(Object::take(self.direct.as_ref().unwrap_or(&self.shared).get().await?))
    }
}

fn build(
    mut address: Address,
    application_name: &str,
    size: usize,
) -> Result<deadpool_postgres::Pool, Error> {
    for server in &mut address.servers {
        server
            .application_name(application_name)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_user_timeout(TCP_USER_TIMEOUT);
    }
    let servers = u32::try_from(address.servers.len()).unwrap_or(u32::MAX);
    let manager = Manager::from_connect(
        // Each server's settings are with the connector.
        Config::new(),
        InTurn::new(address, CONNECT_TIMEOUT),
        // A broken connection is noticed by the statement that meets it, and not used again.
        ManagerConfig { recycling_method: RecyclingMethod::Fast },
    );
    deadpool_postgres::Pool::builder(manager)
        .max_size(size)
        .timeouts(Timeouts {
            wait: Some(WAIT_TIMEOUT),
            // A little more than all servers together may take.
            create: Some(CONNECT_TIMEOUT * servers + CONNECT_TIMEOUT / 2),
            recycle: Some(CONNECT_TIMEOUT),
        })
        .runtime(Runtime::Tokio1)
        .build()
        .map_err(|error| Error::Other(error.to_string()))
}

/// Bounds what a session may wait for. Options of the URL come last, so that an operator can override ours.
fn limit(config: &mut Config) {
    let limit = TRANSACTION_TIMEOUT.as_millis();
    set_options(
        config,
        &format!(
            "-c statement_timeout={limit} -c transaction_timeout={limit} -c idle_in_transaction_session_timeout={limit}"
        ),
    );
}

fn limit_to_reading(config: &mut Config) {
    let (read, limit) = (READ_TIMEOUT.as_millis(), TRANSACTION_TIMEOUT.as_millis());
    set_options(
        config,
        &format!(
            "-c statement_timeout={read} -c transaction_timeout={limit} -c idle_in_transaction_session_timeout={limit} \
             -c jit=off -c random_page_cost=1.1"
        ),
    );
}

fn set_options(config: &mut Config, own: &str) {
    let options = match config.get_options() {
        Some(given) => format!("{own} {given}"),
        None => own.to_owned(),
    };
    config.options(options);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_url_is_refused_without_quoting_it() {
        let error = Pool::new(&"postgres://me:hunter2@[".into(), "test", 1).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn the_debug_form_has_no_password() {
        let pool = Pool::new(&"postgres://me:hunter2@localhost/x".into(), "test", 1).unwrap();
        assert!(!format!("{pool:?}").contains("hunter2"));
    }

    #[test]
    fn options_of_the_url_are_kept_after_ours() {
        let mut config: Config = "postgres://me@localhost/x?options=-c%20work_mem%3D8MB".parse().unwrap();
        limit(&mut config);
        assert!(config.get_options().unwrap().ends_with("-c work_mem=8MB"));
        assert!(config.get_options().unwrap().starts_with("-c statement_timeout=10000"));
    }
}
