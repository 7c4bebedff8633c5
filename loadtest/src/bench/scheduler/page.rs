//! What a report of the retry scheduler says: every figure beside its goal, met or missed.

use crate::{
    bench::{
        document::Document,
        figures::{Found, GoalReport},
        goals::{self, Words, remarks, text},
    },
    report::count,
};

/// How the tables are read.
const READING: &str = "Of several runs the one in the middle is told, with the lowest and the highest behind it. Rates and costs \
    are over the part between the first tenth and the last, so without the start of the process. CPU time is that of all threads \
    or processes, inside and outside the kernel. Lateness counts from the instant that the outcome asked for.";

/// The report as a document.
pub fn document(report: &GoalReport) -> Document {
    let words =
        Words { subject: "retry scheduler", cards: cards(report), limits: limits(report), reading: READING };
    goals::document(report, words, Vec::new())
}

fn limits(report: &GoalReport) -> Vec<String> {
    let mut limits = vec![
        format!(
            "One machine: {}. What one takes the others lack; the ratio to the bare COPY of the same run carries further than \
             rows per second.",
            report.about.conditions.placement
        ),
        "Outcomes are written by the benchmark, not by a dispatcher, before the scheduler starts. One shard, which is one \
         connection at a time, unless a scenario says otherwise."
            .to_owned(),
        format!(
            "Events have {} bytes of data, which makes rows of about 1 kB. Kafka has one replica; PostgreSQL syncs every commit to \
             the disk.",
            report.about.data_bytes
        ),
    ];
    limits.extend(remarks(report));
    limits
}

fn cards(report: &GoalReport) -> Vec<(String, String)> {
    let figure = |scenario: &str, name: &str, what: &str| {
        let found: &Found = report.scenarios.iter().find(|found| found.name == scenario)?;
        let figure = found.figure(name)?;
        Some((text(figure.unit, figure.median()?), what.to_owned()))
    };
    let failed = report.scenarios.iter().filter(|found| found.failed.is_some()).count();
    let failed = (failed > 0).then(|| (count(failed as u64), "scenarios failed".to_owned()));
    [
        figure("retry-rows", "rows/s", "rows of retries stored per second"),
        figure("history-rows", "rows/s", "rows of history stored per second"),
        figure("lateness", "lateness at `due`, p99", "p99 of lateness"),
        figure("pending-10m", "until ready, all shards taken over", "until ready with many pending"),
        failed,
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figures::{Figure, Goal, Unit};

    #[test]
    fn the_page_names_every_scenario_and_what_failed() {
        let mut report: GoalReport =
            serde_json::from_str(include_str!("../../../tests/fixtures/dispatcher-report.json")).unwrap();
        let rate = Figure::new("rows/s", Unit::PerSecond, 99_000.0).goal(Goal::AtLeast(100_000.0));
        report.scenarios = vec![
            Found { name: "retry-rows".to_owned(), figures: vec![rate], ..Found::default() },
            Found { name: "lateness".to_owned(), failed: Some("why".to_owned()), ..Found::default() },
        ];
        let document = document(&report);
        for page in
            [document.html(&report.about), document.markdown(&report.about, "x.json"), document.terminal()]
        {
            assert!(
                page.contains("retry-rows") && page.contains("MISSED") && page.contains("failed: why"),
                "{page}"
            );
        }
    }
}
