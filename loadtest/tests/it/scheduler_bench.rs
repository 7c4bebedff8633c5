//! The benchmark of the retry scheduler as a command, against real servers and the binary beside this one, with few rows.

use floodway_loadtest::bench::figures::GoalReport;
use std::{fs, process::Command};

#[test]
fn a_short_benchmark_of_the_scheduler_holds_figures_against_goals() {
    let required = |name: &str| {
        std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run scripts/stack up"))
    };
    let out = std::env::temp_dir().join(format!("floodway-bench-{:016x}", rand::random::<u64>()));
    fs::create_dir_all(&out).unwrap();
    let page = out.join("2026-11-x.md");
    let ended = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(["bench", "scheduler", "--env-file", "/none", "--rows", "50000"])
        .args(["--scenario", "copy-floor", "--scenario", "pending-10m", "--out"])
        .arg(&out)
        .arg("--markdown")
        .arg(&page)
        .env("FLOODWAY_KAFKA_BROKERS", required("FLOODWAY_KAFKA_BROKERS"))
        .env("FLOODWAY_DATABASE_URL", required("FLOODWAY_DATABASE_URL"))
        .output()
        .unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let report: GoalReport =
        serde_json::from_str(&fs::read_to_string(out.join("report.json")).unwrap()).unwrap();
    let names: Vec<&str> = report.scenarios.iter().map(|found| found.name.as_str()).collect();
    assert_eq!(names, ["copy-floor", "pending-10m"]);
    assert!(report.scenarios[0].figure("rows/s").unwrap().median().unwrap() > 0.0);
    let ready = report.scenarios[1].figure("until ready, all shards taken over").unwrap();
    assert!(ready.median().unwrap() > 0.0 && ready.is_met().is_some(), "{ready:?}");

    let made = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(["bench", "page"])
        .arg(out.join("report.json"))
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let text = fs::read_to_string(&page).unwrap();
    assert!(text.contains("# Benchmark of scheduler") && text.contains("≤ 10.0 s"), "{text}");
    fs::remove_dir_all(&out).unwrap();
}
