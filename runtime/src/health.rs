//! What the process depends on, and whether it is there.
//!
//! Liveness never depends on anything outside the process: a Kafka outage must not restart it. Readiness
//! holds while every component that gates it is up.

use floodway_schemas::UnixMillis;
use serde::Serialize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Why a new component is down.
const STARTING: &str = "starting";

/// The components of this process. Cheap to clone; all clones share one list.
#[derive(Debug, Clone, Default)]
pub struct Health {
    role: Option<&'static str>,
    components: Arc<Mutex<Vec<Arc<Shared>>>>,
}

#[derive(Debug)]
struct Shared {
    role: Option<&'static str>,
    name: &'static str,
    gates_ready: bool,
    state: Mutex<State>,
}

#[derive(Debug, Clone)]
struct State {
    down: Option<String>,
    since: UnixMillis,
}

/// One dependency, or one part of the process's own work. A new one is down, with the reason `starting`.
#[derive(Debug, Clone)]
pub struct Component(Arc<Shared>);

/// A component as `/health/detailed` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The role that reports it, where several share a process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// The component.
    pub name: &'static str,
    /// `up` or `down`.
    pub status: &'static str,
    /// Whether readiness depends on it.
    pub gates_ready: bool,
    /// Why it is down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it took this state, RFC 3339.
    pub since: String,
}

impl Health {
    /// The same list of components, to which one role of several adds its own.
    #[must_use]
    pub fn for_role(&self, role: &'static str) -> Self {
        Self { role: Some(role), components: Arc::clone(&self.components) }
    }

    /// Adds a component. Roles in one process may each add one of the same name.
    pub fn component(&self, name: &'static str, gates_ready: bool) -> Component {
        let state = State { down: Some(STARTING.to_owned()), since: crate::clock::now() };
        let shared = Arc::new(Shared { role: self.role, name, gates_ready, state: Mutex::new(state) });
        lock(&self.components).push(Arc::clone(&shared));
        Component(shared)
    }

    /// Whether every component that gates readiness is up.
    pub fn is_ready(&self) -> bool {
        lock(&self.components).iter().all(|c| !c.gates_ready || lock(&c.state).down.is_none())
    }

    /// Every component, in the order of their creation.
    pub fn reports(&self) -> Vec<Report> {
        lock(&self.components).iter().map(|component| component.report()).collect()
    }
}

impl Shared {
    fn report(&self) -> Report {
        let state = lock(&self.state).clone();
        Report {
            role: self.role,
            name: self.name,
            status: if state.down.is_none() { "up" } else { "down" },
            gates_ready: self.gates_ready,
            reason: state.down,
            since: state.since.to_rfc3339(),
        }
    }
}

impl Component {
    /// The component works.
    pub fn up(&self) {
        self.set(None);
    }

    /// The component does not work; the reason is for operators and names no secret.
    pub fn down(&self, reason: impl Into<String>) {
        self.set(Some(reason.into()));
    }

    fn set(&self, down: Option<String>) {
        let mut state = lock(&self.0.state);
        let changed = state.down.is_some() != down.is_some();
        // What keeps a component from ever coming up belongs into the log as well.
        let first_reason = state.down.as_deref() == Some(STARTING) && down.is_some();
        if changed || first_reason {
            let (role, name) = (self.0.role, self.0.name);
            state.since = crate::clock::now();
            match &down {
                Some(reason) => tracing::warn!(role, component = name, %reason, "{name} is down"),
                None => tracing::info!(role, component = name, "{name} is up"),
            }
        }
        state.down = down;
    }
}

/// Each critical section is a plain assignment or read: a panic elsewhere cannot leave it half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_follows_the_components_that_gate_it() {
        let health = Health::default();
        let kafka = health.component("kafka", true);
        let database = health.component("postgresql", false);
        assert!(!health.is_ready());
        kafka.up();
        assert!(health.is_ready());
        database.down("connection refused");
        assert!(health.is_ready());
        kafka.down("no broker");
        assert!(!health.is_ready());
        assert_eq!(health.reports()[0].reason.as_deref(), Some("no broker"));
    }
}
