//! The most that the dispatcher can do: a log full of events, and endpoints that answer at once.

use super::{
    endpoints::{numbered, subscribe},
    scenario::Scenario,
    stage::{Arrived, Sent, Stage, doubt, per_delivery},
};
use crate::{
    bench::{
        BenchError,
        figures::{Figure, Found, Goal, Unit, together},
        floor::{client::ClientFigures, run_floor},
        ingest::DATA_BYTES,
        process::{Sampler, Subject},
    },
    load::{Arrival, Length},
};
use std::time::Duration;

/// The part of the deliveries that rates and costs are over: without the beginning, when connections are made, and without
/// the end, when what was deferred comes back.
const MEASURED: (f64, f64) = (0.1, 0.9);
/// Deliveries a second with broker and sink on the same two cores.
const RATE_GOAL: Goal = Goal::AtLeast(15_000.0);
/// CPU microseconds of a delivery.
const COST_GOAL: Goal = Goal::AtMost(30.0);
/// Connections of the floor: as many requests at a time as one subscription may have.
const FLOOR_CONNECTIONS: usize = 64;
/// How long a floor may take beside its own times.
const FLOOR_PATIENCE: Duration = Duration::from_secs(30);

/// Measures it as often as the profile says, and the floor once.
pub(super) async fn measure(
    stage: &mut Stage<'_>,
    scenario: &Scenario,
    endpoints: u32,
    tls: bool,
) -> Result<Found, BenchError> {
    let event_type = format!("load.{}", scenario.name);
    let tenant = stage.target.tenant.clone();
    for number in 0..endpoints {
        let path = format!("/ok/{number}");
        let url = match tls {
            true => stage.sink.tls_url(&path, scenario.name),
            false => stage.sink.url(number, &path, scenario.name),
        };
        subscribe(stage.target, &tenant, url, numbered(&event_type, number)).await?;
    }
    let mut found = Found::default();
    let mut runs = Vec::new();
    for number in 1..=stage.timing.runs {
        let label = format!("{} {number}/{}", scenario.name, stage.timing.runs);
        runs.push(run(stage, scenario, &event_type, endpoints, &label, &mut found).await?);
    }
    found.figures = together(runs);
    let others = found.figure(OTHERS).map_or(&[][..], |figure| &figure.values);
    let most = others.iter().copied().fold(0.0, f64::max);
    found.doubts.extend(doubt(most / 100.0));
    if !tls && endpoints == 1 {
        let floor = floor(stage).await?;
        let cost = floor.micros_per_delivery().unwrap_or(0.0);
        let own = found.figure(COST).and_then(Figure::median).unwrap_or(0.0);
        found.figures.push(Figure::new("CPU-µs/request of a bare client", Unit::CpuMicros, cost));
        let rate = floor.delivered as f64 / floor.seconds.max(1e-6);
        found.figures.push(Figure::new("requests/s of a bare client", Unit::PerSecond, rate));
        found.figures.push(Figure::new("÷ bare client", Unit::Times, own / cost.max(1e-6)));
    }
    if tls {
        // What TLS costs is told; nothing is asked of it.
        found.figures.iter_mut().for_each(|figure| figure.goal = None);
    }
    Ok(found)
}

const COST: &str = "CPU-µs/delivery";
const OTHERS: &str = "CPU time of others";

