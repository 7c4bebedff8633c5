use crate::{
    fake_floodway::{FakeFloodway, Fault},
    http::{json, serve},
};
use floodway_loadtest::{
    child::{ChildError, GuardedChild},
    demo::{self, DemoError, DemoOptions, environment::Listeners},
};
use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::PermissionsExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(20);

/// A directory of the test's own, with a program that stands for `floodway`.
struct Stage(PathBuf);

impl Stage {
    fn with_program(script: &str) -> Self {
        let path = std::env::temp_dir().join(format!("floodway-loadtest-{:016x}", rand::random::<u64>()));
        fs::create_dir_all(&path).unwrap();
        let stage = Self(path);
        fs::write(stage.program(), format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(stage.program(), PermissionsExt::from_mode(0o755)).unwrap();
        fs::write(
            stage.0.join("env"),
            "FLOODWAY_KAFKA_BROKERS=none:1\nFLOODWAY_DATABASE_URL=postgres://none\n",
        )
        .unwrap();
        stage
    }

    fn program(&self) -> PathBuf {
        self.0.join("floodway")
    }

    fn options(&self, listeners: Listeners) -> DemoOptions {
        DemoOptions {
            floodway: self.program(),
            env_file: Some(self.0.join("env")),
            stack_dir: self.0.clone(),
            listeners,
            receiver_port: 0,
            events: 100,
            batch: 7,
            connections: 3,
            rate: None,
            once: true,
            ready_deadline: DEADLINE,
            deadline: DEADLINE,
        }
    }

    fn start(&self) -> GuardedChild {
        GuardedChild::start(&self.program(), &["dev"], &BTreeMap::new(), &self.0.join("log")).unwrap()
    }

    fn wait_for(&self, file: &str) -> String {
        let begun = Instant::now();
        loop {
            match fs::read_to_string(self.0.join(file)) {
                Ok(text) if text.ends_with('\n') => return text.trim().to_owned(),
                _ => assert!(begun.elapsed() < DEADLINE, "{file} does not appear"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

async fn faults_with(fault: Fault) -> Vec<String> {
    let stage = Stage::with_program("exec sleep 600");
    let mut servers = JoinSet::new();
    let listeners = FakeFloodway::start(&mut servers, fault).await;
    Box::pin(demo::run(&stage.options(listeners), &CancellationToken::new())).await.unwrap()
}

#[tokio::test]
async fn a_floodway_that_does_right_leaves_nothing_unaccounted_for() {
    assert_eq!(faults_with(Fault::None).await, Vec::<String>::new());
}

#[tokio::test]
async fn what_floodway_does_wrong_is_found() {
    for (fault, words) in [
        (Fault::Lose, "1 events are lost"),
        (Fault::WrongSecret, "4 signatures were refused"),
        (Fault::ForgetDeadLetter, "99 dead letters are listed"),
    ] {
        let faults = faults_with(fault).await;
        assert!(faults.iter().any(|fault| fault.contains(words)), "{fault:?}: {faults:?}");
    }
}

#[tokio::test]
async fn a_floodway_that_never_gets_ready_is_reported_with_its_health_and_log() {
    let stage = Stage::with_program("echo waiting for kafka; exec sleep 600");
    let mut servers = JoinSet::new();
    let admin = serve(&mut servers, |request| async move {
        let ready = if request.uri().path() == "/health/detailed" { 200 } else { 503 };
        json(ready, r#"{"kafka":"down"}"#)
    })
    .await;
    let listeners = Listeners { admin, ..Listeners::default() };
    let options = DemoOptions { ready_deadline: Duration::from_secs(1), ..stage.options(listeners) };
    let error = Box::pin(demo::run(&options, &CancellationToken::new())).await.unwrap_err();
    let DemoError::NotReady { health, log, .. } = &error else { panic!("{error}") };
    assert!(health.contains("down") && log.contains("waiting for kafka"), "{error}");
}

#[tokio::test]
async fn a_floodway_that_ends_by_itself_is_reported_with_its_log() {
    let stage = Stage::with_program("echo no database >&2; exit 69");
    let error = stage.start().ended().await;
    let ChildError::Ended { status, log, .. } = &error else { panic!("{error}") };
    assert!(status.contains("69") && log.contains("no database"), "{error}");
}

#[tokio::test]
async fn floodway_gets_a_sigterm_and_the_time_to_drain() {
    let stage = Stage::with_program(
        "trap 'echo drained; exit 7' TERM; echo > \"$0.up\"; while :; do sleep 0.1; done",
    );
    let floodway = stage.start();
    stage.wait_for("floodway.up");
    assert_eq!(floodway.stop().await.unwrap().code(), Some(7));
    assert_eq!(fs::read_to_string(stage.0.join("log")).unwrap(), "drained\n");
}

#[test]
fn floodway_ends_with_a_demo_that_is_killed() {
    let stage = Stage::with_program("echo $$ > \"$0.pid\"; exec sleep 600");
    let mut demo = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(["demo", "--once", "--floodway"])
        .arg(stage.program())
        .args([Path::new("--env-file"), &stage.0.join("env"), Path::new("--stack-dir"), &stage.0])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let process = PathBuf::from("/proc").join(stage.wait_for("floodway.pid"));
    assert!(process.exists());
    demo.kill().unwrap();
    assert_eq!(demo.wait().unwrap().signal(), Some(9));
    let begun = Instant::now();
    while process.exists() {
        assert!(begun.elapsed() < DEADLINE, "the child outlives the demo");
        std::thread::sleep(Duration::from_millis(20));
    }
}
