//! What a report says, as rows and sentences; the terminal, the HTML page and the Markdown page show the same.

use super::{
    about::About,
    disk::Room,
    result::{BenchReport, Finding, Run, ScenarioResult, Sweep},
};
use crate::report::{bytes, count, duration, table};
use std::time::Duration;

/// Rows under a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rows {
    /// Names of the columns.
    pub header: Vec<&'static str>,
    /// Cells.
    pub rows: Vec<Vec<String>>,
}

/// Share of the machine's CPU time that PostgreSQL, the control plane and the system itself may take unmentioned.
const TOLERATED_OTHERS: f64 = 0.1;
/// How the table of scenarios is read.
pub const READING: &str = "Times are from the instant a request was due to its whole answer, or to when it was given up; \
    requests that were refused are in none. Errors are events that were not acknowledged. A star marks figures that say less \
    than they seem.";
/// For cells without a figure.
const NONE: &str = "–";

const MAIN: [&str; 12] = [
    "scenario",
    "events/s",
    "requests/s",
    "errors",
    "p50",
    "p99",
    "p99.9",
    "p99.99",
    "max",
    "CPU-µs/event",
    "÷ floors",
    "peak RSS",
];
const COST: [&str; 9] = [
    "scenario",
    "ingest µs/event",
    "of it system",
    "µs/request",
    "HTTP floor",
    "producer floor",
    "÷ floors",
    "Kafka µs/event",
    "generator µs/event",
];
const SWEEP: [&str; 10] =
    ["offered/s", "acknowledged/s", "errors", "p50", "p90", "p99", "p99.9", "p99.99", "max", "CPU-µs/event"];

/// The table of all scenarios but the sweep.
pub fn main_table(report: &BenchReport) -> Rows {
    Rows { header: MAIN.into(), rows: report.scenarios.iter().filter_map(main_row).collect() }
}

fn main_row(scenario: &ScenarioResult) -> Option<Vec<String>> {
    let run = match &scenario.finding {
        Finding::Sweep(_) => return None,
        Finding::NotSupported(_) => return Some(empty_row(scenario, "not supported")),
        Finding::Failed(_) => return Some(empty_row(scenario, "failed")),
        Finding::Runs(_) => scenario.median()?,
    };
    let Run { latency, .. } = run;
    Some(vec![
        name(scenario),
        count(run.events_per_second as u64),
        count(run.requests_per_second as u64),
        errors(run),
        time(latency.p50),
        time(latency.p99),
        time(latency.p99_9),
        time(latency.p99_99),
        time(latency.max),
        micros(run.micros_per_event()),
        scenario.ratio().map_or(NONE.to_owned(), |ratio| format!("{ratio:.2}")),
        bytes(run.server.peak_bytes),
    ])
}

/// Events that were not acknowledged, and their share of those that were sent.
fn errors(run: &Run) -> String {
    match run.not_acknowledged() {
        0 => "0".to_owned(),
        number => {
            // The smallest share that is told, so that a few of many do not read as none.
            let percent = (number as f64 / run.events as f64 * 100.0).max(0.01);
            format!("{} ({percent:.2} %)", count(number))
        }
    }
}

fn empty_row(scenario: &ScenarioResult, what: &str) -> Vec<String> {
    let mut row = vec![NONE.to_owned(); MAIN.len()];
    row[0] = scenario.name.clone();
    row[1] = what.to_owned();
    row
}

/// The name, with a star when the figures cannot be used.
fn name(scenario: &ScenarioResult) -> String {
    let invalid = scenario.median().is_some_and(|run| !run.is_valid());
    format!("{}{}", scenario.name, if invalid { " *" } else { "" })
}

/// What an event costs whom, for every scenario with runs.
pub fn cost_table(report: &BenchReport) -> Rows {
    let row = |scenario: &ScenarioResult| {
        let run = scenario.median()?;
        let events = run.events_per_second * run.seconds;
        let system = (events >= 1.0).then(|| run.server.system_micros / events);
        let floors = scenario.floors;
        Some(vec![
            name(scenario),
            micros(run.micros_per_event()),
            micros(system),
            micros(run.micros_per_request()),
            micros(floors.and_then(|floors| floors.http.micros_per_event())),
            micros(floors.and_then(|floors| floors.producer.micros_per_event())),
            scenario.ratio().map_or(NONE.to_owned(), |ratio| format!("{ratio:.2}")),
            micros(run.broker_micros_per_event()),
            micros(run.generator_micros_per_event()),
        ])
    };
    Rows { header: COST.into(), rows: report.scenarios.iter().filter_map(row).collect() }
}

