//! The page for people: one file without anything from elsewhere.

use super::{
    chart::{self, BarPair, Line, LineChart, escape},
    result::{BenchReport, Finding, Run, ScenarioResult, Sweep},
    summary::{self, Rows},
};
use crate::report::count;

const STYLE: &str = include_str!("report.css");

/// The page.
pub fn page(report: &BenchReport) -> String {
    let title = format!("Floodway benchmark: {}", report.subject);
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{0}</title>\n\
         <style>\n{STYLE}</style></head>\n<body><main>\n<h1>{0}</h1>\n",
        escape(&title)
    );
    html += &paragraph("quiet", &subtitle(report));
    html += &cards(report);
    html += "<h2>Limits</h2>\n<ul>\n";
    for limit in summary::limits(report) {
        let class = if limit.starts_with('*') { " class=\"warn\"" } else { "" };
        html += &format!("<li{class}>{}</li>\n", escape(&limit));
    }
    html += "</ul>\n<h2>Scenarios</h2>\n";
    html += &paragraph("", summary::READING);
    html += &table(&summary::main_table(report));
    html += &scenario_list(report);
    html += &paragraph("", &summary::generator_sentence(report));
    let spikes = summary::spike_sentences(report);
    for sentence in spikes.into_iter().chain(summary::reconciliation_sentences(report)) {
        html += &paragraph("", &sentence);
    }
    html += &cost(report);
    if let Some(sweep) = summary::sweep_of(report) {
        html += &load(sweep);
    }
    html += &series(report);
    html += "<h2>Where and with what</h2>\n<table class=\"facts\">\n";
    for (name, value) in summary::facts(report) {
        html += &format!("<tr><td>{}</td><td>{}</td></tr>\n", escape(name), escape(&value));
    }
    html += "</table>\n";
    html += "<p class=\"quiet\">All figures, with every second of every run, are in <code>report.json</code> beside this page.</p>\n";
    html + "</main></body></html>\n"
}

fn subtitle(report: &BenchReport) -> String {
    format!(
        "{}, commit {}, {} on {} cores, {} profile",
        report.began,
        if report.software.commit.is_empty() { "unknown" } else { &report.software.commit },
        report.machine.cpu,
        report.machine.cores,
        report.profile.name()
    )
}

/// The figures that one looks for first.
fn cards(report: &BenchReport) -> String {
    let mut cards = Vec::new();
    if let Some(best) = fastest(report)
        && let Some(run) = best.median()
    {
        let text = format!("events/s acknowledged, {} per request", best.events_per_request);
        cards.push((count(run.events_per_second as u64), text));
    }
    for (name, text) in [
        ("batch-100", "µs of CPU per event, 100 per request"),
        ("single-512", "µs of CPU per event, 1 per request"),
    ] {
        let cost = report.scenario(name).and_then(ScenarioResult::median).and_then(Run::micros_per_event);
        cards.extend(cost.map(|cost| (format!("{cost:.1}"), text.to_owned())));
    }
    if let Some(run) = report.scenario("latency").and_then(ScenarioResult::median) {
        let text =
            format!("p99 at {} requests/s, half of the saturation", count(run.requests_per_second as u64));
        cards.push((summary::time(run.latency.p99), text));
    }
    if let Some(found) = report
        .scenario("endurance")
        .and_then(ScenarioResult::median)
        .and_then(|run| run.reconciliation.as_ref())
    {
        let text =
            format!("lost, of {} acknowledged events looked up on the topic", count(found.acknowledged));
        cards.push((count(found.lost), text));
    }
    let cards: Vec<String> = cards
        .into_iter()
        .map(|(figure, text)| {
            format!("<div class=\"card\"><b>{}</b><span>{}</span></div>", escape(&figure), escape(&text))
        })
        .collect();
    format!("<div class=\"cards\">{}</div>\n", cards.join("\n"))
}

fn fastest(report: &BenchReport) -> Option<&ScenarioResult> {
    let rate = |scenario: &ScenarioResult| scenario.median().map_or(0.0, |run| run.events_per_second);
    report.scenarios.iter().max_by(|a, b| rate(a).total_cmp(&rate(b)))
}

fn scenario_list(report: &BenchReport) -> String {
    let rows = report.scenarios.iter().map(|s| vec![s.name.clone(), s.title.clone()]).collect::<Vec<_>>();
    let mut html =
        String::from("<details><summary>What each scenario does</summary><table class=\"facts\">\n");
    for row in rows {
        html += &format!("<tr><td>{}</td><td>{}</td></tr>\n", escape(&row[0]), escape(&row[1]));
    }
    html + "</table></details>\n"
}

/// CPU per event against the floors, as bars and as a table.
fn cost(report: &BenchReport) -> String {
    let pairs: Vec<BarPair> = report.scenarios.iter().filter_map(bar_pair).collect();
    let mut html = String::from("<h2>What an event costs</h2>\n");
    html += &paragraph(
        "",
        "CPU time of ingest per acknowledged event, all threads, beside the two floors measured in the same run: a bare HTTP \
         server that reads the same requests, and a bare Kafka producer that writes the same records.",
    );
    if !pairs.is_empty() {
        html += "<figure>";
        html += &chart::legend(&["ingest", "HTTP floor", "producer floor"]);
        html += &chart::bars("CPU microseconds per event, ingest and floors", &pairs);
        html += "<figcaption>µs of CPU per event</figcaption></figure>\n";
    }
    html += &table(&summary::cost_table(report));
    html += "<h3>Rates</h3>\n";
    html + &table(&summary::rate_table(report))
}