async fn run(
    stage: &mut Stage<'_>,
    scenario: &Scenario,
    event_type: &str,
    endpoints: u32,
    label: &str,
    found: &mut Found,
) -> Result<Vec<Figure>, BenchError> {
    stage.installation.stop_role("dispatcher").await;
    stage.sink.forget().await?;
    let numbers: Vec<u32> = (0..endpoints).collect();
    let mut plan = stage.plan(event_type, numbers, Arrival::Closed, Length::Events(stage.timing.events));
    plan.workload.stamped = false;
    let sent = stage.fill(plan, stage.timing.events).await?;

    stage.installation.spawn_role("dispatcher")?;
    let sampler = Sampler::start(stage.watched(), None)?;
    let arrived = stage.wait_for_all(label, scenario.name, sent.acknowledged).await;
    let recording = sampler.stop();
    let arrived = arrived?;
    let deferred = stage.installation.metric("dispatcher", "floodway_dispatcher_deferred_total").await;
    found.accounts.push(stage.account(label, scenario.name, sent).await?);

    let Some(window) = Window::of(&arrived, sent) else {
        let reason = "fewer than nine tenths of the events were delivered".to_owned();
        return Err(BenchError::Command { command: label.to_owned(), reason });
    };
    let Window { from, until, number } = window;
    let seconds = (until - from).as_secs_f64();
    let usage = |subject| recording.usage(subject, from, until);
    let peak = usage(Subject::Server).map_or(0, |usage| usage.peak_bytes);
    let cost = |name: &str, subject| Figure::new(name, Unit::CpuMicros, per_delivery(usage(subject), number));
    let others = stage.others(&recording, from, until);
    let whole = arrived
        .0
        .last()
        .zip(arrived.reached(1.0))
        .map_or(0.0, |(last, first)| (last.0 - first.0).as_secs_f64());
    Ok(vec![
        Figure::new("deliveries/s", Unit::PerSecond, number / seconds).goal(RATE_GOAL),
        cost(COST, Subject::Server).goal(COST_GOAL),
        Figure::new("peak RSS", Unit::Bytes, peak as f64),
        cost("Kafka µs/delivery", Subject::Broker),
        cost("sink µs/delivery", Subject::Sink),
        cost("retry scheduler µs/delivery", Subject::Scheduler),
        Figure::new(OTHERS, Unit::Percent, others * 100.0),
        Figure::new("deferred", Unit::Count, deferred.unwrap_or(0.0)),
        Figure::new("from the first to the last", Unit::Micros, whole * 1e6),
    ])
}

/// The part of the deliveries that is measured.
struct Window {
    from: std::time::Instant,
    until: std::time::Instant,
    number: f64,
}

impl Window {
    fn of(arrived: &Arrived, sent: Sent) -> Option<Self> {
        let all = sent.acknowledged as f64;
        let (from, first) = arrived.reached((MEASURED.0 * all).max(1.0))?;
        let (until, last) = arrived.reached(MEASURED.1 * all)?;
        // One look that sees everything says nothing of how long it took.
        (until > from && last > first).then(|| Self { from, until, number: (last - first) as f64 })
    }
}

/// A bare client against the same sink.
async fn floor(stage: &mut Stage<'_>) -> Result<ClientFigures, BenchError> {
    stage.live.update("floor of the client".to_owned());
    let log = stage.bench.site.logs.join("floor-client.log");
    let seconds = |duration: Duration| duration.as_secs_f64().to_string();
    let url = stage.sink.url(0, "/ok/floor", "floor");
    let options = [
        ("--url", url),
        ("--connections", FLOOR_CONNECTIONS.to_string()),
        ("--bytes", DATA_BYTES.to_string()),
        ("--warmup", seconds(stage.timing.warmup / 2)),
        ("--seconds", seconds(stage.timing.floor)),
    ];
    let limit = stage.timing.warmup + stage.timing.floor + FLOOR_PATIENCE;
    let figures = run_floor(&stage.bench.loadtest, "client", &options, &log, limit).await;
    stage.sink.forget().await?;
    figures
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn the_measured_part_is_without_the_first_and_the_last_tenth() {
        let begin = Instant::now();
        let at = |second| begin + Duration::from_secs(second);
        let sent = Sent { acknowledged: 100, unknown: 0 };
        let arrived = Arrived(vec![(at(0), 0), (at(1), 10), (at(2), 60), (at(3), 90), (at(9), 100)]);
        let window = Window::of(&arrived, sent).unwrap();
        assert_eq!((window.from, window.until), (at(1), at(3)));
        assert!((window.number - 80.0).abs() < 1e-9);
        assert!(Window::of(&Arrived(vec![(at(0), 0), (at(1), 100)]), sent).is_none());
        assert!(Window::of(&Arrived(vec![(at(0), 0), (at(1), 10), (at(2), 80)]), sent).is_none());
    }
}
