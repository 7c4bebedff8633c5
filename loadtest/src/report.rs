//! The one owner of stdout: results, as aligned text or JSON. Progress and errors go to stderr, elsewhere.

use crate::send::SendReport;
use hdrhistogram::Histogram;
use serde_json::json;
use std::{
    io::{self, Write},
    time::Duration,
};

/// Writes a result and flushes it, so that it is seen even if the process is killed later. A reader that went
/// away, as `| head` does, is no failure.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// A table: the first column to the left, the others to the right, two spaces between them.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(header.get(column).map(|name| name.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<String> = cells
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, &width))| match column {
                0 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    };
    line(&mut header.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

/// `12345` as `12,345`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A duration with three significant digits: `840 µs`, `12.3 ms`, `1.24 s`.
pub fn duration(duration: Duration) -> String {
    let micros = duration.as_secs_f64() * 1e6;
    let (value, unit) = match micros {
        ..999.5 => return format!("{micros:.0} µs"),
        ..999_500.0 => (micros / 1e3, "ms"),
        _ => (micros / 1e6, "s"),
    };
    let decimals = match value {
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {unit}")
}

/// A number of bytes with three significant digits, in powers of 1024: `13.1 GiB`.
pub fn bytes(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1023.5 {
            break;
        }
        (value, unit) = (value / 1024.0, larger);
    }
    let decimals = match value {
        _ if unit == "B" => 0,
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {unit}")
}

/// A quantile of a histogram of microseconds; `-` if it is empty.
pub fn quantile(histogram: &Histogram<u64>, quantile: f64) -> String {
    if histogram.is_empty() {
        return "-".to_owned();
    }
    duration(Duration::from_micros(histogram.value_at_quantile(quantile)))
}

/// The result of a sender's run, for people.
pub fn send_text(report: &SendReport) -> String {
    let tally = &report.tally;
    let latency = &report.latency;
    let mut rows = vec![
        vec!["accepted".to_owned(), count(tally.accepted)],
        vec!["refused".to_owned(), count(tally.refused.values().sum())],
        vec!["never acknowledged".to_owned(), count(tally.unacknowledged())],
        vec!["not sent".to_owned(), count(tally.not_sent)],
        vec!["requests".to_owned(), count(tally.requests)],
        vec!["events repeated".to_owned(), count(tally.repeats)],
        vec!["answers of 429".to_owned(), count(tally.throttled)],
        vec!["elapsed".to_owned(), duration(report.elapsed)],
        vec!["events/s".to_owned(), count(events_per_second(report) as u64)],
        vec!["accept p50".to_owned(), quantile(latency, 0.5)],
        vec!["accept p90".to_owned(), quantile(latency, 0.9)],
        vec!["accept p99".to_owned(), quantile(latency, 0.99)],
        vec!["accept p99.9".to_owned(), quantile(latency, 0.999)],
        vec!["accept max".to_owned(), quantile(latency, 1.0)],
    ];
    for (status, refused) in &tally.refused {
        rows.push(vec![format!("refused with {status}"), count(*refused)]);
    }
    table(&["", ""], &rows).trim_start().to_owned()
}

/// The result of a sender's run, for programs: one line of JSON.
pub fn send_json(report: &SendReport) -> String {
    let latency = |quantile| report.latency.value_at_quantile(quantile);
    let json = json!({
        "accepted": report.tally.accepted,
        "refused": report.tally.refused,
        "not_persisted": report.tally.not_persisted,
        "unknown": report.tally.unknown,
        "not_sent": report.tally.not_sent,
        "requests": report.tally.requests,
        "repeats": report.tally.repeats,
        "throttled": report.tally.throttled,
        "elapsed_seconds": report.elapsed.as_secs_f64(),
        "events_per_second": events_per_second(report),
        "accept_micros": {
            "p50": latency(0.5), "p90": latency(0.9), "p99": latency(0.99), "p999": latency(0.999), "max": latency(1.0),
        },
    });
    format!("{json}\n")
}

fn events_per_second(report: &SendReport) -> f64 {
    report.tally.accepted as f64 / report.elapsed.as_secs_f64().max(1e-6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_by_characters_not_bytes() {
        let text = table(
            &["name", "p50"],
            &[vec!["é".into(), "840 µs".into()], vec!["long name".into(), "1 s".into()]],
        );
        assert_eq!(text, "name          p50\né          840 µs\nlong name     1 s\n");
    }

    #[test]
    fn numbers_read_as_people_write_them() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        for (micros, text) in [
            (7, "7 µs"),
            (840, "840 µs"),
            (1_240, "1.24 ms"),
            (12_345, "12.3 ms"),
            (999_700, "1.00 s"),
            (125_000_000, "125 s"),
        ] {
            assert_eq!(duration(Duration::from_micros(micros)), text);
        }
        for (number, text) in [(7, "7 B"), (1_536, "1.50 KiB"), (14_147_483_648, "13.2 GiB")] {
            assert_eq!(bytes(number), text);
        }
    }
}
