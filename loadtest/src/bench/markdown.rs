//! The page for the repository.

use super::{
    about::About,
    result::{BenchReport, Finding},
    summary::{self, Rows},
};

/// The page; `json` is how it names the file with all figures.
pub fn page(report: &BenchReport, json: &str) -> String {
    let mut text = head(&report.about, json);
    text += "\n## Limits\n\n";
    text += &list(&summary::limits(report));
    text += &format!("\n## Scenarios\n\n{}\n\n", summary::READING);
    text += &table(&summary::main_table(report));
    text += "\n";
    let titles: Vec<String> =
        report.scenarios.iter().map(|scenario| format!("`{}`: {}", scenario.name, scenario.title)).collect();
    text += &list(&titles);
    text += &format!("\n{}\n", summary::generator_sentence(report));
    for sentence in summary::spike_sentences(report) {
        text += &format!("\n{sentence}\n");
    }
    text += "\n## What an event costs\n\nCPU time in µs per acknowledged event (ingest also per request), all threads.\n\n";
    text += &table(&summary::cost_table(report));
    text += "\n## Rates\n\n";
    text += &table(&summary::rate_table(report));
    if let Some(sweep) = summary::sweep_of(report) {
        text += &format!("\n## Latency versus load\n\n{}\n\n", summary::knee_sentence(sweep));
        text += &table(&summary::sweep_table(sweep));
    }
    let sentences = summary::reconciliation_sentences(report);
    if !sentences.is_empty() {
        text += &format!("\n## Whether events were lost\n\n{}", list(&sentences));
    }
    text += &memory(report);
    text += "\n## Where and with what\n";
    text + &facts(&report.about)
}

/// The start of a page; `json` is how it names the file with all figures.
pub(super) fn head(about: &About, json: &str) -> String {
    format!(
        "# Benchmark of {}, {}\n\n[All figures]({json}), [how they are measured](README.md). Written by `loadtest bench`; \
         do not edit.\n",
        about.subject,
        about.began.split('T').next().unwrap_or_default()
    )
}

/// What it ran on and with.
pub(super) fn facts(about: &About) -> String {
    let row = |(name, value): &(&str, String)| format!("| {name} | {} |\n", cell(value));
    format!("\n| | |\n|---|---|\n{}", summary::facts(about).iter().map(row).collect::<String>())
}

/// Memory of ingest at the end of each scenario.
fn memory(report: &BenchReport) -> String {
    let of = |scenario: &super::result::ScenarioResult| {
        let Finding::Runs(_) = scenario.finding else { return None };
        let run = scenario.median()?;
        let bytes = crate::report::bytes;
        let broker = run.broker.map_or("–".to_owned(), |usage| bytes(usage.resident_bytes));
        Some(vec![
            scenario.name.clone(),
            bytes(run.server.resident_bytes),
            bytes(run.server.peak_bytes),
            broker,
            bytes(run.generator.resident_bytes),
        ])
    };
    let rows = report.scenarios.iter().filter_map(of).collect();
    let header =
        vec!["scenario", "ingest at the end", "ingest at most", "Kafka at the end", "generator at the end"];
    format!("\n## Memory\n\n{}", table(&Rows { header, rows }))
}

/// A table; its first column is text.
pub(super) fn table(rows: &Rows) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let mut text = line(rows.header.iter().map(|name| cell(name)).collect());
    let columns = rows.header.len().saturating_sub(1);
    text += &format!("|---|{}\n", "---:|".repeat(columns));
    for row in &rows.rows {
        text += &line(row.iter().map(|value| cell(value)).collect());
    }
    text
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

/// Items; one that begins with a star is a warning.
pub(super) fn list(items: &[String]) -> String {
    items
        .iter()
        .map(|item| format!("- {}\n", item.replacen("* ", "\\* ", usize::from(item.starts_with('*')))))
        .collect()
}
