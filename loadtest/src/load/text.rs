//! A report as people read it.

use super::{
    reconcile::Reconciliation,
    report::{LoadReport, Quantiles},
};
use crate::report::{count, duration, table};
use std::time::Duration;

/// The figures of a run as tables.
pub fn report_text(report: &LoadReport) -> String {
    let totals = &report.totals;
    let errors = &totals.errors;
    let number = |name: &str, value: u64| vec![name.to_owned(), count(value)];
    let rate = |name: &str, value: f64| number(name, value.round() as u64);
    let mut rows = vec![
        rate("events/s acknowledged", report.events_per_second),
        rate("requests/s answered", report.requests_per_second),
        number("events sent", totals.events),
        number("events acknowledged", totals.accepted),
    ];
    let classes = [
        ("refused", errors.refused),
        ("429, over the rate", errors.throttled),
        ("503, not persisted", errors.not_persisted),
        ("unknown", errors.unknown),
        ("no answer", errors.transport),
        ("requests never sent", totals.dropped_requests),
    ];
    rows.extend(classes.iter().filter(|(_, value)| *value > 0).map(|(name, value)| number(name, *value)));
    rows.push(vec!["measured".to_owned(), duration(Duration::from_secs_f64(report.seconds))]);
    let figures = table(&["", ""], &rows);
    let lag = report.generator.threads.iter().map(|thread| thread.lag.p99).max().unwrap_or(0);
    let latencies = table(
        &["latency", "p50", "p90", "p99", "p99.9", "p99.99", "max"],
        &[quantiles("from due", &report.latency), quantiles("from sent", &report.service)],
    );
    let busy: Vec<String> =
        report.generator.threads.iter().map(|thread| format!("{:.0} %", thread.busy_share * 100.0)).collect();
    let mut text = format!(
        "{}\n{latencies}\ngenerator: {:.2} µs of CPU per request, busy {}, sent late p99 {}\n",
        figures.trim_start(),
        report.generator.cpu_micros_per_request,
        busy.join(" + "),
        duration(Duration::from_micros(lag)),
    );
    for reason in &report.invalid_because {
        text.push_str(&format!("not valid: {reason}\n"));
    }
    text
}

/// What a reconciliation found, as a table.
pub fn reconciliation_text(found: &Reconciliation) -> String {
    let rows = [
        ("acknowledged", found.acknowledged),
        ("lost", found.lost),
        ("repeated", found.repeated),
        ("found without acknowledgement", found.unacknowledged_found),
        ("found although refused", found.refused_found),
        ("out of order", found.out_of_order),
        ("on another partition", found.moved),
        ("of others", found.foreign),
        ("records read", found.records),
    ];
    let mut rows: Vec<_> = rows.iter().map(|(name, value)| vec![(*name).to_owned(), count(*value)]).collect();
    rows.push(vec!["read in".to_owned(), duration(Duration::from_secs_f64(found.seconds))]);
    let mut text = table(&["", ""], &rows).trim_start().to_owned();
    for id in &found.lost_samples {
        text.push_str(&format!("lost: {id}\n"));
    }
    text
}

fn quantiles(name: &str, of: &Quantiles) -> Vec<String> {
    let values = [of.p50, of.p90, of.p99, of.p99_9, of.p99_99, of.max];
    let texts = values.into_iter().map(|micros| match of.count {
        0 => "-".to_owned(),
        _ => duration(Duration::from_micros(micros)),
    });
    std::iter::once(name.to_owned()).chain(texts).collect()
}
