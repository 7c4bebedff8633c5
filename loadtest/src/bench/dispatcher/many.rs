//! What many subscriptions take: their memory, also with many endpoints active and bodies in flight, and whether events still find theirs.

use super::{
    config_records::{self, Wanted},
    endpoints::{numbered, subscribe},
    latency::sent_in,
    scenario::Scenario,
    stage::{Sent, Stage, latency_figures, per_delivery},
};
use crate::{
    bench::{
        BenchError,
        figures::{Figure, Found, Goal, Unit},
        process::{Reading, forget_peak},
    },
    load::{Arrival, Length},
    report::count,
};
use std::time::{Duration, Instant};

/// Memory that a dispatcher may take without any subscription, in bytes.
const BASE_BYTES: f64 = 100e6;
/// Memory that a subscription may take, in bytes.
const SUBSCRIPTION_BYTES: f64 = 1_500.0;
/// Events per second for the active endpoints.
const RATE: f64 = 2_000.0;
/// Longest time for all subscriptions to be read.
const PATIENCE: Duration = Duration::from_secs(120);
/// Memory that is not used any more is given back to the system within ten seconds.
const REST: Duration = Duration::from_secs(12);
/// Pause between two looks whether they are.
const PAUSE: Duration = Duration::from_millis(100);
const GROUP: &str = "many";
const EVENT_TYPE: &str = "load.many";
/// Endpoints that hold on to their requests, as many as are active, and their events.
const HELD_GROUP: &str = "held";
const HELD_TYPE: &str = "load.held";
const HELD_PATH: &str = "/delay/3s";
/// `data` of these, in bytes.
const HELD_BYTES: usize = 8 * 1024;

/// Publishes the subscriptions, starts the dispatcher, and sends events for a part of them.
pub(super) async fn measure(stage: &mut Stage<'_>, scenario: &Scenario) -> Result<Found, BenchError> {
    let target = stage.target;
    let (all, active) = (stage.timing.subscriptions, stage.timing.active);
    stage.live.update(format!("{}: publishing {}", scenario.name, count(all.into())));
    let url = stage.sink.url(0, "/ok/pattern", GROUP);
    let pattern = subscribe(target, &target.tenant, url, "load.pattern".to_owned()).await?;
    let held = active..(2 * active).min(all);
    let wanted = (0..all).map(|number| {
        let is_held = held.contains(&number);
        let (path, group, event_type) =
            if is_held { (HELD_PATH, HELD_GROUP, HELD_TYPE) } else { ("/ok", GROUP, EVENT_TYPE) };
        Wanted {
            // Those without events belong to other tenants, a hundred to each.
            tenant: (number >= active && !is_held).then_some(number / 100),
            url: stage.sink.url(number, &format!("{path}/{number}"), group),
            event_type: numbered(event_type, number),
        }
    });
    config_records::publish(&stage.bench.site.brokers, target, &pattern, wanted.collect()).await?;

    let begun = Instant::now();
    let pid = stage.dispatcher().await?;
    while stage.installation.metric("dispatcher", "floodway_dispatcher_subscriptions").await.unwrap_or(0.0)
        < f64::from(all)
    {
        if begun.elapsed() > PATIENCE {
            let reason = format!("{} subscriptions were not read in {} s", all, PATIENCE.as_secs());
            return Err(BenchError::Command { command: "floodway dispatcher".to_owned(), reason });
        }
        stage.installation.check().await?;
        tokio::time::sleep(PAUSE).await;
    }
    let loaded = begun.elapsed();
    let loading = Reading::of(pid).unwrap_or_default();
    // What loading left behind is given back to the system in time.
    tokio::time::sleep(stage.timing.warmup).await;
    let resting = Reading::of(pid).unwrap_or_default();

    let length = Length::Time(stage.timing.among_many);
    let plan = stage.plan(EVENT_TYPE, (0..active).collect(), Arrival::Open { rate: RATE }, length);
    let run = stage.measure(scenario.name, &plan).await?;
    let sent = sent_in(&run);
    stage.wait_for_all(scenario.name, GROUP, sent.acknowledged).await?;
    let latency = stage.sink.group(GROUP).await?.latency;

    tokio::time::sleep(stage.timing.warmup).await;
    let rested = Reading::of(pid).unwrap_or_default();
    let (holding, sent_held) = hold(stage, pid, held.collect()).await?;
    tokio::time::sleep(REST).await;
    let released = Reading::of(pid).unwrap_or_default();

    let allowed = BASE_BYTES + SUBSCRIPTION_BYTES * f64::from(all);
    let bytes = |name: &str, bytes: u64| Figure::new(name, Unit::Bytes, bytes as f64);
    let with = |what: &str, of: u64| bytes(&format!("{what} {} endpoints active", count(active.into())), of);
    let goal = Goal::AtMost(allowed);
    let mut figures = vec![
        bytes("RSS when they are loaded", resting.resident_bytes).goal(goal),
        bytes("peak RSS while they are loaded", loading.peak_bytes),
        with("peak RSS with", run.server.peak_bytes).goal(goal),
        with("RSS after", rested.resident_bytes).goal(goal),
        Figure::new("bodies of 8 KiB in flight at a time", Unit::Count, holding.bodies),
        bytes("peak RSS with these, beside the goal and their bytes", holding.peak_bytes)
            .goal(Goal::AtMost(allowed + holding.bodies * HELD_BYTES as f64)),
        bytes("RSS after them", released.resident_bytes).goal(goal),
        Figure::new("from the start until they are loaded", Unit::Micros, loaded.as_secs_f64() * 1e6),
        Figure::new("CPU-µs/delivery", Unit::CpuMicros, per_delivery(Some(run.server), run.accepted as f64)),
    ];
    figures.extend(latency_figures(latency));
    let accounts =
        vec![stage.account("all", GROUP, sent).await?, stage.account("held", HELD_GROUP, sent_held).await?];
    Ok(Found { figures, accounts, doubts: run.invalid_because, ..Found::default() })
}

/// The most that was seen while endpoints held on to their requests.
#[derive(Debug, Clone, Copy, Default)]
struct Holding {
    /// Bodies that the dispatcher had taken and not delivered yet.
    bodies: f64,
    /// Memory of the process, in bytes.
    peak_bytes: u64,
}

/// Sends an event to each of the endpoints that hold on to their requests, and looks until the dispatcher has none left.
async fn hold(stage: &mut Stage<'_>, pid: u32, numbers: Vec<u32>) -> Result<(Holding, Sent), BenchError> {
    let events = numbers.len() as u64;
    let mut plan = stage.plan(HELD_TYPE, numbers, Arrival::Closed, Length::Events(events));
    plan.workload.data_bytes = HELD_BYTES;
    forget_peak(pid);
    let sent = stage.fill(plan, events).await?;
    let (mut holding, begun) = (Holding::default(), Instant::now());
    loop {
        let mut bodies = 0.0;
        for gauge in ["floodway_dispatcher_in_flight", "floodway_dispatcher_queued"] {
            bodies += stage.installation.metric("dispatcher", gauge).await.unwrap_or(0.0);
        }
        holding.bodies = holding.bodies.max(bodies);
        holding.peak_bytes = Reading::of(pid).unwrap_or_default().peak_bytes;
        let arrived = stage.sink.group(HELD_GROUP).await?.distinct;
        if (arrived >= sent.acknowledged && bodies < 1.0) || begun.elapsed() > PATIENCE {
            return Ok((holding, sent));
        }
        stage.installation.check().await?;
        tokio::time::sleep(PAUSE).await;
    }
}
