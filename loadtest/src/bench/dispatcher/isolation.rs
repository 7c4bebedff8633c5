//! What one bad endpoint of many does to the others of its tenant, which share a dispatcher with it.

use super::{
    endpoints::{numbered, subscribe},
    latency::sent_in,
    scenario::{BAD_SHARE, Badness, ISOLATION_RATE, MANY_ENDPOINTS, Scenario},
    stage::{Stage, latency_figures, per_delivery},
};
use crate::{
    bench::{
        BenchError,
        figures::{Account, Figure, Found, Goal, Unit},
        installation::free_ports,
    },
    load::{self, Arrival, Length, Progress, Quantiles},
};
use socket2::{Domain, Socket, Type};
use std::sync::Arc;

/// The others' 99th percentile beside a bad endpoint, over that without one.
const RATIO_GOAL: Goal = Goal::AtMost(1.1);
/// Group of the endpoints that are well.
const OTHERS: &str = "others";
/// Group of the one that may be bad.
const ONE: &str = "one";
/// Types of their events.
const OTHERS_TYPE: &str = "load.others";
const ONE_TYPE: &str = "load.one";

/// One run: with a bad endpoint or without.
struct Seen {
    latency: Quantiles,
    cost: f64,
    account: Account,
    doubts: Vec<String>,
}

/// Measures the others without a bad endpoint, with each of the scenarios' ones, and without one again.
pub(super) async fn measure(
    stage: &mut Stage<'_>,
    scenarios: &[(Scenario, Badness)],
) -> Result<Vec<Found>, BenchError> {
    stage.dispatcher().await?;
    let tenant = stage.target.tenant.clone();
    for number in others() {
        let url = stage.sink.url(number, &format!("/ok/{number}"), OTHERS);
        subscribe(stage.target, &tenant, url, numbered(OTHERS_TYPE, number)).await?;
    }
    stage.warm_up(OTHERS_TYPE, others().collect(), OTHERS).await?;
    let before = with(stage, None, "isolation: without a bad endpoint").await?;
    let mut seen = Vec::new();
    for (scenario, badness) in scenarios {
        seen.push((*scenario, with(stage, Some(*badness), scenario.name).await?));
    }
    let after = with(stage, None, "isolation: without a bad endpoint, again").await?;
    let without = [&before, &after];
    Ok(seen.into_iter().map(|(scenario, seen)| found(stage, &scenario, seen, without)).collect())
}

fn others() -> std::ops::Range<u32> {
    1..MANY_ENDPOINTS
}

fn found(stage: &Stage<'_>, scenario: &Scenario, seen: Seen, without: [&Seen; 2]) -> Found {
    let p99 = without.map(|seen| seen.latency.p99 as f64);
    let mean = (p99[0] + p99[1]) / 2.0;
    let mut figures = vec![
        Figure::new("p99 ÷ without", Unit::Times, seen.latency.p99 as f64 / mean.max(1.0)).goal(RATIO_GOAL),
        Figure::new("p99 without, before", Unit::Micros, p99[0]),
        Figure::new("p99 without, after", Unit::Micros, p99[1]),
    ];
    figures.extend(latency_figures(seen.latency));
    figures.push(Figure::new("CPU-µs/event", Unit::CpuMicros, seen.cost));
    let costs = without.iter().map(|seen| seen.cost).sum::<f64>() / 2.0;
    figures.push(Figure::new("CPU-µs/event without", Unit::CpuMicros, costs));
    Found {
        name: scenario.name.to_owned(),
        title: scenario.title(stage.timing),
        figures,
        accounts: vec![seen.account],
        doubts: seen.doubts,
        failed: None,
    }
}

/// A run in which one endpoint is bad, or none is.
async fn with(stage: &mut Stage<'_>, badness: Option<Badness>, label: &str) -> Result<Seen, BenchError> {
    stage.sink.forget().await?;
    // Bound and not listening, so that nobody else listens there either.
    let silent = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    let [address] = free_ports()?;
    silent.bind(&address.into())?;
    let url = match badness.map(Badness::path) {
        None => stage.sink.url(0, "/ok/0", ONE),
        Some(Some(path)) => stage.sink.url(0, &format!("{path}/0"), ONE),
        Some(None) => format!("http://{address}/"),
    };
    let tenant = stage.target.tenant.clone();
    let subscription = subscribe(stage.target, &tenant, url, ONE_TYPE.to_owned()).await?;

    let length = Length::Time(stage.timing.isolation);
    let rate = |share: f64| Arrival::Open { rate: share * ISOLATION_RATE };
    let plan = stage.plan(OTHERS_TYPE, others().collect(), rate(1.0 - BAD_SHARE), length);
    let bad = stage.plan(ONE_TYPE, Vec::new(), rate(BAD_SHARE), length);
    let (progress, stop) = (Arc::new(Progress::default()), stage.stop.clone());
    let (run, sent) = tokio::join!(stage.measure(label, &plan), load::run(&bad, &progress, &stop));
    let (run, sent) = (run?, sent?);
    stage.wait_for_all(label, OTHERS, run.accepted).await?;

    let account = stage.account("for the other endpoints", OTHERS, sent_in(&run)).await?;
    let latency = stage.sink.group(OTHERS).await?.latency;
    // What is left for it is dropped or deferred, and disturbs nobody.
    stage.target.admin.delete_subscription(&tenant, &subscription).await?;
    let events = run.accepted + sent.report.totals.accepted;
    let cost = per_delivery(Some(run.server), events as f64);
    Ok(Seen { latency, cost, account, doubts: run.invalid_because })
}