/// Events per second of the floors, and the spread of runs.
pub fn rate_table(report: &BenchReport) -> Rows {
    let row = |scenario: &ScenarioResult| {
        let (floors, run) = (scenario.floors?, scenario.median()?);
        let (slowest, fastest) = scenario.spread()?;
        let Finding::Runs(runs) = &scenario.finding else { return None };
        Some(vec![
            name(scenario),
            runs.len().to_string(),
            count(slowest as u64),
            count(run.events_per_second as u64),
            count(fastest as u64),
            count(floors.http.events_per_second as u64),
            count(floors.producer.events_per_second as u64),
            format!("{:.0} %", run.machine_busy * 100.0),
            format!("{:.0} %", run.busy_with_others(report.about.machine.cores) * 100.0),
        ])
    };
    let header = vec![
        "scenario",
        "runs",
        "slowest events/s",
        "median events/s",
        "fastest events/s",
        "HTTP floor events/s",
        "producer floor events/s",
        "machine busy",
        "with others",
    ];
    Rows { header, rows: report.scenarios.iter().filter_map(row).collect() }
}

/// The sweep of a report, if it has one with steps.
pub fn sweep_of(report: &BenchReport) -> Option<&Sweep> {
    report.scenarios.iter().find_map(|scenario| match &scenario.finding {
        Finding::Sweep(sweep) if !sweep.steps.is_empty() => Some(sweep),
        _ => None,
    })
}

/// Latency versus load.
pub fn sweep_table(sweep: &Sweep) -> Rows {
    let row = |(index, step): (usize, &super::result::Step)| {
        let Run { latency, offered, .. } = &step.run;
        let mark = if sweep.knee == Some(index) { " ← knee" } else { "" };
        vec![
            format!("{}{mark}", offered.map_or(NONE.to_owned(), |rate| count(rate as u64))),
            count(step.run.events_per_second as u64),
            errors(&step.run),
            time(latency.p50),
            time(latency.p90),
            time(latency.p99),
            time(latency.p99_9),
            time(latency.p99_99),
            time(latency.max),
            micros(step.run.micros_per_event()),
        ]
    };
    Rows { header: SWEEP.into(), rows: sweep.steps.iter().enumerate().map(row).collect() }
}

/// What the sweep says, in a sentence.
pub fn knee_sentence(sweep: &Sweep) -> String {
    let Some(step) = sweep.knee.and_then(|knee| sweep.steps.get(knee)) else {
        return "No step of the sweep was usable.".to_owned();
    };
    let highest = sweep.knee == Some(sweep.steps.len() - 1);
    format!(
        "The knee is at {} events/s ({:.0} % of what a closed loop reached), with p99 {} and p99.9 {}{}.",
        count(step.run.events_per_second as u64),
        step.share * 100.0,
        time(step.run.latency.p99),
        time(step.run.latency.p99_9),
        if highest { "; no higher rate was tried" } else { "" },
    )
}

/// What spikes did, in sentences.
pub fn spike_sentences(report: &BenchReport) -> Vec<String> {
    let sentence = |scenario: &ScenarioResult| {
        let effect = scenario.median()?.spike_effect()?;
        let calm = match effect.calm_after {
            Some(0) => "it was back from the end of the spike on".to_owned(),
            Some(seconds) => format!("it was back {seconds} s after the end of the spike"),
            None => "it was not back when the run ended".to_owned(),
        };
        Some(format!(
            "{}: the p99 of a second was at most {} before the spike and {} in it; {calm}.",
            scenario.name,
            time(effect.before),
            effect.during.map_or("without any answer".to_owned(), time),
        ))
    };
    report.scenarios.iter().filter_map(sentence).collect()
}

/// What was found on the topics, in sentences.
pub fn reconciliation_sentences(report: &BenchReport) -> Vec<String> {
    let mut sentences = Vec::new();
    for scenario in &report.scenarios {
        let Finding::Runs(runs) = &scenario.finding else { continue };
        for found in runs.iter().filter_map(|run| run.reconciliation.as_ref()) {
            sentences.push(format!(
                "{}: of {} events sent, {} were acknowledged; lost {}, repeated {}, out of order {}, on a wrong partition {}, \
                 refused but stored {}, without an answer but stored {}.",
                scenario.name,
                count(found.sent),
                count(found.acknowledged),
                count(found.lost),
                count(found.repeated),
                count(found.out_of_order),
                count(found.moved),
                count(found.refused_found),
                count(found.unacknowledged_found),
            ));
        }
    }
    sentences
}

