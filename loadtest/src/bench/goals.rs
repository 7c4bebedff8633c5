//! Tables of figures beside their goals, met or missed, for the pages of every benchmark that has goals.

use super::{
    document::{Block, Document},
    figures::{Account, Figure, Found, Goal, GoalReport, Unit},
    summary::Rows,
};
use crate::report::{bytes, count, duration};
use std::time::Duration;

/// For cells without a figure.
const NONE: &str = "–";

/// What a page of goals says besides its tables.
#[derive(Debug)]
pub struct Words<'w> {
    /// What was measured.
    pub subject: &'w str,
    /// The figures that one looks for first.
    pub cards: Vec<(String, String)>,
    /// What the figures do not say.
    pub limits: Vec<String>,
    /// How the tables are read.
    pub reading: &'w str,
}

/// A report as a document: limits, goals, what a ledger found, and every figure.
pub fn document(report: &GoalReport, words: Words<'_>, ledger: Vec<Block>) -> Document {
    let heading = |text: &str| Block::Heading(text.to_owned());
    let mut blocks = vec![
        Block::Cards(words.cards),
        heading("Limits"),
        Block::List(words.limits),
        heading("Goals"),
        Block::Paragraph(goals_sentence(report)),
        Block::Table(goals(report)),
    ];
    blocks.extend(ledger);
    blocks.extend([heading("Figures"), Block::Paragraph(words.reading.to_owned())]);
    for scenario in report.scenarios.iter().filter(|scenario| !scenario.figures.is_empty()) {
        blocks.push(Block::Heading(format!("{}: {}", scenario.name, scenario.title)));
        blocks.push(Block::Table(figures(scenario)));
    }
    blocks.push(heading("Where and with what"));
    Document { subject: words.subject.to_owned(), blocks }
}

/// Every figure that has a goal, and whether it is met.
fn goals(report: &GoalReport) -> Rows {
    let row = |scenario: &Found, figure: &Figure| {
        let goal = figure.goal?;
        Some(vec![
            scenario.name.clone(),
            figure.name.clone(),
            value(figure),
            goal_text(figure.unit, goal),
            if figure.is_met()? { "met".to_owned() } else { "MISSED".to_owned() },
        ])
    };
    let of = |scenario: &Found| -> Vec<Vec<String>> {
        scenario.figures.iter().filter_map(|figure| row(scenario, figure)).collect()
    };
    let header = vec!["scenario", "figure", "measured", "goal", ""];
    Rows { header, rows: report.scenarios.iter().flat_map(of).collect() }
}

/// How many of the goals are met.
fn goals_sentence(report: &GoalReport) -> String {
    let figures = || report.scenarios.iter().flat_map(|scenario| &scenario.figures);
    let all = figures().filter_map(Figure::is_met).count();
    let met = figures().filter_map(Figure::is_met).filter(|met| *met).count();
    format!("{met} of {all} goals are met.")
}

/// All figures of a scenario.
fn figures(scenario: &Found) -> Rows {
    let row = |figure: &Figure| {
        let spread = figure.spread().map_or(NONE.to_owned(), |(lowest, highest)| {
            format!("{} to {}", text(figure.unit, lowest), text(figure.unit, highest))
        });
        let goal = figure.goal.map_or(NONE.to_owned(), |goal| goal_text(figure.unit, goal));
        vec![figure.name.clone(), value(figure), spread, figure.values.len().to_string(), goal]
    };
    let header = vec!["figure", "measured", "runs from … to", "runs", "goal"];
    Rows { header, rows: scenario.figures.iter().map(row).collect() }
}

/// One line for the terminal as soon as a scenario has ended.
pub fn in_short(found: &Found) -> String {
    if let Some(reason) = &found.failed {
        return format!("{}: failed: {reason}", found.name);
    }
    let goals = found.figures.iter().filter(|figure| figure.goal.is_some());
    let mut parts: Vec<String> = goals.map(|figure| format!("{} {}", figure.name, value(figure))).collect();
    if parts.is_empty() {
        parts =
            found.figures.iter().take(3).map(|figure| format!("{} {}", figure.name, value(figure))).collect();
    }
    let lost: u64 = found.accounts.iter().map(Account::lost).sum();
    if lost > 0 {
        parts.push(format!("LOST {}", count(lost)));
    }
    format!("{}: {}", found.name, parts.join(", "))
}

/// The figure of the run in the middle.
pub fn value(figure: &Figure) -> String {
    figure.median().map_or(NONE.to_owned(), |value| text(figure.unit, value))
}

/// A goal for people.
pub fn goal_text(unit: Unit, goal: Goal) -> String {
    match goal {
        Goal::AtLeast(least) => format!("≥ {}", text(unit, least)),
        Goal::AtMost(most) => format!("≤ {}", text(unit, most)),
    }
}

/// A value for people.
pub fn text(unit: Unit, value: f64) -> String {
    match unit {
        Unit::PerSecond | Unit::Count => count(value as u64),
        Unit::CpuMicros => format!("{value:.1} µs"),
        Unit::Micros => duration(Duration::from_micros(value as u64)),
        Unit::Bytes => bytes(value as u64),
        Unit::Percent => format!("{value:.2} %"),
        Unit::Times => format!("{value:.2}"),
    }
}

/// What is to be known of a report's figures: remarks on all, what failed, and what may be doubted.
pub fn remarks(report: &GoalReport) -> Vec<String> {
    let mut remarks = report.about.remarks.clone();
    for scenario in &report.scenarios {
        remarks.extend(scenario.failed.iter().map(|reason| format!("* {}: failed: {reason}", scenario.name)));
        remarks.extend(scenario.doubts.iter().map(|doubt| format!("* {}: {doubt}.", scenario.name)));
    }
    remarks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> GoalReport {
        serde_json::from_str(include_str!("../../tests/fixtures/dispatcher-report.json")).unwrap()
    }

    #[test]
    fn a_goal_that_is_missed_reads_as_missed() {
        let mut report = report();
        report.scenarios = vec![Found {
            name: "s".to_owned(),
            figures: vec![
                Figure::new("rate", Unit::PerSecond, 14_999.0).goal(Goal::AtLeast(15_000.0)),
                Figure::new("cost", Unit::CpuMicros, 29.0).goal(Goal::AtMost(30.0)),
                Figure::new("size", Unit::Bytes, 29.0),
            ],
            ..Found::default()
        }];
        let rows = goals(&report).rows;
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0][2..], ["14,999", "≥ 15,000", "MISSED"]);
        assert_eq!(rows[1][2..], ["29.0 µs", "≤ 30.0 µs", "met"]);
        assert_eq!(goals_sentence(&report), "1 of 2 goals are met.");
    }
}
