//! How late retries are that become due one after the other, and beside a burst of them for an endpoint that is dead.

use super::{
    arrivals::{Arrivals, BURST_MS, now_ms},
    outcomes::{OutcomesProducer, outcome},
    rows::fill,
    scenario::{BESIDE_RATE, LATENESS_PENDING, LATENESS_RATE, Shape},
    stage::{ROLE, Stage},
    track::Track,
};
use crate::{
    bench::{
        BenchError,
        figures::{Figure, Found, Goal, Unit},
        process::forget_peak,
    },
    report::count,
};
use std::time::Duration;

/// Lateness of 99 % of the retries, in microseconds.
const LATENESS_GOAL: Goal = Goal::AtMost(250_000.0);
/// Memory of the scheduler beside a burst: its bounds are per shard, and there are eight.
const MEMORY_GOAL: Goal = Goal::AtMost(1024.0 * 1024.0 * 1024.0);
/// From filling the table to the first retry's time: enough to fill it and to start.
const HEAD_START: Duration = Duration::from_secs(8);
/// Retries of the first seconds are not in the figures: the scheduler has just started.
const SETTLING: Duration = Duration::from_secs(2);
/// Pause between two pieces of outcomes.
const PIECE: Duration = Duration::from_millis(10);
/// Delay of the retries beside a burst.
const BESIDE_DELAY: Duration = Duration::from_secs(2);
/// Outcomes of the burst a second: more than a dispatcher delivers on the machine's two cores, so that none writes them faster.
const BURST_RATE: u64 = 40_000;
/// For so long after a burst became due, retries beside it are measured.
const AFTERWARDS: Duration = Duration::from_secs(40);

/// Retries that become due one after the other, while as many are stored.
pub(super) async fn lateness(stage: &mut Stage<'_>) -> Result<Found, BenchError> {
    let spread = Duration::from_secs_f64(LATENESS_PENDING as f64 / LATENESS_RATE as f64);
    let start = stage.now_micros().await? + micros(HEAD_START);
    let shards = u64::try_from(stage.partitions).unwrap_or(1);
    let step = 1_000_000 / i64::try_from(LATENESS_RATE).unwrap_or(1);
    let place =
        |id: u64| (i32::try_from(id % shards).unwrap_or(0), start + i64::try_from(id).unwrap_or(0) * step);
    fill(stage, LATENESS_PENDING, true, place).await?;

    let end = start + micros(spread) + micros(stage.sizes.lateness);
    let arrivals = Arrivals::watch(&stage.bench.site.brokers, &stage.ground.prefix, stage.partitions)?;
    stage.installation.start_role(ROLE).await?;
    forget_peak(stage.installation.pid(ROLE).unwrap_or_default());
    let producer = OutcomesProducer::new(&stage.bench.site.brokers, &stage.ground.prefix, stage.partitions)?;
    let (mut track, mut number) = (Track::default(), 0);
    loop {
        let now = stage.now_micros().await?;
        if now >= end + micros(SETTLING) {
            break;
        }
        // As many are written as have become due, each for the time when those that are there end.
        let wanted = u64::try_from((now - start) / step).unwrap_or(0);
        while number < wanted && now < end {
            let at = start + i64::try_from(number).unwrap_or(0) * step;
            producer
                .write(number, &outcome(Shape::Retry, number, millis(at), millis(at + micros(spread))))?;
            number += 1;
        }
        if now >= start + micros(SETTLING) && now < end {
            track.0.push(stage.look(number));
        }
        stage.live.update(format!("lateness: {} stored, {} s left", count(number), (end - now) / 1_000_000));
        stage.installation.check().await?;
        tokio::time::sleep(PIECE).await;
    }
    producer.flush()?;
    let due = millis(start + micros(SETTLING))..millis(end);
    let wanted = (due.end - due.start) / 1_000 * LATENESS_RATE;
    let late = arrivals.stop()?.lateness(due);
    let mut figures = vec![
        late.at_due("lateness at `due`, p50", 0.5),
        late.at_due("lateness at `due`, p99", 0.99).goal(LATENESS_GOAL),
        late.at_due("lateness at `due`, longest", 1.0),
        late.at_consumer("lateness at a consumer of `due`, p50", 0.5),
        late.at_consumer("lateness at a consumer of `due`, p99", 0.99),
        Figure::new("retries measured", Unit::Count, late.number() as f64),
        Figure::new("retries too early", Unit::Count, late.early as f64).goal(Goal::AtMost(0.0)),
    ];
    if let Some(window) = track.whole() {
        let core = |name: &str, micros| Figure::new(name, Unit::Percent, window.core_percent(micros));
        figures.extend([
            core("scheduler's CPU, of one core", window.scheduler_micros),
            core("PostgreSQL's CPU, of one core", window.postgres_micros),
        ]);
    }
    figures.push(Figure::new("peak RSS", Unit::Bytes, track.peak_bytes() as f64));
    let missing = wanted.saturating_sub(late.number());
    let doubt = format!("{missing} of about {} retries did not arrive in time to be counted", count(wanted));
    let doubts = (missing > wanted / 100).then_some(doubt).into_iter().collect();
    Ok(Found { figures, doubts, ..Found::default() })
}

