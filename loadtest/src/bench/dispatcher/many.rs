//! What many subscriptions take: their memory, and whether events still find theirs.

use super::{
    config_records::{self, Wanted},
    endpoints::{numbered, subscribe},
    latency::sent_in,
    scenario::Scenario,
    stage::{Stage, latency_figures, per_delivery},
};
use crate::{
    bench::{
        BenchError,
        figures::{Figure, Found, Goal, Unit},
        process::Reading,
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
/// Pause between two looks whether they are.
const PAUSE: Duration = Duration::from_millis(100);
const GROUP: &str = "many";
const EVENT_TYPE: &str = "load.many";

/// Publishes the subscriptions, starts the dispatcher, and sends events for a part of them.
pub(super) async fn measure(stage: &mut Stage<'_>, scenario: &Scenario) -> Result<Found, BenchError> {
    let target = stage.target;
    let (all, active) = (stage.timing.subscriptions, stage.timing.active);
    stage.live.update(format!("{}: publishing {}", scenario.name, count(all.into())));
    let url = stage.sink.url(0, "/ok/pattern", GROUP);
    let pattern = subscribe(target, &target.tenant, url, "load.pattern".to_owned()).await?;
    let wanted = (0..all).map(|number| Wanted {
        // Those without events belong to other tenants, a hundred to each.
        tenant: (number >= active).then_some(number / 100),
        url: stage.sink.url(number, &format!("/ok/{number}"), GROUP),
        event_type: numbered(EVENT_TYPE, number),
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

    let goal = Goal::AtMost(BASE_BYTES + SUBSCRIPTION_BYTES * f64::from(all));
    let bytes = |name: &str, bytes: u64| Figure::new(name, Unit::Bytes, bytes as f64);
    let mut figures = vec![
        bytes("RSS when they are loaded", resting.resident_bytes).goal(goal),
        bytes("peak RSS while they are loaded", loading.peak_bytes),
        bytes("peak RSS with events", run.server.peak_bytes),
        Figure::new("from the start until they are loaded", Unit::Micros, loaded.as_secs_f64() * 1e6),
        Figure::new("CPU-µs/delivery", Unit::CpuMicros, per_delivery(Some(run.server), run.accepted as f64)),
    ];
    figures.extend(latency_figures(latency));
    let accounts = vec![stage.account("all", GROUP, sent).await?];
    Ok(Found { figures, accounts, doubts: run.invalid_because, ..Found::default() })
}
