//! What a report of the dispatcher says: every figure beside its goal, met or missed.

use crate::{
    bench::{
        document::{Block, Document},
        figures::{Account, GoalReport},
        goals::{self, Words, remarks, text},
        summary::Rows,
    },
    report::count,
};

/// How the tables are read.
const READING: &str = "Of several runs the one in the middle is told, with the lowest and the highest behind it. Latency is from \
    the instant at which a request was due at ingest until its webhook had been read by the sink; it contains ingest's part. CPU \
    time is that of all threads of the dispatcher, inside and outside the kernel, while its outcomes are produced and acknowledged.";

/// The report as a document.
pub fn document(report: &GoalReport) -> Document {
    let ledger = vec![Block::Heading("Whether events were lost".to_owned()), Block::Table(accounts(report))];
    let words =
        Words { subject: "dispatcher", cards: cards(report), limits: limits(report), reading: READING };
    goals::document(report, words, ledger)
}

fn accounts(report: &GoalReport) -> Rows {
    let mut rows = Vec::new();
    for scenario in &report.scenarios {
        for account in &scenario.accounts {
            rows.push(vec![
                scenario.name.clone(),
                account.of.clone(),
                count(account.acknowledged),
                count(account.delivered),
                count(account.lost()),
                count(account.repeated),
                count(account.unknown),
            ]);
        }
    }
    let header =
        vec!["scenario", "events", "acknowledged", "delivered", "lost", "repeats", "without an answer"];
    Rows { header, rows }
}

fn limits(report: &GoalReport) -> Vec<String> {
    let about = &report.about;
    let mut limits = vec![
        format!(
            "One machine: {}. What one takes the others lack; CPU time per delivery carries further than deliveries per second.",
            about.conditions.placement
        ),
        "Connections are over loopback, endpoints answer at once and are one process, Kafka has one replica: no network adds its \
         latency, and real endpoints are slower."
            .to_owned(),
        format!(
            "Every event has {} bytes of data, every webhook one signature (v1). The dispatcher has its default settings unless \
             they are named below, and the retry scheduler runs beside it.",
            about.data_bytes
        ),
        "Whether a bad endpoint disturbs the others is told as a ratio of two 99th percentiles, which also differ from run to run \
         without any: the two runs without are told beside it."
            .to_owned(),
    ];
    limits.extend(remarks(report));
    limits
}

fn cards(report: &GoalReport) -> Vec<(String, String)> {
    let figure = |scenario: &str, name: &str, what: &str| {
        let found = report.scenarios.iter().find(|found| found.name == scenario)?;
        Some((text(found.figure(name)?.unit, found.figure(name)?.median()?), what.to_owned()))
    };
    let lost: u64 = report.scenarios.iter().flat_map(|found| &found.accounts).map(Account::lost).sum();
    let acknowledged: u64 =
        report.scenarios.iter().flat_map(|found| &found.accounts).map(|account| account.acknowledged).sum();
    let mut cards: Vec<(String, String)> = [
        figure("saturation", "deliveries/s", "deliveries/s to one endpoint"),
        figure("saturation", "CPU-µs/delivery", "µs of CPU per delivery"),
        figure("latency-300", "p99", "p99 from request to arrival at 300 events/s"),
        figure("latency-3000", "p99", "p99 from request to arrival at 3,000 events/s"),
    ]
    .into_iter()
    .flatten()
    .collect();
    cards.push((count(lost), format!("lost, of {} acknowledged events", count(acknowledged))));
    cards
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> GoalReport {
        serde_json::from_str(include_str!("../../../tests/fixtures/dispatcher-report.json")).unwrap()
    }

    #[test]
    fn every_page_has_every_scenario_and_its_goals() {
        let report = report();
        let document = document(&report);
        let pages =
            [document.html(&report.about), document.markdown(&report.about, "x.json"), document.terminal()];
        for page in &pages {
            for scenario in &report.scenarios {
                assert!(page.contains(&scenario.name), "{} is missing", scenario.name);
            }
            assert!(page.contains("15,000") && !page.contains("NaN") && !page.contains("inf "), "{page}");
        }
    }

    #[test]
    fn rows_have_a_cell_for_every_column() {
        for block in document(&report()).blocks {
            if let Block::Table(Rows { header, rows }) = block {
                assert!(rows.iter().all(|row| row.len() == header.len()), "{header:?}");
            }
        }
    }
}