/// What keeps the figures from meaning more than they do. They come first on every page.
pub fn limits(report: &BenchReport) -> Vec<String> {
    let mut limits = vec![
        format!(
            "{}. What one takes the others lack: events per second are those of this arrangement, and CPU time per event \
             carries further than they do.",
            capitalized(&report.about.conditions.placement)
        ),
        "Connections are over loopback: no network, no TLS, no load balancer. Topics have one replica, so an \
         acknowledgement waits for one broker's page cache and not for a disk or another machine."
            .to_owned(),
        format!(
            "Every event has {} bytes of data: {}.{} {} different partition keys, one tenant.",
            report.about.data_bytes,
            report.entropy,
            record_sentence(report),
            count(report.keys)
        ),
        "The floors lack what makes a service: the HTTP floor parses nothing and checks no key, and the producer floor's \
         records are ready in memory. They run at their own, higher rates, where batches are larger and an event costs less."
            .to_owned(),
    ];
    limits.extend(report.about.remarks.iter().cloned());
    limits.extend(report.scenarios.iter().filter_map(|scenario| match &scenario.finding {
        Finding::NotSupported(reason) => Some(format!("{}: not supported: {reason}.", scenario.name)),
        Finding::Failed(reason) => Some(format!("{}: failed: {reason}.", scenario.name)),
        Finding::Runs(_) | Finding::Sweep(_) => None,
    }));
    limits.extend(others_sentence(report));
    limits.extend(invalid_sentences(report));
    limits
}

/// Whether something else was busy on the machine while it was measured, in a sentence. Without Kafka's processes nobody
/// can tell.
fn others_sentence(report: &BenchReport) -> Option<String> {
    let runs = runs(report).into_iter().filter(|(_, run)| run.broker.is_some());
    let shares = runs.map(|(name, run)| (run.busy_with_others(report.about.machine.cores), name));
    let (share, name) = shares.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (share > TOLERATED_OTHERS).then(|| {
        format!(
            "Others than those measured, on this machine or on its host, took up to {:.0} % of its CPU time ({name}): its \
             figures would be better without them.",
            share * 100.0
        )
    })
}

/// Every run and every step of a sweep, with what it is called.
fn runs(report: &BenchReport) -> Vec<(String, &Run)> {
    let of =
        |scenario: &'_ ScenarioResult, share: f64| format!("{} at {:.0} %", scenario.name, share * 100.0);
    let mut all = Vec::new();
    for scenario in &report.scenarios {
        match &scenario.finding {
            Finding::Runs(runs) => all.extend(runs.iter().map(|run| (scenario.name.clone(), run))),
            Finding::Sweep(sweep) => {
                all.extend(sweep.steps.iter().map(|step| (of(scenario, step.share), &step.run)));
            }
            Finding::NotSupported(_) | Finding::Failed(_) => {}
        }
    }
    all
}

/// How large a record is in Kafka, if a floor has looked at some.
fn record_sentence(report: &BenchReport) -> String {
    let sizes = report.scenarios.iter().filter_map(|scenario| scenario.floors?.producer.record_bytes);
    let size = sizes.reduce(f64::max);
    size.map_or(String::new(), |size| {
        format!(" A record of it has {size:.0} bytes before compression, key included.")
    })
}

/// Which figures cannot be used, and why: among others because the generator was the limit.
fn invalid_sentences(report: &BenchReport) -> Vec<String> {
    let invalid = runs(report).into_iter().filter(|(_, run)| !run.is_valid());
    invalid
        .map(|(name, run)| format!("* {name} says less than it seems: {}.", run.invalid_because.join("; ")))
        .collect()
}

/// Whether the generator was the limit anywhere, in a sentence.
pub fn generator_sentence(report: &BenchReport) -> String {
    let limited: Vec<&str> = report
        .scenarios
        .iter()
        .filter(|scenario| match &scenario.finding {
            Finding::Runs(runs) => runs.iter().any(|run| !run.generator_limit.is_empty()),
            Finding::Sweep(sweep) => sweep.steps.iter().any(|step| !step.run.generator_limit.is_empty()),
            _ => false,
        })
        .map(|scenario| scenario.name.as_str())
        .collect();
    if limited.is_empty() {
        return "The generator was nowhere the limit.".to_owned();
    }
    format!("The generator was the limit, or close to it, in: {}.", limited.join(", "))
}

