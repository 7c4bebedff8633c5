//! Benchmarks without Floodway: a floor under the generator's load, and pages made from a kept report.

use floodway_loadtest::{
    bench::{
        floor::http::HttpFloor,
        html, markdown,
        measure::Observer,
        process::{Subject, Watched},
        result::{BenchReport, FORMAT, Finding},
        scenario::SCENARIOS,
        summary,
    },
    live_line::LiveLine,
    load::{Length, LoadPlan, Workload},
};
use std::{net::Ipv4Addr, process::Command, time::Duration};
use tokio_util::sync::CancellationToken;

const REPORT: &str = include_str!("../fixtures/bench-report.json");

fn report() -> BenchReport {
    serde_json::from_str(REPORT).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_floor_under_load_is_measured_from_outside() {
    let floor = HttpFloor::bind((Ipv4Addr::LOCALHOST, 0).into(), 2, 10).unwrap();
    let url = format!("http://{}", floor.address());
    let stop = CancellationToken::new();
    let ends = stop.clone();
    let serving = tokio::task::spawn_blocking(move || floor.serve(&ends));

    let mut live = LiveLine::on_stderr();
    let mut observer = Observer {
        watched: vec![Watched { subject: Subject::Server, pid: std::process::id() }],
        kafka_data: None,
        live: &mut live,
        stop: &CancellationToken::new(),
    };
    let plan = LoadPlan {
        workload: Workload { events_per_request: 10, ..Workload::default() },
        connections: 4,
        warmup: Duration::from_millis(200),
        length: Length::Time(Duration::from_secs(1)),
        ..LoadPlan::new(url, "key")
    };
    let run = observer.measure("floor", &plan).await.unwrap().run;
    stop.cancel();
    serving.await.unwrap().unwrap();

    assert!(run.accepted > 0 && run.accepted == run.events, "{run:?}");
    assert!(run.micros_per_event().is_some_and(|micros| micros > 0.0), "{run:?}");
    assert!(run.broker.is_none() && run.errors.is_empty(), "{run:?}");
    assert!(run.latency.p50 > 0 && run.latency.p50 <= run.latency.max, "{run:?}");
    assert!(run.distribution.is_sorted() && !run.series.is_empty(), "{run:?}");
}

#[test]
fn a_kept_report_can_be_read_and_has_every_scenario() {
    let report = report();
    assert_eq!(report.about.format, FORMAT);
    for scenario in SCENARIOS {
        assert!(report.scenario(scenario.name).is_some(), "{} is missing", scenario.name);
    }
    let again: BenchReport = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
    assert_eq!(again, report);
}

#[test]
fn every_page_has_every_scenario_the_limits_and_no_broken_figure() {
    let report = report();
    let pages = [html::page(&report), markdown::page(&report, "x.json"), summary::terminal(&report)];
    for page in &pages {
        for scenario in &report.scenarios {
            let in_page = matches!(scenario.finding, Finding::Sweep(_)) || page.contains(&scenario.name);
            assert!(in_page, "{} is missing", scenario.name);
        }
        assert!(page.contains("The knee is at"));
        assert!(!page.contains("NaN") && !page.contains("inf "), "{page}");
    }
    for page in &pages[..2] {
        assert!(page.find("Limits") < page.find("Scenarios"), "limits come first");
        for (name, _) in summary::facts(&report.about) {
            assert!(page.contains(name), "{name} is missing");
        }
    }
}

#[test]
fn the_html_page_needs_nothing_from_elsewhere() {
    let page = html::page(&report());
    for from_elsewhere in ["src=", "href=", "@import", "url(", "<script"] {
        assert!(!page.contains(from_elsewhere), "{from_elsewhere}");
    }
    assert!(page.contains("prefers-color-scheme: dark"));
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
}

#[test]
fn the_cost_of_ingest_is_told_as_a_multiple_of_both_floors() {
    let report = report();
    let scenario = report.scenario("batch-100").unwrap();
    let (run, floors) = (scenario.median().unwrap(), scenario.floors.unwrap());
    let both = floors.http.micros_per_event().unwrap() + floors.producer.micros_per_event().unwrap();
    let expected = run.micros_per_event().unwrap() / both;
    assert!((scenario.ratio().unwrap() - expected).abs() < 1e-9);
    assert!(html::page(&report).contains(&format!("{expected:.2} × floors")));
}

#[test]
fn lost_events_and_failed_scenarios_are_faults_and_unsupported_ones_are_not() {
    let mut report = report();
    assert_eq!(report.faults(), Vec::<String>::new());
    report.scenarios[0].finding = Finding::NotSupported("x".to_owned());
    assert_eq!(report.faults(), Vec::<String>::new());
    report.scenarios[0].finding = Finding::Failed("the load stopped".to_owned());
    for scenario in &mut report.scenarios {
        let Finding::Runs(runs) = &mut scenario.finding else { continue };
        runs.iter_mut().filter_map(|run| run.reconciliation.as_mut()).for_each(|found| found.lost = 3);
    }
    let faults = report.faults();
    assert!(faults.iter().any(|fault| fault.contains("the load stopped")), "{faults:?}");
    assert!(
        faults.iter().any(|fault| fault.contains("3 acknowledged events are not on the topic")),
        "{faults:?}"
    );
}

#[test]
fn pages_are_made_again_from_a_kept_report() {
    let directory = std::env::temp_dir().join(format!("floodway-bench-{:016x}", rand::random::<u64>()));
    std::fs::create_dir_all(&directory).unwrap();
    let (kept, page) = (directory.join("kept.json"), directory.join("2026-11-x.md"));
    std::fs::write(&kept, REPORT).unwrap();
    let made = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(["bench", "page"])
        .arg(&kept)
        .arg("--markdown")
        .arg(&page)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert!(std::fs::read_to_string(&page).unwrap().contains("(2026-11-x.json)"));
    let figures = std::fs::read_to_string(directory.join("2026-11-x.json")).unwrap();
    assert_eq!(serde_json::from_str::<BenchReport>(&figures).unwrap(), report());
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn an_unknown_scenario_is_answered_with_the_list_and_nothing_is_started() {
    let refused = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args([
            "bench",
            "ingest",
            "--floodway",
            "/bin/false",
            "--scenario",
            "nonsense",
            "--env-file",
            "/none",
        ])
        .arg("--out")
        .arg(std::env::temp_dir().join(format!("floodway-bench-{:016x}", rand::random::<u64>())))
        .env("FLOODWAY_KAFKA_BROKERS", "127.0.0.1:1")
        .env("FLOODWAY_DATABASE_URL", "postgres://127.0.0.1:1/x")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{error}");
    assert!(error.contains("nonsense") && error.contains("batch-100"), "{error}");
}
