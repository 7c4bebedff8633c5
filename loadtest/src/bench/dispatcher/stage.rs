//! What every scenario works with: an installation, a sink, and ways to send, to wait and to look.

use super::{DispatcherBench, endpoints::SinkProcess, scenario::Timing};
use crate::{
    bench::{
        BenchError,
        figures::{Account, Figure, Unit},
        ingest::DATA_BYTES,
        installation::{Installation, Target},
        measure::Observer,
        process::{Recording, Subject, Usage, Watched},
        result::Run,
    },
    live_line::LiveLine,
    load::{self, Arrival, Length, LoadPlan, Progress, Workload},
    report::count,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// Nothing arrives any more when nothing did for so long: many times what a delivery takes.
const QUIET: Duration = Duration::from_secs(2);
/// Pause between two looks at what arrived.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Without anything new for so long, what is missing counts as lost: longer than anything is deferred at once.
const STALL: Duration = Duration::from_secs(60);
/// Connections to ingest, and events of one of their requests, while a log is filled.
const FILL_CONNECTIONS: usize = 16;
const FILL_BATCH: usize = 100;
/// Connections to ingest where events come one by one.
const SINGLE_CONNECTIONS: usize = 64;
/// Longest wait for what is due when a run in an open loop ends.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Events of a warm-up, per second.
const WARMUP_RATE: f64 = 500.0;

/// Share of the machine's CPU time that PostgreSQL and the system itself may take unmentioned.
const TOLERATED_OTHERS: f64 = 0.15;

/// One scenario's surroundings.
pub(super) struct Stage<'a> {
    pub(super) bench: &'a DispatcherBench,
    pub(super) timing: &'a Timing,
    pub(super) installation: &'a mut Installation,
    pub(super) target: &'a Target,
    pub(super) sink: &'a SinkProcess,
    pub(super) live: &'a mut LiveLine,
    pub(super) stop: &'a CancellationToken,
}

/// How many webhooks had arrived when.
#[derive(Debug, Default)]
pub(super) struct Arrived(pub(super) Vec<(Instant, u64)>);

/// What ingest made of what was sent.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sent {
    pub(super) acknowledged: u64,
    pub(super) unknown: u64,
}

