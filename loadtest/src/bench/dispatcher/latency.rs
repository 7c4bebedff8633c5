//! How long an event takes from its producer to its subscriber while the dispatcher has room to spare, and what it costs
//! when there is nothing to do.

use super::{
    endpoints::subscribe,
    scenario::Scenario,
    stage::{Sent, Stage, latency_figures, per_delivery},
};
use crate::{
    bench::{
        BenchError,
        figures::{Figure, Found, Goal, Unit},
        process::{Sampler, Subject},
        result::Run,
    },
    load::{Arrival, Length},
};
use std::time::Instant;

/// Half of the events arrive within this, in microseconds.
const P50_GOAL: Goal = Goal::AtMost(4_000.0);
/// 99 % do.
const P99_GOAL: Goal = Goal::AtMost(20_000.0);
/// Share of a core that an idle dispatcher takes, in per cent.
const IDLE_GOAL: Goal = Goal::AtMost(1.0);

/// Sends events at a rate and sees when they arrive.
pub(super) async fn at_rate(
    stage: &mut Stage<'_>,
    scenario: &Scenario,
    rate: u32,
) -> Result<Found, BenchError> {
    let event_type = format!("load.{}", scenario.name);
    let tenant = stage.target.tenant.clone();
    stage.dispatcher().await?;
    let url = stage.sink.url(0, &format!("/ok/{rate}"), scenario.name);
    subscribe(stage.target, &tenant, url, event_type.clone()).await?;
    stage.warm_up(&event_type, Vec::new(), scenario.name).await?;

    let length = Length::Time(stage.timing.latency);
    let plan = stage.plan(&event_type, Vec::new(), Arrival::Open { rate: f64::from(rate) }, length);
    let run = stage.measure(scenario.name, &plan).await?;
    let sent = sent_in(&run);
    stage.wait_for_all(scenario.name, scenario.name, sent.acknowledged).await?;
    let latency = stage.sink.group(scenario.name).await?.latency;

    let mut figures = latency_figures(latency);
    for (name, goal) in [("p50", P50_GOAL), ("p99", P99_GOAL)] {
        figures.iter_mut().filter(|figure| figure.name == name).for_each(|figure| figure.goal = Some(goal));
    }
    figures.extend([
        Figure::new("until ingest's answer, p50", Unit::Micros, run.latency.p50 as f64),
        Figure::new("until ingest's answer, p99", Unit::Micros, run.latency.p99 as f64),
        Figure::new("events/s acknowledged", Unit::PerSecond, run.events_per_second),
        Figure::new("CPU-µs/delivery", Unit::CpuMicros, per_delivery(Some(run.server), run.accepted as f64)),
        Figure::new("RSS", Unit::Bytes, run.server.resident_bytes as f64),
    ]);
    let accounts = vec![stage.account("all", scenario.name, sent).await?];
    Ok(Found { figures, accounts, doubts: run.invalid_because, ..Found::default() })
}

/// What ingest made of the events of a run.
pub(super) fn sent_in(run: &Run) -> Sent {
    let open = ["unknown", "transport"];
    let unknown = open.iter().filter_map(|&class| run.errors.get(class)).sum();
    Sent { acknowledged: run.accepted, unknown }
}

/// Looks at the dispatcher while nothing happens.
pub(super) async fn idle(stage: &mut Stage<'_>) -> Result<Found, BenchError> {
    stage.dispatcher().await?;
    stage.live.update("idle".to_owned());
    // What the scenario before has left to commit is none of this one's.
    tokio::time::sleep(stage.timing.warmup).await;
    let sampler = Sampler::start(stage.watched(), None)?;
    let from = Instant::now();
    tokio::time::sleep(stage.timing.idle).await;
    let until = Instant::now();
    let recording = sampler.stop();
    stage.installation.check().await?;
    let usage = recording.usage(Subject::Server, from, until).unwrap_or_default();
    let percent = usage.cpu_micros() / (until - from).as_secs_f64() / 1e4;
    let figures = vec![
        Figure::new("CPU of one core", Unit::Percent, percent).goal(IDLE_GOAL),
        Figure::new("RSS", Unit::Bytes, usage.resident_bytes as f64),
    ];
    Ok(Found { figures, ..Found::default() })
}
