//! The figures of a benchmark with goals, of the dispatcher or of the retry scheduler, as `report.json` has them.

use super::about::About;
use serde::{Deserialize, Serialize};

/// Version of the format. A reader refuses another one.
pub const FORMAT: u32 = 1;

/// Everything about one such benchmark.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GoalReport {
    /// Circumstances.
    #[serde(flatten)]
    pub about: About,
    /// What every scenario found, in the order in which they ran.
    pub scenarios: Vec<Found>,
}

/// What one scenario found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// Name of the scenario.
    pub name: String,
    /// What it does, in a few words.
    pub title: String,
    /// Its figures.
    pub figures: Vec<Figure>,
    /// What became of the events.
    pub accounts: Vec<Account>,
    /// What keeps the figures from meaning what they seem to, in sentences.
    pub doubts: Vec<String>,
    /// Why there are no figures, if there are none.
    pub failed: Option<String>,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// In what.
    pub unit: Unit,
    /// What each run measured.
    pub values: Vec<f64>,
    /// What it should be.
    pub goal: Option<Goal>,
}

/// What a figure counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// So many a second.
    PerSecond,
    /// Microseconds of CPU time.
    CpuMicros,
    /// Microseconds that pass.
    Micros,
    /// Bytes.
    Bytes,
    /// Per cent.
    Percent,
    /// How often another figure it is.
    Times,
    /// A number.
    Count,
}

/// What a figure should be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

/// What became of events: by what ingest acknowledged, and by what arrived.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Which events.
    pub of: String,
    /// Acknowledged by ingest.
    pub acknowledged: u64,
    /// Sent, and left without an answer that says what became of them.
    pub unknown: u64,
    /// Different webhooks that arrived.
    pub delivered: u64,
    /// Webhooks that arrived again.
    pub repeated: u64,
}

impl Figure {
    /// A figure of one run.
    pub fn new(name: impl Into<String>, unit: Unit, value: f64) -> Self {
        Self { name: name.into(), unit, values: vec![value], goal: None }
    }

    /// The same with a goal.
    #[must_use]
    pub fn goal(self, goal: Goal) -> Self {
        Self { goal: Some(goal), ..self }
    }

    /// The value in the middle; of an even number of them the lower one.
    pub fn median(&self) -> Option<f64> {
        let mut values = self.values.clone();
        values.sort_by(f64::total_cmp);
        values.get(values.len().checked_sub(1)? / 2).copied()
    }

    /// The lowest and the highest value, if there are several.
    pub fn spread(&self) -> Option<(f64, f64)> {
        if self.values.len() < 2 {
            return None;
        }
        let values = || self.values.iter().copied();
        Some((values().reduce(f64::min)?, values().reduce(f64::max)?))
    }

    /// Whether the median reaches the goal, if there is one.
    pub fn is_met(&self) -> Option<bool> {
        let value = self.median()?;
        match self.goal? {
            Goal::AtLeast(least) => Some(value >= least),
            Goal::AtMost(most) => Some(value <= most),
        }
    }
}

/// The figures of several runs of the same: those of one name are one figure with all values.
pub fn together(runs: Vec<Vec<Figure>>) -> Vec<Figure> {
    let mut together: Vec<Figure> = Vec::new();
    for figure in runs.into_iter().flatten() {
        match together.iter_mut().find(|other| other.name == figure.name) {
            Some(other) => other.values.extend(figure.values),
            None => together.push(figure),
        }
    }
    together
}

impl Account {
    /// Acknowledged and not delivered.
    pub fn lost(&self) -> u64 {
        self.acknowledged.saturating_sub(self.delivered)
    }
}

impl Found {
    /// A figure by its name.
    pub fn figure(&self, name: &str) -> Option<&Figure> {
        self.figures.iter().find(|figure| figure.name == name)
    }
}

