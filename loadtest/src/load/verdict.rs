//! Puts the counts of all threads together, and says whether they can be used. Pure.

use super::{
    cost::ThreadTime,
    generator::GeneratorResult,
    plan::{Arrival, LoadPlan},
    report::{Generator, GeneratorThread, LoadReport, Quantiles, Second, Totals},
    tally::Tally,
};
use crate::send::latency_histogram;
use hdrhistogram::Histogram;
use std::time::Duration;

/// Share of a CPU above which a thread of the generator has no reserve left to be on time.
const MAX_BUSY_SHARE: f64 = 0.85;
/// How late a request may be sent, 99 % of them, before an open loop is not the schedule's any longer, in microseconds.
const MAX_LAG_MICROS: u64 = 10_000;

/// What is known of a run beside the counts of its threads.
pub(super) struct RunFacts {
    pub(super) run: String,
    pub(super) body_bytes: u64,
    pub(super) series: Vec<Second>,
    pub(super) was_stopped: bool,
}

/// The report of a run, and the latencies behind it.
pub(super) fn report(
    plan: &LoadPlan,
    facts: RunFacts,
    threads: &[GeneratorResult],
) -> (LoadReport, Histogram<u64>) {
    let merge = |of: fn(&Tally) -> &Histogram<u64>| {
        let mut sum = latency_histogram();
        for thread in threads {
            // Histograms of the same bounds always add up.
            let _ = sum.add(of(&thread.tally));
        }
        sum
    };
    let sum = |of: fn(&Tally) -> u64| -> u64 { threads.iter().map(|thread| of(&thread.tally)).sum() };
    let latency = merge(|tally| &tally.latency);
    let totals = totals(threads);
    let seconds = measured_seconds(plan, threads);
    let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
    let generator = generator(plan.arrival, threads);
    let invalid_because = reasons(&totals, &generator, facts.was_stopped);
    let report = LoadReport {
        workload: plan.workload.clone(),
        arrival: plan.arrival,
        length: plan.length,
        connections: plan.connections,
        run: facts.run,
        body_bytes: facts.body_bytes,
        seconds,
        totals,
        events_per_second: per_second(sum(|tally| tally.accepted_in_time)),
        requests_per_second: per_second(sum(|tally| tally.answers)),
        latency: (&latency).into(),
        service: (&merge(|tally| &tally.service)).into(),
        series: facts.series,
        generator,
        valid: invalid_because.is_empty(),
        invalid_because,
    };
    (report, latency)
}

fn totals(threads: &[GeneratorResult]) -> Totals {
    let mut totals = Totals::default();
    for thread in threads {
        let of_thread = &thread.tally.totals;
        totals.requests += of_thread.requests;
        totals.events += of_thread.events;
        totals.accepted += of_thread.accepted;
        totals.dropped_requests += thread.dropped;
        totals.errors.add(&of_thread.errors);
    }
    totals
}

/// From the end of the warm-up to the planned end, or to the last answer if the end is a number of events. A run that
/// was stopped ended when it was stopped.
fn measured_seconds(plan: &LoadPlan, threads: &[GeneratorResult]) -> f64 {
    let end = |thread: &GeneratorResult| match (plan.measured_requests(), thread.tally.end) {
        (None, Some((end, _))) => end,
        _ => thread.tally.last_end,
    };
    let end = threads.iter().map(end).max().unwrap_or_default();
    end.saturating_sub(plan.warmup).as_secs_f64()
}

fn generator(arrival: Arrival, threads: &[GeneratorResult]) -> Generator {
    let costs: Vec<(GeneratorThread, Duration)> = threads.iter().map(|thread| cost(&thread.tally)).collect();
    let requests: u64 = costs.iter().map(|(thread, _)| thread.requests).sum();
    let busy: Duration = costs.iter().map(|(_, busy)| *busy).sum();
    let threads: Vec<GeneratorThread> = costs.into_iter().map(|(thread, _)| thread).collect();
    let reason = threads.iter().enumerate().find_map(|(number, thread)| saturation(arrival, number, thread));
    Generator {
        saturated: reason.is_some(),
        reason: reason.unwrap_or_default(),
        cpu_micros_per_request: busy.as_secs_f64() * 1e6 / requests.max(1) as f64,
        threads,
    }
}