fn bar_pair(scenario: &ScenarioResult) -> Option<BarPair> {
    let own = scenario.median()?.micros_per_event()?;
    let floors = scenario.floors?;
    let parts = vec![floors.http.micros_per_event()?, floors.producer.micros_per_event()?];
    let ratio = scenario.ratio().map_or(String::new(), |ratio| format!(" = {ratio:.2} × floors"));
    Some(BarPair {
        name: scenario.name.clone(),
        whole: (own, format!("{own:.2}{ratio}")),
        parts: (parts.clone(), format!("{:.2} + {:.2}", parts[0], parts[1])),
    })
}

/// Latency against load.
fn load(sweep: &Sweep) -> String {
    let line = |name: &str, value: fn(&Run) -> u64| Line {
        name: name.to_owned(),
        points: sweep
            .steps
            .iter()
            .filter_map(|step| Some((step.run.offered?, value(&step.run).max(1) as f64)))
            .collect(),
    };
    let knee = sweep.knee.and_then(|knee| sweep.steps.get(knee)).and_then(|step| step.run.offered);
    let lines = vec![
        line("p50", |run| run.latency.p50),
        line("p99", |run| run.latency.p99),
        line("p99.9", |run| run.latency.p99_9),
        line("max", |run| run.latency.max),
    ];
    let chart = LineChart {
        title: "latency versus load",
        height: 330.0,
        x_name: "events/s offered, one per request",
        log_y: true,
        x_text: rate_text,
        y_text: time_text,
        lines,
        mark: knee.map(|knee| (knee, "knee")),
        shaded_until: None,
    };
    let mut html = String::from("<h2>Latency versus load</h2>\n");
    html += &paragraph("", &summary::knee_sentence(sweep));
    html += &format!("<figure>{}{}</figure>\n", chart::legend(&["p50", "p99", "p99.9", "max"]), chart.svg());
    html + &table(&summary::sweep_table(sweep))
}

/// Two small charts for every scenario with runs: events and latency in each second.
fn series(report: &BenchReport) -> String {
    let mut html = String::from(
        "<h2>Second by second</h2>\n<p class=\"quiet\">The shaded part is the warm-up, which no figure contains.</p>\n",
    );
    for scenario in &report.scenarios {
        let Finding::Runs(runs) = &scenario.finding else { continue };
        if runs.iter().all(|run| run.series.is_empty()) {
            continue;
        }
        html += &format!(
            "<h3>{}: {}</h3>\n<div class=\"pair\">",
            escape(&scenario.name),
            escape(&scenario.title)
        );
        let warmup = runs.first().map(|run| run.warmup_seconds);
        for (what, log_y, y_text, value) in [
            (
                "events/s",
                false,
                rate_text as fn(f64) -> String,
                (|s| Some(s.accepted as f64)) as fn(&super::result::SecondOf) -> Option<f64>,
            ),
            ("p99 of each second", true, time_text, |s| s.p99.map(|p99| p99 as f64)),
        ] {
            let lines = runs
                .iter()
                .enumerate()
                // The style knows four lines; further runs look like the last.
                .take(4)
                .map(|(index, run)| Line {
                    name: format!("run {}", index + 1),
                    // The last second is seldom whole.
                    points: run
                        .series
                        .iter()
                        .take(whole_seconds(run))
                        .filter_map(|s| Some((s.second as f64, value(s)?)))
                        .collect(),
                })
                .collect();
            let chart = LineChart {
                title: what,
                height: 200.0,
                x_name: "seconds",
                log_y,
                x_text: |x| format!("{x:.0}"),
                y_text,
                lines,
                mark: None,
                shaded_until: warmup,
            };
            html += &format!("<figure><figcaption>{what}</figcaption>{}</figure>", chart.svg());
        }
        html += "</div>\n";
    }
    html
}

/// Seconds of the series that lie wholly within the run.
fn whole_seconds(run: &Run) -> usize {
    ((run.warmup_seconds + run.seconds) as usize).max(1)
}

fn rate_text(value: f64) -> String {
    match value {
        1e6.. => format!("{} M", value / 1e6),
        1e3.. => format!("{} k", value / 1e3),
        _ => format!("{value}"),
    }
}

fn time_text(micros: f64) -> String {
    match micros {
        1e6.. => format!("{} s", micros / 1e6),
        1e3.. => format!("{} ms", micros / 1e3),
        _ => format!("{micros} µs"),
    }
}

fn table(rows: &Rows) -> String {
    let cells = |tag: &str, cells: &mut dyn Iterator<Item = &str>| -> String {
        cells.map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect()
    };
    let mut html =
        format!("<div class=\"wide\"><table>\n<tr>{}</tr>\n", cells("th", &mut rows.header.iter().copied()));
    for row in &rows.rows {
        html += &format!("<tr>{}</tr>\n", cells("td", &mut row.iter().map(String::as_str)));
    }
    html + "</table></div>\n"
}

fn paragraph(class: &str, text: &str) -> String {
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    format!("<p{class}>{}</p>\n", escape(text))
}
