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
        figures::{Account, Figure, Found, Goal, Unit, together},
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
#[derive(Clone)]
struct Seen {
    latency: Quantiles,
    /// CPU microseconds of the dispatcher per event.
    cost: f64,
    /// Share of the machine's CPU time that was not idle.
    busy: f64,
    account: Account,
    doubts: Vec<String>,
}

/// A run with a bad endpoint, and those without one before and after it.
struct Compared {
    bad: Seen,
    without: [Seen; 2],
}

/// Measures the others with each of the scenarios' bad endpoints, in as many rounds as the profile says. A run without one precedes and
/// follows each of these, and it is compared with these two: what the machine does in a minute tells nothing about the next.
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
    let rounds = stage.timing.runs;
    let mut runs: Vec<Vec<Compared>> = scenarios.iter().map(|_| Vec::new()).collect();
    let mut before = with(stage, None, "isolation: without a bad endpoint").await?;
    for round in 1..=rounds {
        for ((scenario, badness), runs) in scenarios.iter().zip(&mut runs) {
            let label = format!("{} {round}/{rounds}", scenario.name);
            let bad = with(stage, Some(*badness), &label).await?;
            let after = with(stage, None, "isolation: without a bad endpoint").await?;
            runs.push(Compared { bad, without: [before, after.clone()] });
            before = after;
        }
    }
    Ok(scenarios.iter().zip(runs).map(|((scenario, _), runs)| found(stage, scenario, runs)).collect())
}

fn others() -> std::ops::Range<u32> {
    1..MANY_ENDPOINTS
}

fn found(stage: &Stage<'_>, scenario: &Scenario, runs: Vec<Compared>) -> Found {
    let figures = together(runs.iter().map(Compared::figures).collect());
    let mut found = Found {
        name: scenario.name.to_owned(),
        title: scenario.title(stage.timing),
        figures,
        ..Found::default()
    };
    for run in runs {
        found.accounts.push(run.bad.account);
        found.doubts.extend(run.bad.doubts);
    }
    found.doubts.dedup();
    found
}

impl Compared {
    fn figures(&self) -> Vec<Figure> {
        let p99 = self.without.each_ref().map(|seen| seen.latency.p99 as f64);
        let mean = f64::midpoint(p99[0], p99[1]).max(1.0);
        let costs = self.without.each_ref().map(|seen| seen.cost);
        let mut figures = vec![
            Figure::new("p99 ÷ without", Unit::Times, self.bad.latency.p99 as f64 / mean).goal(RATIO_GOAL),
            Figure::new("p99 without, mean of before and after", Unit::Micros, mean),
            Figure::new("p99 without, after ÷ before", Unit::Times, p99[1] / p99[0].max(1.0)),
        ];
        figures.extend(latency_figures(self.bad.latency));
        figures.push(Figure::new("CPU-µs/event", Unit::CpuMicros, self.bad.cost));
        let without = f64::midpoint(costs[0], costs[1]);
        figures.push(Figure::new("CPU-µs/event without", Unit::CpuMicros, without));
        let busy = |seen: &Seen| seen.busy * 100.0;
        figures.push(Figure::new("machine busy", Unit::Percent, busy(&self.bad)));
        let without = f64::midpoint(busy(&self.without[0]), busy(&self.without[1]));
        figures.push(Figure::new("machine busy without", Unit::Percent, without));
        figures
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
    Ok(Seen { latency, cost, busy: run.machine_busy, account, doubts: run.invalid_because })
}