/// A thread's figures, and the CPU time behind them.
fn cost(tally: &Tally) -> (GeneratorThread, Duration) {
    let (Some((began, before)), Some((ended, after))) = (tally.begin, tally.end) else {
        return Default::default();
    };
    let ThreadTime { busy, waiting } = after.since(before);
    let wall = ended.saturating_sub(began).as_secs_f64();
    let share = |time: Duration| if wall > 0.0 { time.as_secs_f64() / wall } else { 0.0 };
    let thread = GeneratorThread {
        requests: tally.totals.requests,
        busy_share: share(busy),
        waiting_share: share(waiting),
        lag: (&tally.lag).into(),
    };
    (thread, busy)
}

/// Why a thread was the limit, if it was.
fn saturation(arrival: Arrival, number: usize, thread: &GeneratorThread) -> Option<String> {
    if thread.busy_share > MAX_BUSY_SHARE {
        return Some(format!(
            "thread {number} was busy {:.0} % of the time: use more threads",
            thread.busy_share * 100.0
        ));
    }
    let Quantiles { p99, .. } = thread.lag;
    (arrival != Arrival::Closed && p99 > MAX_LAG_MICROS).then(|| {
        format!(
            "thread {number} sent 1 % of its requests more than {:.1} ms late, although a connection was free; it waited \
             for a CPU {:.0} % of the time",
            p99 as f64 / 1000.0,
            thread.waiting_share * 100.0
        )
    })
}

fn reasons(totals: &Totals, generator: &Generator, was_stopped: bool) -> Vec<String> {
    let mut reasons = Vec::new();
    if totals.dropped_requests > 0 {
        reasons.push(format!("{} requests were due and never sent", totals.dropped_requests));
    }
    let errors = totals.errors.sum();
    if errors > 0 {
        let classes: Vec<String> =
            totals.errors.by_class().map(|(class, number)| format!("{class}: {number}")).collect();
        reasons.push(format!("{errors} events not acknowledged ({})", classes.join(", ")));
    }
    if generator.saturated {
        reasons.push(format!("the generator was saturated: {}", generator.reason));
    }
    if totals.requests == 0 {
        reasons.push("no request was due in the measured time".to_owned());
    }
    if was_stopped {
        reasons.push("the run was stopped before its end".to_owned());
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::report::Errors;

    fn thread(busy_share: f64, lag: u64) -> GeneratorThread {
        let lag = Quantiles { p99: lag, ..Quantiles::default() };
        GeneratorThread { busy_share, lag, ..GeneratorThread::default() }
    }

    #[test]
    fn a_busy_thread_is_saturated_and_a_late_one_only_where_there_is_a_schedule() {
        let open = Arrival::Open { rate: 1.0 };
        for (arrival, thread, saturated) in [
            (open, thread(0.5, 100), false),
            (open, thread(0.9, 100), true),
            (Arrival::Closed, thread(0.9, 0), true),
            (open, thread(0.1, 50_000), true),
            (Arrival::Closed, thread(0.1, 50_000), false),
        ] {
            assert_eq!(saturation(arrival, 0, &thread).is_some(), saturated, "{arrival:?} {thread:?}");
        }
    }

    #[test]
    fn events_that_were_not_acknowledged_spoil_a_run_and_are_named_by_class() {
        let sound = Generator {
            saturated: false,
            reason: String::new(),
            cpu_micros_per_request: 1.0,
            threads: vec![],
        };
        let errors = Errors { throttled: 10, transport: 2, ..Errors::default() };
        let totals = Totals { requests: 20, events: 20, accepted: 8, errors, ..Totals::default() };
        assert_eq!(
            reasons(&totals, &sound, false),
            ["12 events not acknowledged (throttled: 10, transport: 2)"]
        );
    }

    #[test]
    fn a_run_is_invalid_for_every_reason_there_is() {
        let sound = Generator {
            saturated: false,
            reason: String::new(),
            cpu_micros_per_request: 1.0,
            threads: vec![],
        };
        let totals = Totals { requests: 1, ..Totals::default() };
        assert!(reasons(&totals, &sound, false).is_empty());
        let dropped = Totals { dropped_requests: 3, ..Totals::default() };
        let saturated = Generator { saturated: true, reason: "busy".to_owned(), ..sound };
        let reasons = reasons(&dropped, &saturated, true);
        assert_eq!(reasons.len(), 4);
        assert!(reasons[0].contains("3 requests") && reasons[1].ends_with("busy"));
    }
}