impl GoalReport {
    /// What a benchmark cannot end with: figures that are missing, events that are lost.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for scenario in &self.scenarios {
            faults.extend(scenario.failed.iter().map(|reason| format!("{}: {reason}", scenario.name)));
            for account in scenario.accounts.iter().filter(|account| account.lost() > 0) {
                let (lost, of) = (account.lost(), &account.of);
                faults
                    .push(format!("{}: {lost} acknowledged events ({of}) were not delivered", scenario.name));
            }
        }
        faults
    }

    /// Adds the scenarios of another report of the same machine; one that both have is taken from the other.
    pub fn merge(&mut self, other: Self) {
        self.about.took_seconds += other.about.took_seconds;
        for remark in other.about.remarks {
            if !self.about.remarks.contains(&remark) {
                self.about.remarks.push(remark);
            }
        }
        for found in other.scenarios {
            match self.scenarios.iter_mut().find(|scenario| scenario.name == found.name) {
                Some(scenario) => *scenario = found,
                None => self.scenarios.push(found),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(values: &[f64], goal: Option<Goal>) -> Figure {
        Figure { name: "x".to_owned(), unit: Unit::Count, values: values.to_vec(), goal }
    }

    #[test]
    fn a_goal_is_met_by_the_run_in_the_middle() {
        for (values, goal, met) in [
            (&[1.0, 9.0, 3.0][..], Goal::AtMost(3.0), true),
            (&[1.0, 9.0, 3.0], Goal::AtMost(2.9), false),
            (&[1.0, 9.0, 3.0], Goal::AtLeast(3.0), true),
            (&[4.0], Goal::AtLeast(5.0), false),
        ] {
            assert_eq!(figure(values, Some(goal)).is_met(), Some(met), "{values:?} {goal:?}");
        }
        assert_eq!(figure(&[1.0], None).is_met(), None);
        assert_eq!(figure(&[], Some(Goal::AtMost(1.0))).is_met(), None);
        assert_eq!(
            (figure(&[1.0], None).spread(), figure(&[2.0, 1.0], None).spread()),
            (None, Some((1.0, 2.0)))
        );
    }

    #[test]
    fn runs_are_put_together_by_name() {
        let runs = vec![vec![figure(&[1.0], None)], vec![figure(&[3.0], None)], vec![figure(&[2.0], None)]];
        let together = together(runs);
        assert_eq!((together.len(), together[0].median()), (1, Some(2.0)));
    }

    #[test]
    fn events_that_did_not_arrive_are_faults_and_repeats_are_not() {
        let account = |acknowledged, delivered, repeated| Account {
            acknowledged,
            delivered,
            repeated,
            ..Account::default()
        };
        assert_eq!((account(5, 3, 9).lost(), account(5, 6, 0).lost()), (2, 0));
        let found = |account| Found { name: "s".to_owned(), accounts: vec![account], ..Found::default() };
        let mut report: GoalReport =
            serde_json::from_str(include_str!("../../tests/fixtures/dispatcher-report.json")).unwrap();
        assert_eq!(report.faults(), Vec::<String>::new());
        report.scenarios = vec![found(account(5, 5, 9))];
        assert_eq!(report.faults(), Vec::<String>::new());
        report.scenarios.push(found(account(5, 3, 0)));
        report.scenarios.push(Found { failed: Some("why".to_owned()), ..Found::default() });
        assert_eq!(report.faults().len(), 2, "{:?}", report.faults());
    }

    #[test]
    fn a_merged_report_has_each_scenario_once() {
        let report: GoalReport =
            serde_json::from_str(include_str!("../../tests/fixtures/dispatcher-report.json")).unwrap();
        let mut merged = report.clone();
        let mut other = report.clone();
        other.scenarios[0].title = "later".to_owned();
        merged.merge(other);
        assert_eq!(merged.scenarios.len(), report.scenarios.len());
        assert_eq!(merged.scenarios[0].title, "later");
    }
}