impl Stage<'_> {
    /// Starts the dispatcher if it does not run, and waits until it is ready; returns its process id.
    pub(super) async fn dispatcher(&mut self) -> Result<u32, BenchError> {
        match self.installation.pid("dispatcher") {
            Some(pid) => Ok(pid),
            None => self.installation.start_role("dispatcher").await,
        }
    }

    /// The processes that are looked at, with the dispatcher as the one that is measured.
    pub(super) fn watched(&self) -> Vec<Watched> {
        let roles = [
            ("dispatcher", Subject::Server),
            ("retry-scheduler", Subject::Scheduler),
            ("ingest", Subject::Beside),
            ("control-plane", Subject::Beside),
        ];
        let roles = roles
            .into_iter()
            .filter_map(|(role, subject)| Some(Watched { subject, pid: self.installation.pid(role)? }));
        let brokers = self.bench.broker_pids.iter().map(|&pid| Watched { subject: Subject::Broker, pid });
        let sink = Watched { subject: Subject::Sink, pid: self.sink.pid() };
        let generator = Watched { subject: Subject::Generator, pid: std::process::id() };
        roles.chain(brokers).chain([sink, generator]).collect()
    }

    /// A plan with events of a type; `numbers` end it in turns.
    pub(super) fn plan(
        &self,
        event_type: &str,
        numbers: Vec<u32>,
        arrival: Arrival,
        length: Length,
    ) -> LoadPlan {
        LoadPlan {
            workload: Workload {
                data_bytes: DATA_BYTES,
                event_type: event_type.to_owned(),
                numbers,
                stamped: true,
                ..Workload::default()
            },
            arrival,
            connections: SINGLE_CONNECTIONS,
            warmup: Duration::ZERO,
            length,
            timeout: REQUEST_TIMEOUT,
            ..LoadPlan::new(&self.target.ingest_url, &self.target.key)
        }
    }

    /// Sends so many events as fast as ingest takes them.
    pub(super) async fn fill(&mut self, mut plan: LoadPlan, events: u64) -> Result<Sent, BenchError> {
        self.live.update(format!("sending {} events", count(events)));
        plan.workload.events_per_request = FILL_BATCH;
        plan.arrival = Arrival::Closed;
        plan.connections = FILL_CONNECTIONS;
        plan.length = Length::Events(events);
        self.send(&plan).await
    }

    /// Sends without measuring.
    pub(super) async fn send(&mut self, plan: &LoadPlan) -> Result<Sent, BenchError> {
        let outcome = load::run(plan, &Arc::new(Progress::default()), self.stop).await?;
        let totals = outcome.report.totals;
        let errors = totals.errors;
        Ok(Sent { acknowledged: totals.accepted, unknown: errors.unknown + errors.transport })
    }

    /// Sends and measures, with the dispatcher as the server.
    pub(super) async fn measure(&mut self, label: &str, plan: &LoadPlan) -> Result<Run, BenchError> {
        // The observer adds the generator.
        let mut watched = self.watched();
        watched.retain(|watched| watched.subject != Subject::Generator);
        let kafka_data = self.bench.kafka_data.as_deref();
        let mut observer = Observer { watched, kafka_data, live: &mut *self.live, stop: self.stop };
        Ok(observer.measure(label, plan).await?.run)
    }

    /// Sends events of the types until each has arrived, which shows that their subscriptions are in effect, and goes on for
    /// the time of a warm-up. Forgets what arrived.
    pub(super) async fn warm_up(
        &mut self,
        event_type: &str,
        numbers: Vec<u32>,
        group: &str,
    ) -> Result<(), BenchError> {
        let wanted = numbers.len().max(1) as u64;
        let arrival = Arrival::Open { rate: WARMUP_RATE };
        let plan = self.plan(event_type, numbers, arrival, Length::Time(self.timing.warmup));
        let deadline = Instant::now() + STALL;
        loop {
            let sent = self.send(&plan).await?;
            let arrived = self.wait_for("warming up", group, sent.acknowledged, LOOK_PAUSE * 10).await?;
            if arrived.last() >= wanted.min(sent.acknowledged) {
                break;
            }
            if Instant::now() >= deadline {
                return Err(BenchError::NotReady {
                    what: format!("the subscription to {event_type}"),
                    seconds: STALL.as_secs(),
                    health: "no webhook arrived".to_owned(),
                    log: String::new(),
                });
            }
        }
        self.wait_until_quiet(group).await?;
        self.sink.forget().await
    }

    /// Waits until nothing arrives any more: what did later would stand for something that was lost.
    async fn wait_until_quiet(&mut self, group: &str) -> Result<(), BenchError> {
        let (mut seen, mut since) = (self.sink.group(group).await?.arrivals, Instant::now());
        let deadline = since + STALL;
        while since.elapsed() < QUIET && Instant::now() < deadline {
            tokio::time::sleep(LOOK_PAUSE).await;
            let arrivals = self.sink.group(group).await?.arrivals;
            if arrivals != seen {
                (seen, since) = (arrivals, Instant::now());
            }
        }
        Ok(())
    }

    /// Waits until so many different webhooks of a group have arrived, or nothing new has for a long time.
    pub(super) async fn wait_for_all(
        &mut self,
        label: &str,
        group: &str,
        wanted: u64,
    ) -> Result<Arrived, BenchError> {
        self.wait_for(label, group, wanted, STALL).await
    }

    async fn wait_for(
        &mut self,
        label: &str,
        group: &str,
        wanted: u64,
        stall: Duration,
    ) -> Result<Arrived, BenchError> {
        let mut arrived = Arrived::default();
        let mut news = (Instant::now(), 0);
        loop {
            let distinct = self.sink.group(group).await?.distinct;
            let now = Instant::now();
            arrived.0.push((now, distinct));
            if distinct > news.1 {
                news = (now, distinct);
            }
            if distinct >= wanted || now - news.0 > stall {
                return Ok(arrived);
            }
            self.live.update(format!("{label}: {} of {} delivered", count(distinct), count(wanted)));
            self.installation.check().await?;
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// What became of the events of a group.
    pub(super) async fn account(&self, of: &str, group: &str, sent: Sent) -> Result<Account, BenchError> {
        let arrived = self.sink.group(group).await?;
        Ok(Account {
            of: of.to_owned(),
            acknowledged: sent.acknowledged,
            unknown: sent.unknown,
            delivered: arrived.distinct,
            repeated: arrived.arrivals - arrived.distinct,
        })
    }

    /// Share of the machine's CPU time that others than those who are measured took in a span of time.
    pub(super) fn others(&self, recording: &Recording, from: Instant, until: Instant) -> f64 {
        let subjects = [
            Subject::Server,
            Subject::Scheduler,
            Subject::Beside,
            Subject::Broker,
            Subject::Sink,
            Subject::Generator,
        ];
        let usages = subjects.iter().filter_map(|&subject| recording.usage(subject, from, until));
        let known: f64 = usages.map(|usage| usage.cpu_micros()).sum();
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let share = known / ((until - from).as_secs_f64() * cores * 1e6).max(1.0);
        (recording.machine_busy(from, until) - share).max(0.0)
    }
}

/// Says so if others took much of the machine's CPU time.
pub(super) fn doubt(others: f64) -> Option<String> {
    (others > TOLERATED_OTHERS).then(|| {
        format!(
            "PostgreSQL, other programs and other machines on the same host took up to {:.0} % of the CPU time",
            others * 100.0
        )
    })
}

impl Sent {
    /// Both together.
    pub(super) fn plus(self, other: Self) -> Self {
        Self { acknowledged: self.acknowledged + other.acknowledged, unknown: self.unknown + other.unknown }
    }
}

impl Arrived {
    /// How many there were at the end.
    pub(super) fn last(&self) -> u64 {
        self.0.last().map_or(0, |&(_, number)| number)
    }

    /// The first look at which so many were there.
    pub(super) fn reached(&self, number: f64) -> Option<(Instant, u64)> {
        self.0.iter().copied().find(|&(_, arrived)| arrived as f64 >= number)
    }
}

/// CPU microseconds for each of a number of things.
pub(super) fn per_delivery(usage: Option<Usage>, number: f64) -> f64 {
    usage.map_or(0.0, |usage| usage.cpu_micros()) / number.max(1.0)
}

/// Figures of latency from the quantiles of the sink.
pub(super) fn latency_figures(latency: load::Quantiles) -> Vec<Figure> {
    [
        ("p50", latency.p50),
        ("p90", latency.p90),
        ("p99", latency.p99),
        ("p99.9", latency.p99_9),
        ("max", latency.max),
    ]
    .map(|(name, micros)| Figure::new(name, Unit::Micros, micros as f64))
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_reached_at_the_first_look_that_sees_it() {
        let begin = Instant::now();
        let at = |second| begin + Duration::from_secs(second);
        let arrived = Arrived(vec![(at(0), 0), (at(1), 40), (at(2), 90), (at(3), 100)]);
        assert_eq!(arrived.reached(10.0), Some((at(1), 40)));
        assert_eq!(arrived.reached(90.0), Some((at(2), 90)));
        assert_eq!(arrived.reached(101.0), None);
        assert_eq!((arrived.last(), Arrived::default().last()), (100, 0));
    }
}