/// Deferrals of very many events for a dead endpoint, due as fast as they came, beside retries of another subscription.
pub(super) async fn beside_burst(stage: &mut Stage<'_>) -> Result<Found, BenchError> {
    let burst = stage.sizes.outage_events;
    let arrivals = Arrivals::watch(&stage.bench.site.brokers, &stage.ground.prefix, stage.partitions)?;
    let producer = OutcomesProducer::new(&stage.bench.site.brokers, &stage.ground.prefix, stage.partitions)?;
    stage.installation.start_role(ROLE).await?;
    forget_peak(stage.installation.pid(ROLE).unwrap_or_default());
    let from = now_ms();
    let stored_by = from + 1_000 * burst / BURST_RATE + millis(micros(HEAD_START));
    let until = stored_by + millis(micros(AFTERWARDS));
    // What the event says of itself marks the burst; when it is due is up to the outcome. Numbers a hundred apart have one subscription.
    // All wait equally long from when they were written, as deferrals of a dead endpoint do: they become due as fast as they came.
    let make = |number: u64| {
        outcome(Shape::Retry, 100 * number, from, stored_by).replace(&mark(stored_by), &mark(BURST_MS))
    };
    let (mut track, mut failed, mut number, mut all_at) = (Track::default(), 0, 0, None);
    while now_ms() < until + millis(micros(SETTLING)) {
        let now = now_ms();
        while failed < burst.min((now - from) * BURST_RATE / 1_000) {
            producer.write(failed, &make(failed))?;
            failed += 1;
        }
        while number < (now.min(until) - from) * BESIDE_RATE / 1_000 {
            let due = now + millis(micros(BESIDE_DELAY));
            // None of the burst's: an equal cause would be a repeat.
            let others = 100 * burst + number;
            producer.write(others, &outcome(Shape::Retry, others, now, due))?;
            number += 1;
        }
        if arrivals.burst() >= burst {
            all_at.get_or_insert(now);
        }
        track.0.push(stage.look(arrivals.burst()));
        stage.live.update(format!("{} of {} of the burst are due", count(arrivals.burst()), count(burst)));
        stage.installation.check().await?;
        tokio::time::sleep(PIECE).await;
    }
    producer.flush()?;
    let seen = arrivals.stop()?;
    let span = seen.burst_span.map_or(0, |(first, last)| last - first);
    let before = seen.lateness(from + millis(micros(BESIDE_DELAY + SETTLING))..stored_by);
    let after = seen.lateness(stored_by..until);
    let time = |name: &str, ms: u64| Figure::new(name, Unit::Micros, ms as f64 * 1_000.0);
    let mut figures = vec![
        before.at_due("others' lateness while the burst is stored, p99", 0.99).goal(LATENESS_GOAL),
        before.at_due("the same, longest", 1.0),
        after.at_due("others' lateness once the burst is due, p50", 0.5),
        after.at_due("others' lateness once the burst is due, p99", 0.99),
        after.at_due("others' lateness once the burst is due, longest", 1.0),
        Figure::new("retries of others measured", Unit::Count, (before.number() + after.number()) as f64),
        Figure::new(
            "burst's records/s on `due`",
            Unit::PerSecond,
            seen.burst as f64 * 1_000.0 / span.max(1) as f64,
        ),
        Figure::new("burst's records out of order", Unit::Count, seen.out_of_order as f64)
            .goal(Goal::AtMost(0.0)),
        Figure::new("peak RSS", Unit::Bytes, track.peak_bytes() as f64).goal(MEMORY_GOAL),
    ];
    figures
        .extend(all_at.map(|at| time("until all of the burst was on `due`", at.saturating_sub(stored_by))));
    let missing = burst.saturating_sub(seen.burst);
    let doubt = format!("{} of the burst did not come to be due in time", count(missing));
    Ok(Found { figures, doubts: (missing > 0).then_some(doubt).into_iter().collect(), ..Found::default() })
}

fn mark(due_ms: u64) -> String {
    format!("{}{due_ms:013}", super::outcomes::DUE_ATTRIBUTE)
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

fn millis(micros: i64) -> u64 {
    u64::try_from(micros / 1_000).unwrap_or(0)
}
