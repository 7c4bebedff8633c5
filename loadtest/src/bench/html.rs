//! The page for people: one file without anything from elsewhere.

use super::{
    about::About,
    chart::{self, BarPair, Line, LineChart, escape},
    result::{BenchReport, Finding, Run, ScenarioResult, Sweep},
    summary::{self, Rows},
};
use crate::report::count;

const STYLE: &str = include_str!("report.css");

/// The page.
pub fn page(report: &BenchReport) -> String {
    let mut html = head(&format!("Floodway benchmark: {}", report.about.subject));
    html += &paragraph("quiet", &subtitle(&report.about));
    html += &cards(&best_figures(report));
    html += "<h2>Limits</h2>\n";
    html += &list(&summary::limits(report));
    html += "<h2>Scenarios</h2>\n";
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
    html += "<h2>Where and with what</h2>\n";
    html + &facts(&report.about) + FOOT
}

/// The end of a page.
pub(super) const FOOT: &str = "<p class=\"quiet\">All figures are in <code>report.json</code> beside this page.</p>\n\
    </main></body></html>\n";

/// The start of a page.
pub(super) fn head(title: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{0}</title>\n\
         <style>\n{STYLE}</style></head>\n<body><main>\n<h1>{0}</h1>\n",
        escape(title)
    )
}

/// Items; one that begins with a star is a warning.
pub(super) fn list(items: &[String]) -> String {
    let item = |item: &String| {
        let class = if item.starts_with('*') { " class=\"warn\"" } else { "" };
        format!("<li{class}>{}</li>\n", escape(item))
    };
    format!("<ul>\n{}</ul>\n", items.iter().map(item).collect::<String>())
}

/// What it ran on and with.
pub(super) fn facts(about: &About) -> String {
    let row = |(name, value): &(&str, String)| {
        format!("<tr><td>{}</td><td>{}</td></tr>\n", escape(name), escape(value))
    };
    let rows: String = summary::facts(about).iter().map(row).collect();
    format!("<table class=\"facts\">\n{rows}</table>\n")
}

/// When, what and where, in a line.
pub(super) fn subtitle(about: &About) -> String {
    format!(
        "{}, commit {}, {} on {} cores, {} profile",
        about.began,
        if about.software.commit.is_empty() { "unknown" } else { &about.software.commit },
        about.machine.cpu,
        about.machine.cores,
        about.profile.name()
    )
}

/// The figures that one looks for first.
fn best_figures(report: &BenchReport) -> Vec<(String, String)> {
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
    cards
}

/// Figures that one looks for first, each with what it is.
pub(super) fn cards(cards: &[(String, String)]) -> String {
    let card = |(figure, text): &(String, String)| {
        format!("<div class=\"card\"><b>{}</b><span>{}</span></div>", escape(figure), escape(text))
    };
    format!("<div class=\"cards\">{}</div>\n", cards.iter().map(card).collect::<Vec<_>>().join("\n"))
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

/// A table.
pub(super) fn table(rows: &Rows) -> String {
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

/// A paragraph of a class, which may be empty.
pub(super) fn paragraph(class: &str, text: &str) -> String {
    let class = if class.is_empty() { String::new() } else { format!(" class=\"{class}\"") };
    format!("<p{class}>{}</p>\n", escape(text))
}
