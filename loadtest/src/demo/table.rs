//! The demo's result as text.

use super::reconcile::{DeliveryLatency, Line};
use crate::{
    report::{count, duration, quantile, table},
    send::SendReport,
};

const HEADER: [&str; 14] = [
    "subscription",
    "accepted",
    "delivered",
    "retried",
    "deferred",
    "dead",
    "pending",
    "lost",
    "repeats",
    "bad sig.",
    "first p50",
    "first p99",
    "last p50",
    "last p99",
];

const LEGEND: &str = "\
accepted   acknowledged by ingest, and matched by the subscription
delivered  answered with a 2xx, by the receiver's ledger
retried    attempts that failed and were tried again, by the control plane's counts
deferred   attempts put off because too many others were waiting for the endpoint, by the same counts
dead       dead letters that the control plane lists
lost       acknowledged, but neither delivered nor dead nor pending
repeats    arrivals beyond those that the endpoint's behaviour explains
first      from sending the event to its first verified arrival
last       from sending the event to the arrival that was answered with a 2xx
";

/// The table, its legend, and the sentence about ingest.
pub fn render(lines: &[Line], sent: &SendReport) -> String {
    let mut rows: Vec<Vec<String>> = lines.iter().map(row).collect();
    rows.push(total(lines));
    format!("\n{}\n\n{}\n{LEGEND}", ingest_sentence(sent), table(&HEADER, &rows))
}

fn ingest_sentence(sent: &SendReport) -> String {
    let per_second = sent.tally.accepted as f64 / sent.elapsed.as_secs_f64().max(1e-6);
    format!(
        "Ingest acknowledged {} events in {} ({}/s), refused {}, never acknowledged {}; accept p50 {}, p99 {}.",
        count(sent.tally.accepted),
        duration(sent.elapsed),
        count(per_second as u64),
        count(sent.tally.refused.values().sum()),
        count(sent.tally.unacknowledged() + sent.tally.not_sent),
        quantile(&sent.latency, 0.5),
        quantile(&sent.latency, 0.99),
    )
}

fn row(line: &Line) -> Vec<String> {
    let numbers = numbers(line).map(count);
    let mut row = vec![line.name.to_owned()];
    row.extend(numbers);
    row.extend(latencies(&line.latency));
    row
}

fn total(lines: &[Line]) -> Vec<String> {
    let mut sums = [0; 9];
    let mut latency = DeliveryLatency::default();
    for line in lines {
        sums.iter_mut().zip(numbers(line)).for_each(|(sum, number)| *sum += number);
        // Histograms of the same bounds always add up.
        let _ = latency.first.add(&line.latency.first);
        let _ = latency.last.add(&line.latency.last);
    }
    let mut row = vec!["total".to_owned()];
    row.extend(sums.map(count));
    row.extend(latencies(&latency));
    row
}

fn numbers(line: &Line) -> [u64; 9] {
    [
        line.accepted,
        line.received.delivered,
        line.reported.retry,
        line.reported.deferred,
        line.dead_letters,
        line.pending(),
        line.lost(),
        line.received.repeats,
        line.received.invalid_signatures,
    ]
}

fn latencies(latency: &DeliveryLatency) -> [String; 4] {
    [
        quantile(&latency.first, 0.5),
        quantile(&latency.first, 0.99),
        quantile(&latency.last, 0.5),
        quantile(&latency.last, 0.99),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admin_client::Counts,
        demo::reconcile::Received,
        send::{latency_histogram, record::Tally},
    };
    use std::time::Duration;

    #[test]
    fn the_table_has_a_row_per_subscription_and_their_total() {
        let line = |name, delivered, dead| {
            let mut latency = DeliveryLatency::default();
            latency.first.saturating_record(4_000);
            Line {
                name,
                accepted: 1_000,
                received: Received { delivered, ..Received::default() },
                reported: Counts { delivered, retry: 3_000, dead, ..Counts::default() },
                dead_letters: dead,
                latency,
            }
        };
        let sent = SendReport {
            tally: Tally { accepted: 1_000, ..Tally::default() },
            elapsed: Duration::from_millis(500),
            latency: latency_histogram(),
        };
        let text = render(&[line("healthy", 1_000, 0), line("dead", 0, 1_000)], &sent);
        let find = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap().to_owned();
        let cells = |line: String| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            cells(find("total"))[1..10],
            ["2,000", "1,000", "6,000", "0", "1,000", "0", "0", "0", "0"]
        );
        assert_eq!(cells(find("healthy"))[10..14], ["4.00", "ms", "4.00", "ms"]);
        assert!(find("Ingest acknowledged").contains("1,000 events in 500 ms (2,000/s)"));
    }
}
