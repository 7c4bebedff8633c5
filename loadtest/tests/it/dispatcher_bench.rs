//! The benchmark of the dispatcher as a command, against real servers and the binary beside this one, with few events.

use floodway_loadtest::bench::figures::GoalReport;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn directory() -> PathBuf {
    let path = std::env::temp_dir().join(format!("floodway-bench-{:016x}", rand::random::<u64>()));
    fs::create_dir_all(&path).unwrap();
    path
}

fn bench(out: &Path, arguments: &[&str]) -> Output {
    let required = |name: &str| {
        std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run scripts/stack up"))
    };
    Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(["bench", "dispatcher", "--env-file", "/none", "--out"])
        .arg(out)
        .args(arguments)
        .env("FLOODWAY_KAFKA_BROKERS", required("FLOODWAY_KAFKA_BROKERS"))
        .env("FLOODWAY_DATABASE_URL", required("FLOODWAY_DATABASE_URL"))
        .output()
        .unwrap()
}

#[test]
fn a_short_benchmark_delivers_every_event_and_holds_figures_against_goals() {
    let out = directory();
    let ended = bench(
        &out,
        &["--events", "5000", "--seconds", "0.5", "--scenario", "saturation", "--scenario", "latency-300"],
    );
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    let kept = out.join("report.json");
    let report: GoalReport = serde_json::from_str(&fs::read_to_string(&kept).unwrap()).unwrap();
    let names: Vec<&str> = report.scenarios.iter().map(|found| found.name.as_str()).collect();
    assert_eq!(names, ["saturation", "latency-300"]);
    let accounts: Vec<_> = report.scenarios.iter().flat_map(|found| &found.accounts).collect();
    assert_eq!(accounts[0].acknowledged, 5000);
    assert!(accounts.iter().all(|account| account.lost() == 0 && account.delivered > 0), "{accounts:?}");
    for (scenario, figure) in report.scenarios.iter().zip(["deliveries/s", "p99"]) {
        let figure = scenario.figure(figure).unwrap();
        assert!(figure.median().unwrap() > 0.0 && figure.is_met().is_some(), "{figure:?}");
    }

    let page = out.join("2026-11-x.md");
    let made = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(["bench", "page"])
        .args([&kept, &kept])
        .arg("--markdown")
        .arg(&page)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let text = fs::read_to_string(&page).unwrap();
    assert!(text.contains("(2026-11-x.json)") && text.contains("≥ 15,000"), "{text}");
    fs::remove_dir_all(out).unwrap();
}

#[test]
fn an_unknown_scenario_of_the_dispatcher_is_answered_with_the_list() {
    let out = directory();
    let refused = bench(&out, &["--floodway", "/bin/false", "--scenario", "nonsense"]);
    let error = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{error}");
    assert!(error.contains("nonsense") && error.contains("isolation-hang"), "{error}");
    fs::remove_dir_all(out).unwrap();
}
