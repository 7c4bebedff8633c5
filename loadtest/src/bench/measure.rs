//! One run of the generator with readings of all processes around it.

use super::{
    BenchError,
    disk::{DiskFull, RESERVE_BYTES, Room},
    process::{Recording, Sampler, Subject, Watched, forget_peak},
    result::{Reconciled, Run, SecondOf},
};
use crate::{
    live_line::LiveLine,
    load::{self, Arrival, Errors, Ledger, LoadPlan, LoadReport, Outcome, Progress, Reconciliation},
    report::{count, duration},
};
use hdrhistogram::Histogram;
use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// Pause between two updates of the live line.
const PAUSE: Duration = Duration::from_millis(500);
/// While a run goes on, the disk may get this full before the run is ended: half of what was to stay free.
const ALARM_BYTES: u64 = RESERVE_BYTES / 2;
/// Shares of the requests whose latency is told.
const SHARES: [f64; 16] =
    [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9995, 0.9999, 1.0];

/// What goes on around a run.
pub struct Observer<'a> {
    /// Processes to read, the generator's own aside.
    pub watched: Vec<Watched>,
    /// The disk that is not to get full.
    pub kafka_data: Option<&'a Path>,
    /// Where progress is shown.
    pub live: &'a mut LiveLine,
    /// Ends the run early.
    pub stop: &'a CancellationToken,
}

/// What a run leaves.
pub struct Measured {
    /// Its figures.
    pub run: Run,
    /// Every event's end, if the plan asked for it.
    pub ledger: Option<Ledger>,
}

impl Observer<'_> {
    /// Runs a plan, with what it is called on the live line.
    ///
    /// # Errors
    /// When it cannot run, is interrupted, or the disk gets full.
    pub async fn measure(&mut self, label: &str, plan: &LoadPlan) -> Result<Measured, BenchError> {
        let generator = Watched { subject: Subject::Generator, pid: std::process::id() };
        let watched: Vec<Watched> = self.watched.iter().copied().chain([generator]).collect();
        watched.iter().filter(|watched| watched.subject != Subject::Broker).for_each(|w| forget_peak(w.pid));
        let progress = Arc::new(Progress::default());
        let sampler = Sampler::start(watched, Some(Arc::clone(&progress)))?;
        let begun = Instant::now();
        let ended = self.watch(label, plan, &progress).await;
        let recording = sampler.stop();
        let outcome = ended?;
        let from = recording.first_sent.unwrap_or(begun) + plan.warmup;
        let run = figures(&outcome.report, &outcome.latency, plan, &recording, from);
        Ok(Measured { run, ledger: outcome.ledger })
    }

    async fn watch(
        &mut self,
        label: &str,
        plan: &LoadPlan,
        progress: &Arc<Progress>,
    ) -> Result<Outcome, BenchError> {
        let mut running = std::pin::pin!(load::run(plan, progress, self.stop));
        let mut ticks = tokio::time::interval(PAUSE);
        let mut last = (Instant::now(), 0);
        loop {
            tokio::select! {
                outcome = &mut running => {
                    let outcome = outcome?;
                    return if self.stop.is_cancelled() { Err(BenchError::Interrupted) } else { Ok(outcome) };
                }
                _ = ticks.tick() => {
                    let now = (Instant::now(), progress.accepted.load(Relaxed));
                    self.live.update(line(label, progress, last, now));
                    last = now;
                    // Leaving drops the run, which ends it.
                    self.check_disk(label)?;
                }
            }
        }
    }

    fn check_disk(&self, label: &str) -> Result<(), DiskFull> {
        let free = self.kafka_data.and_then(|path| Room::of(path).ok()).map(|room| room.free_bytes);
        match free {
            Some(available) if available < ALARM_BYTES => {
                let purpose = format!("{label}, which was ended,");
                Err(DiskFull { purpose, needed: ALARM_BYTES, available })
            }
            _ => Ok(()),
        }
    }
}

fn line(label: &str, progress: &Progress, last: (Instant, u64), now: (Instant, u64)) -> String {
    let seconds = (now.0 - last.0).as_secs_f64().max(1e-3);
    let mut line = format!(
        "{label}: {} events/s, p99 {}",
        count(((now.1 - last.1) as f64 / seconds) as u64),
        duration(Duration::from_micros(progress.p99_micros.load(Relaxed))),
    );
    for (number, what) in [
        (progress.failed.load(Relaxed), "failed"),
        (progress.backlog.load(Relaxed), "requests waiting"),
        (progress.dropped.load(Relaxed), "requests dropped"),
    ] {
        if number > 0 {
            line += &format!(", {} {what}", count(number));
        }
    }
    line
}

fn figures(
    report: &LoadReport,
    latency: &Histogram<u64>,
    plan: &LoadPlan,
    recording: &Recording,
    from: Instant,
) -> Run {
    let until = from + Duration::try_from_secs_f64(report.seconds).unwrap_or_default();
    let usage = |subject| recording.usage(subject, from, until);
    Run {
        seconds: report.seconds,
        offered: offered(plan),
        events_per_second: report.events_per_second,
        requests_per_second: report.requests_per_second,
        events: report.totals.events,
        accepted: report.totals.accepted,
        dropped_requests: report.totals.dropped_requests,
        errors: errors(&report.totals.errors),
        latency: report.latency,
        service: report.service,
        distribution: SHARES.map(|share| (share, latency.value_at_quantile(share))).into(),
        series: report
            .series
            .iter()
            .map(|second| SecondOf {
                second: second.second,
                accepted: second.accepted,
                errors: second.errors,
                p99: second.p99,
            })
            .collect(),
        warmup_seconds: plan.warmup.as_secs_f64(),
        spike: spike(plan),
        server: usage(Subject::Server).unwrap_or_default(),
        broker: usage(Subject::Broker),
        generator: usage(Subject::Generator).unwrap_or_default(),
        machine_busy: recording.machine_busy(from, until),
        generator_limit: report.generator.reason.clone(),
        invalid_because: report.invalid_because.clone(),
        reconciliation: None,
    }
}

fn offered(plan: &LoadPlan) -> Option<f64> {
    match plan.arrival {
        Arrival::Closed | Arrival::Ramp { .. } => None,
        Arrival::Open { rate } | Arrival::Spike { rate, .. } => Some(rate),
    }
}

/// When a spike begins and ends, from the start of the run.
fn spike(plan: &LoadPlan) -> Option<(f64, f64)> {
    let Arrival::Spike { begins, lasts, .. } = plan.arrival else { return None };
    let begins = plan.warmup + begins;
    Some((begins.as_secs_f64(), (begins + lasts).as_secs_f64()))
}

fn errors(errors: &Errors) -> BTreeMap<String, u64> {
    errors.by_class().map(|(class, number)| (class.to_owned(), number)).collect()
}

/// A reconciliation as the report keeps it.
pub fn reconciled(found: &Reconciliation) -> Reconciled {
    Reconciled {
        sent: found.sent,
        acknowledged: found.acknowledged,
        lost: found.lost,
        repeated: found.repeated,
        unacknowledged_found: found.unacknowledged_found,
        refused_found: found.refused_found,
        out_of_order: found.out_of_order,
        moved: found.moved,
        seconds: found.seconds,
    }
}