/// What it ran on and with.
pub fn facts(about: &About) -> Vec<(&'static str, String)> {
    let (software, machine, conditions) = (&about.software, &about.machine, &about.conditions);
    let known = |text: &str| if text.is_empty() { "unknown".to_owned() } else { text.to_owned() };
    let [one, five, fifteen] = conditions.load_average;
    let disk =
        |Room { free_bytes, total_bytes }| format!("{} of {} free", bytes(free_bytes), bytes(total_bytes));
    let mut facts = vec![
        ("began", about.began.clone()),
        ("profile", format!("{}, took {}", about.profile.name(), time((about.took_seconds * 1e6) as u64))),
        ("floodway", format!("{}, commit {}", known(&software.floodway), known(&software.commit))),
        ("rustc", known(&software.rustc)),
        ("Kafka", known(&software.kafka)),
        ("PostgreSQL", known(&software.postgres)),
        ("CPU", format!("{}, {} cores", known(&machine.cpu), machine.cores)),
        ("memory", bytes(machine.memory_bytes)),
        ("kernel", known(&machine.kernel)),
        ("load before the run", format!("{one:.2}, {five:.2}, {fifteen:.2} over 1, 5 and 15 minutes")),
        ("placement", conditions.placement.clone()),
        ("disk of Kafka's data", conditions.disk.map_or("unknown".to_owned(), disk)),
    ];
    if let Some(sync) = conditions.sync {
        let text = format!(
            "median {}, longest {} of {}",
            time(sync.median_micros),
            time(sync.max_micros),
            sync.tries
        );
        facts.push(("write and sync of 4 KiB", text));
    }
    let threads = match about.generator_threads {
        1 => "1 thread".to_owned(),
        number => format!("{number} threads"),
    };
    facts.push(("generator", threads));
    let settings =
        if software.settings.is_empty() { "defaults".to_owned() } else { software.settings.join(", ") };
    facts.push(("settings", settings));
    facts
}

/// The result on the terminal.
pub fn terminal(report: &BenchReport) -> String {
    let mut text = format!("\n{}\n", as_text(&main_table(report)));
    let cost = cost_table(report);
    text += &format!("CPU time in µs per acknowledged event (ingest also per request)\n{}\n", as_text(&cost));
    if let Some(sweep) = sweep_of(report) {
        text += &format!("latency versus load\n{}{}\n\n", as_text(&sweep_table(sweep)), knee_sentence(sweep));
    }
    for sentence in spike_sentences(report).into_iter().chain(reconciliation_sentences(report)) {
        text += &format!("{sentence}\n");
    }
    text += &format!("{}\n", generator_sentence(report));
    for sentence in invalid_sentences(report) {
        text += &format!("{sentence}\n");
    }
    text
}

fn as_text(rows: &Rows) -> String {
    table(&rows.header, &rows.rows)
}

/// Microseconds for people.
pub fn time(micros: u64) -> String {
    duration(Duration::from_micros(micros))
}

fn micros(value: Option<f64>) -> String {
    value.map_or(NONE.to_owned(), |value| match value {
        ..9.995 => format!("{value:.2}"),
        ..99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    })
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bench::result::Step, load::Quantiles};

    fn report() -> BenchReport {
        serde_json::from_str(include_str!("../../tests/fixtures/bench-report.json")).unwrap()
    }

    fn faulty() -> Run {
        Run {
            events: 1_000_000,
            accepted: 988_000,
            latency: Quantiles::default(),
            invalid_because: vec!["12000 events not acknowledged (throttled: 12000)".to_owned()],
            ..Run::default()
        }
    }

    #[test]
    fn events_that_were_not_acknowledged_are_in_the_tables_and_among_the_limits() {
        let mut report = report();
        report.scenarios[0].finding = Finding::Runs(vec![faulty()]);
        let rows = main_table(&report);
        assert_eq!((rows.header[3], rows.rows[0][3].as_str()), ("errors", "12,000 (1.20 %)"));
        assert_eq!(rows.rows[1][3], "0");
        assert!(rows.rows[0][0].ends_with(" *"), "{:?}", rows.rows[0]);
        assert!(limits(&report).iter().any(|limit| limit.contains("12000 events not acknowledged")));
        for page in
            [terminal(&report), super::super::html::page(&report), super::super::markdown::page(&report, "x")]
        {
            assert!(page.contains("12,000 (1.20 %)"), "{page}");
        }

        let sweep = Sweep { steps: vec![Step { share: 0.1, run: faulty() }], ..Sweep::default() };
        let rows = sweep_table(&sweep);
        assert_eq!((rows.header[2], rows.rows[0][2].as_str()), ("errors", "12,000 (1.20 %)"));
    }

    #[test]
    fn one_error_of_very_many_does_not_read_as_none() {
        let run = Run { events: 100_000_000, accepted: 99_999_999, ..Run::default() };
        assert_eq!(errors(&run), "1 (0.01 %)");
    }

    #[test]
    fn rows_have_a_cell_for_every_column() {
        let report = report();
        let sweep = sweep_of(&report).map(sweep_table);
        let tables = [main_table(&report), cost_table(&report), rate_table(&report)];
        for Rows { header, rows } in tables.into_iter().chain(sweep) {
            assert!(rows.iter().all(|row| row.len() == header.len()), "{header:?}");
        }
    }
}
