//! A connection while a request uses it.

use super::{Making, Pool, State, host::Idle};
use crate::{
    connect::{ConnectError, Dial, Established},
    connection::{Answer, Connection, ExchangeError, Noted},
    session::Session,
    target::Origin,
};
use bytes::Bytes;
use floodway_schemas::ids::TenantId;
use std::{mem, net::SocketAddr, sync::Arc, time::Instant};

/// A connection in use, or the room for one. It is closed when dropped, unless it is [kept](Lease::keep) or others use it, too.
pub(crate) struct Lease<'p> {
    pub(super) pool: &'p Pool,
    pub(super) origin: &'p Origin,
    pub(super) held: Held,
    pub(super) is_reused: bool,
}

/// What a lease has.
pub(super) enum Held {
    /// Room for a connection, which the pool counts.
    Room,
    /// A connection of its own, which the pool counts.
    Own(Connection),
    /// A place on a connection that others use, too.
    Place(Arc<Session>),
    /// Nothing any more.
    Nothing,
}

impl Lease<'_> {
    /// Makes a connection for which there is room.
    pub(super) async fn connect(&mut self, tenant: TenantId, dial: &mut Dial) -> Result<(), ConnectError> {
        self.is_reused = false;
        *dial = Dial::default();
        let making = Making::new(self.pool, self.origin, tenant);
        let offer = self.pool.offer(self.origin);
        match self.pool.connector.connect(self.origin, tenant, offer, dial).await? {
            Established::Http1(connection) => {
                self.pool.note_http1(self.origin);
                self.held = Held::Own(connection);
            }
            Established::Http2(opened) => {
                if let Some((session, is_earlier)) = self.pool.share(self.origin, tenant, opened) {
                    self.held = Held::Place(session);
                    self.is_reused = is_earlier;
                }
            }
        }
        drop(making);
        Ok(())
    }

    /// Takes another connection instead of this one, which is of no use: a new one, or one that others made meanwhile.
    pub(crate) async fn replace(&mut self, tenant: TenantId, dial: &mut Dial) -> Result<(), ConnectError> {
        match mem::replace(&mut self.held, Held::Nothing) {
            Held::Own(_) | Held::Room => {
                self.held = Held::Room;
                self.connect(tenant, dial).await
            }
            Held::Place(session) => {
                self.pool.leave(self.origin, &session, true);
                *self = self.pool.connection(self.origin, tenant, dial).await?;
                Ok(())
            }
            Held::Nothing => Ok(()),
        }
    }

    /// Has the server spoken to in HTTP/1.1 from now on, for it said that it takes nothing else.
    pub(crate) fn require_http1(&self) {
        self.pool.require_http1(self.origin);
    }

    /// Makes a request over the connection, see [`Connection::exchange`] and [`Session::exchange`].
    pub(crate) async fn exchange(
        &mut self,
        write_head: impl FnOnce(&mut Vec<u8>),
        body: &Bytes,
        noted: &mut Noted,
    ) -> Result<Answer, ExchangeError> {
        match &mut self.held {
            Held::Own(connection) => connection.exchange(write_head, body, noted).await,
            Held::Place(session) => {
                let mut head = Vec::new();
                write_head(&mut head);
                Box::pin(session.exchange(head, body, noted)).await
            }
            Held::Room | Held::Nothing => Err(ExchangeError::Ended),
        }
    }

    /// Whether it served a request before.
    pub(crate) fn is_reused(&self) -> bool {
        self.is_reused
    }

    /// Where the connection leads, if there is one.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        match &self.held {
            Held::Own(connection) => Some(connection.address()),
            Held::Place(session) => Some(session.address()),
            Held::Room | Held::Nothing => None,
        }
    }

    /// Gives the connection back for the next request.
    pub(crate) fn keep(mut self, now: Instant) {
        let connection = match mem::replace(&mut self.held, Held::Nothing) {
            Held::Own(connection) => connection,
            held => {
                self.held = held;
                return;
            }
        };
        // Beyond the bounds it is closed: dropping the lease counts it off.
        self.held = Held::Room;
        let mut state = self.pool.lock();
        let State { hosts, idle, .. } = &mut *state;
        let Some(host) = hosts.get_mut(self.origin) else { return };
        if host.idle.len() < self.pool.limits.idle_per_host {
            host.idle.push_back(Idle { connection, since: now });
            *idle += 1;
            host.wake_one();
            self.held = Held::Nothing;
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        match mem::replace(&mut self.held, Held::Nothing) {
            Held::Own(_) | Held::Room => {
                let mut state = self.pool.lock();
                state.open -= 1;
                if let Some(host) = state.hosts.get_mut(self.origin) {
                    host.open -= 1;
                    host.wake_one();
                }
                drop(state);
                self.pool.metrics.connections.decrement(1.0);
            }
            Held::Place(session) => self.pool.leave(self.origin, &session, false),
            Held::Nothing => {}
        }
    }
}
