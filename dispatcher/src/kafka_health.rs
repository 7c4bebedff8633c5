//! Whether Kafka is there. The client reports errors also for connections that it merely renews, so an error is a reason to
//! look, and only a failed look says that Kafka is down.

use floodway_runtime::health::Component;
use std::sync::atomic::{AtomicBool, Ordering};

/// The health component `kafka`.
#[derive(Debug)]
pub(crate) struct KafkaHealth {
    component: Component,
    suspect: AtomicBool,
}

impl KafkaHealth {
    /// Takes over the component.
    pub(crate) fn new(component: Component) -> Self {
        Self { component, suspect: AtomicBool::new(false) }
    }

    /// A client reported an error.
    pub(crate) fn suspect(&self, client: &str, reason: &str) {
        if !self.suspect.swap(true, Ordering::Relaxed) {
            tracing::debug!(client, reason, "a Kafka client reports an error");
        }
    }

    /// Whether somebody ought to look.
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed)
    }

    /// Kafka answered.
    pub(crate) fn up(&self) {
        self.suspect.store(false, Ordering::Relaxed);
        self.component.up();
    }

    /// Kafka did not answer, or not as needed.
    pub(crate) fn down(&self, reason: impl Into<String>) {
        self.suspect.store(true, Ordering::Relaxed);
        self.component.down(reason);
    }
}
