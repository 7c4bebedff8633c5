//! A scheduler in a process of its own, for tests that kill or freeze it: this binary again, running one of its tests.

use crate::world::{DEADLINE, World, settings};
use floodway_retry_scheduler::{RetryScheduler, Settings};
use floodway_runtime::{kafka::KafkaSettings, testing};
use floodway_store::Pool;
use std::{
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const PREFIX: &str = "FLOODWAY_TEST_SCHEDULER_PREFIX";
const DATABASE: &str = "FLOODWAY_TEST_SCHEDULER_DATABASE";

/// How its sessions appear in `pg_stat_activity`.
pub(crate) const SESSIONS: &str = "scheduler-process";

/// A scheduler that runs somewhere else; killed when dropped.
pub(crate) struct Process(Child);

impl Process {
    pub(crate) fn start(world: &World) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "process::a_scheduler_for_other_tests"])
            .env(PREFIX, world.topics.kafka.topic_prefix.to_string())
            .env(DATABASE, world.database.url_text())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }

    /// SIGKILL: no thread of it does anything any more when this returns.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// SIGSTOP: it hangs, and everybody else goes on.
    pub(crate) fn freeze(&self) {
        self.signal("-STOP");
        let threads = format!("/proc/{}/task", self.0.id());
        let stopped = |thread: std::io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap_or_default();
            stat.rsplit(')').next().is_none_or(|rest| rest.trim_start().starts_with('T'))
        };
        let deadline = Instant::now() + DEADLINE;
        while !std::fs::read_dir(&threads).unwrap().all(stopped) {
            assert!(Instant::now() < deadline, "it does not stop");
            std::thread::yield_now();
        }
    }

    /// SIGCONT: it goes on where it was.
    pub(crate) fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([signal, &self.0.id().to_string()]).status().unwrap();
        assert!(status.success(), "kill {signal}: {status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing to do for one that is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the process that other tests start"]
async fn a_scheduler_for_other_tests() {
    let (Ok(prefix), Ok(database)) = (std::env::var(PREFIX), std::env::var(DATABASE)) else { return };
    let kafka = KafkaSettings { topic_prefix: prefix.parse().unwrap(), ..testing::kafka() };
    let pool = Pool::new(&database.into(), SESSIONS, 8).unwrap();
    // A slow machine must not make it wait for a write that the test does not let through.
    let settings = Settings { fence_age: Duration::from_secs(20), ..settings() };
    RetryScheduler::bind(settings, testing::context(kafka), pool).await.unwrap().run().await.unwrap();
}
