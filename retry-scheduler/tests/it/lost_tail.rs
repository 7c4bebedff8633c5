//! A database that comes back without its last commits, as after a failover to a replica that was behind.

use crate::world::{World, retry, retry_keys};
use floodway_schemas::{due::RetryKey, topic::Topic};
use floodway_store::testing::TestDatabase;
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A PostgreSQL of the test's own, which it may stop and change.
struct OwnServer {
    folder: PathBuf,
    url: String,
}

impl OwnServer {
    fn start() -> Self {
        let folder = root().join(".stack").join(format!("lost-tail-{:08x}", rand_number()));
        let mut server = Self { folder, url: String::new() };
        server.stack(&["up"]);
        let env = std::fs::read_to_string(server.folder.join("env")).unwrap();
        let url = env.lines().find_map(|line| line.strip_prefix("export FLOODWAY_DATABASE_URL="));
        server.url = url.unwrap().to_owned();
        server
    }

    fn stack(&self, arguments: &[&str]) {
        let output = self.command(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "scripts/stack {arguments:?}: {}\n{said}", output.status);
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(root().join("scripts/stack"));
        // Kafka is the shared one, which the script takes for one of ours to be used; PostgreSQL is this folder's.
        command.env("STACK_DIR", &self.folder).env_remove("STACK_KAFKA_BROKERS");
        command.env_remove("FLOODWAY_DATABASE_URL").env_remove("STACK_DATABASE_URL");
        command.args(arguments).stdin(Stdio::null());
        command
    }

    fn data(&self) -> PathBuf {
        let settings = std::fs::read_to_string(self.folder.join("settings")).unwrap();
        let home = settings.lines().rev().find_map(|line| line.strip_prefix("postgres_home="));
        Path::new(home.unwrap()).join("data")
    }

    /// Notes the state of all data.
    fn keep_a_copy(&self) {
        self.stack(&["stop", "postgres"]);
        run("cp", &["-a".as_ref(), self.data().as_ref(), self.copy().as_ref()]);
        self.stack(&["start", "postgres"]);
    }

    /// A crash, after which the server starts with the state that was noted.
    fn crash_and_lose_what_came_after_the_copy(&self) {
        self.stack(&["kill", "postgres"]);
        run("rm", &["-rf".as_ref(), self.data().as_ref()]);
        run("mv", &[self.copy().as_ref(), self.data().as_ref()]);
        self.stack(&["start", "postgres"]);
    }

    fn copy(&self) -> PathBuf {
        self.data().with_extension("copy")
    }
}

/// A test that failed leaves data and logs, and no server.
impl Drop for OwnServer {
    fn drop(&mut self) {
        let end = if std::thread::panicking() { "down" } else { "reset" };
        let _ = self.command(&[end]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn rand_number() -> u32 {
    uuid::Uuid::new_v4().as_u128() as u32
}

fn run(program: &str, arguments: &[&std::ffi::OsStr]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_position_and_cursor_go_back_together_and_the_shard_reads_on_from_there() {
    let server = tokio::task::spawn_blocking(OwnServer::start).await.unwrap();
    let world = World::with(1, TestDatabase::create_on(&server.url)).await;
    let scheduler = world.start().await;
    let write = |range: std::ops::Range<i64>, delay_ms: u64| {
        world.write(0, &range.map(|n| retry(n, delay_ms)).collect::<Vec<_>>());
    };
    write(0..30, 300);
    world.read_due(30).await;
    // These stay: they are not due before the end of the test.
    write(30..40, 3_600_000);
    world.number_becomes("SELECT next_offset FROM retry_shard", |next| next == 40).await;
    let server = tokio::task::spawn_blocking(move || {
        server.keep_a_copy();
        server
    });
    let server = server.await.unwrap();

    // The scheduler finds the server again, and goes on as the same owner. All of this is lost.
    write(40..70, 300);
    world.read_due(60).await;
    world.number_becomes("SELECT next_offset FROM retry_shard", |next| next == 70).await;
    let passed = "SELECT count(*) FROM retry, retry_shard WHERE (due_at, id) <= (cur_due, cur_id)";
    world.number_becomes(passed, |n| n == 60).await;
    let server = tokio::task::spawn_blocking(move || {
        server.crash_and_lose_what_came_after_the_copy();
        server
    });
    let server = server.await.unwrap();

    world.number_becomes("SELECT next_offset FROM retry_shard", |next| next == 70).await;
    world.number_becomes(passed, |n| n == 60).await;
    assert_eq!(world.number("SELECT count(*) FROM retry").await, 70);
    assert_eq!(world.number("SELECT count(DISTINCT id) FROM retry").await, 70);
    assert_eq!(world.number("SELECT sum(n)::bigint FROM delivery_count").await, 70);
    // What had fired and was lost fires again under the same keys.
    let records = world.read(Topic::Due, |records| records.len() >= 90).await;
    let expected = (0..30).chain(40..70).map(|id| RetryKey { shard: 0, id }).collect();
    assert_eq!(retry_keys(&records), expected);
    scheduler.health_becomes("postgresql", |reason| reason.is_none()).await;
    scheduler.stop().await;
    world.end().await;
    drop(server);
}
