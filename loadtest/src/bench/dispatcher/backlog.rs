//! What another tenant's backlog for an endpoint that hangs does to a tenant whose endpoint is well: while it is passed over,
//! and when it lies with the retry scheduler. And how fast the dispatcher passes it over when it need not share its CPUs with the
//! scheduler and PostgreSQL, which store it meanwhile.

use super::{
    endpoints::subscribe,
    scenario::Scenario,
    stage::{Sent, Stage},
};
use crate::{
    bench::{
        BenchError,
        figures::{Figure, Found, Goal, Unit},
        installation::wait_until_accepting,
        process::{Sampler, Subject},
        topics::Growth,
    },
    load::{Arrival, Length},
    report::count,
};
use std::time::{Duration, Instant};

/// Records a second that are passed to the retry scheduler.
const SKIM_GOAL: Goal = Goal::AtLeast(100_000.0);
/// Longest wait of a new event beside a backlog that lies with the retry scheduler, in microseconds.
const WAIT_GOAL: Goal = Goal::AtMost(1_000_000.0);
/// Events per second of the tenant that is well.
const RATE: f64 = 100.0;
/// They are sent in pieces of this time, until the backlog has been passed over.
const PIECE: Duration = Duration::from_secs(2);
/// The part of the backlog over which its rate is told.
const MEASURED: (f64, f64) = (0.05, 0.95);
/// Between two looks at how much was passed on.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Longest time for the backlog to be passed over.
const PATIENCE: Duration = Duration::from_secs(180);
/// Group and type of the tenant that is well.
const WELL: &str = "well";
const WELL_TYPE: &str = "load.well";
const HUNG_TYPE: &str = "load.hung";

/// Fills the log, starts the dispatcher, and looks.
pub(super) async fn measure(stage: &mut Stage<'_>, scenario: &Scenario) -> Result<Found, BenchError> {
    let target = stage.target;
    let other = target.admin.create_tenant("backlog").await?;
    let key = target.admin.create_api_key(&other, "backlog").await?.key;
    wait_until_accepting(&target.ingest_url, &key).await?;
    subscribe(target, &other, stage.sink.url(1, "/hang/0", "hung"), HUNG_TYPE.to_owned()).await?;
    let well = target.tenant.clone();
    subscribe(target, &well, stage.sink.url(0, "/ok/0", WELL), WELL_TYPE.to_owned()).await?;

    let backlog = fill(stage, &key).await?;

    let growth = Growth::watch(&stage.bench.site.brokers, &target.outcomes_topic())?;
    stage.installation.spawn_role("dispatcher")?;
    let sampler = Sampler::start(stage.watched(), None)?;
    stage.installation.wait_until_ready("dispatcher").await?;
    let begun = Instant::now();
    let mut sent = Sent::default();
    while growth.added() < (MEASURED.1 * backlog as f64) as u64 && begun.elapsed() < PATIENCE {
        stage.live.update(format!(
            "{}: {} of {} passed on",
            scenario.name,
            count(growth.added()),
            count(backlog)
        ));
        sent = sent.plus(beside(stage, PIECE).await?);
        stage.installation.check().await?;
    }
    stage.wait_for_all(scenario.name, WELL, sent.acknowledged).await?;
    let during = stage.sink.group(WELL).await?.latency;
    let mut accounts = vec![stage.account("while the backlog is passed over", WELL, sent).await?];
    let passed = growth.stop();

    stage.sink.forget().await?;
    let sent = beside(stage, stage.timing.beside_backlog).await?;
    stage.wait_for_all(scenario.name, WELL, sent.acknowledged).await?;
    let after = stage.sink.group(WELL).await?.latency;
    accounts.push(stage.account("while it lies with the retry scheduler", WELL, sent).await?);
    let until = Instant::now();
    let recording = sampler.stop();
    let usage = recording.usage(Subject::Server, begun, until).unwrap_or_default();

    let alone = without_scheduler(stage, scenario, &key).await?;
    let rate = passed.rate(MEASURED, backlog as f64);
    let time = |name: &str, micros: u64| Figure::new(name, Unit::Micros, micros as f64);
    let mut figures = Vec::new();
    figures
        .extend(rate.map(|rate| Figure::new("records/s passed on", Unit::PerSecond, rate).goal(SKIM_GOAL)));
    figures.extend([
        time("longest wait beside the retry scheduler's backlog", after.max).goal(WAIT_GOAL),
        time("p50 of it", after.p50),
        time("p99 of it", after.p99),
        time("longest wait while it is passed over", during.max),
        time("p50 of that", during.p50),
        time("p99 of that", during.p99),
        Figure::new("peak RSS", Unit::Bytes, usage.peak_bytes as f64),
    ]);
    figures.extend(
        alone.map(|rate| {
            Figure::new("records/s passed on, the retry scheduler stopped", Unit::PerSecond, rate)
        }),
    );
    let missed =
        rate.is_none().then(|| "the backlog was not passed over in time, so there is no rate".to_owned());
    Ok(Found { figures, accounts, doubts: missed.into_iter().collect(), ..Found::default() })
}

/// Fills the log with events for the endpoint that hangs, and returns how many they are.
async fn fill(stage: &mut Stage<'_>, key: &str) -> Result<u64, BenchError> {
    let mut plan = stage.plan(HUNG_TYPE, Vec::new(), Arrival::Closed, Length::Events(stage.timing.backlog));
    plan.key = key.to_owned();
    plan.workload.stamped = false;
    Ok(stage.fill(plan, stage.timing.backlog).await?.acknowledged)
}

/// Records a second that the dispatcher passes on while nobody stores them.
async fn without_scheduler(
    stage: &mut Stage<'_>,
    scenario: &Scenario,
    key: &str,
) -> Result<Option<f64>, BenchError> {
    stage.installation.stop_role("dispatcher").await;
    stage.installation.stop_role("retry-scheduler").await;
    let backlog = fill(stage, key).await? as f64;
    let growth = Growth::watch(&stage.bench.site.brokers, &stage.target.outcomes_topic())?;
    stage.installation.spawn_role("dispatcher")?;
    let begun = Instant::now();
    while (growth.added() as f64) < MEASURED.1 * backlog && begun.elapsed() < PATIENCE {
        let passed = count(growth.added());
        stage.live.update(format!("{}, the retry scheduler stopped: {passed} passed on", scenario.name));
        stage.installation.check().await?;
        tokio::time::sleep(LOOK_PAUSE).await;
    }
    Ok(growth.stop().rate(MEASURED, backlog))
}

/// Events of the tenant that is well, for some time.
async fn beside(stage: &mut Stage<'_>, time: Duration) -> Result<Sent, BenchError> {
    let plan = stage.plan(WELL_TYPE, Vec::new(), Arrival::Open { rate: RATE }, Length::Time(time));
    stage.send(&plan).await
}
