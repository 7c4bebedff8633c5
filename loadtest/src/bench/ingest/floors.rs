//! The floors that ingest is held against.

use super::{
    super::{
        BenchError,
        floor::{producer::ProducerFigures, run_floor},
        installation::{PARTITIONS, free_ports},
        result::{Floor, Run},
        scenario::Scenario,
    },
    stage::Stage,
};
use crate::{
    child::GuardedChild,
    load::{Arrival, LoadPlan},
};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// How long a floor may take beside its own times: reading samples, starting, ending.
const FLOOR_PATIENCE: Duration = Duration::from_secs(60);
/// Pause between two looks whether a floor listens.
const FLOOR_PAUSE: Duration = Duration::from_millis(20);

impl Stage<'_, '_> {
    pub(super) async fn http_floor(&mut self, scenario: &Scenario) -> Result<Floor, BenchError> {
        let [address] = free_ports()?;
        let log = self.log("floor-http");
        let (address_text, events) = (address.to_string(), scenario.events_per_request.to_string());
        let arguments = ["floor", "http", "--listen", &address_text, "--answer-events", &events];
        let mut child = GuardedChild::start(&self.bench.loadtest, &arguments, &BTreeMap::new(), &log)?;
        let plan = LoadPlan {
            url: format!("http://{address}"),
            warmup: self.timing.floor_warmup,
            ..self.plan(scenario, Arrival::Closed, self.timing.floor)
        };
        let watched = self.bench.watched(child.pid().unwrap_or_default());
        let before = std::mem::replace(&mut self.observer.watched, watched);
        let label = format!("{}: floor of HTTP", scenario.name);
        let measured = tokio::select! {
            measured = async {
                listening(address).await;
                self.observer.measure(&label, &plan).await
            } => measured,
            ended = child.ended() => Err(ended.into()),
        };
        self.observer.watched = before;
        let _ = child.stop().await;
        Ok(http_figures(&measured?.run))
    }

    pub(super) async fn producer_floor(&mut self, scenario: &Scenario) -> Result<Floor, BenchError> {
        let topic = self.target.floor_topic(scenario.name);
        self.topics.create(&topic, PARTITIONS).await?;
        let log = self.log("floor-producer");
        let seconds = |duration: Duration| duration.as_secs_f64().to_string();
        let mut options = vec![
            ("--brokers", self.bench.site.brokers.clone()),
            ("--sample", self.target.events_topic()),
            ("--topic", topic.clone()),
            ("--batch", scenario.events_per_request.to_string()),
            ("--requests", scenario.connections.to_string()),
            ("--warmup", seconds(self.timing.floor_warmup)),
            ("--seconds", seconds(self.timing.floor)),
        ];
        options.extend(self.bench.broker_pids.iter().map(|pid| ("--broker-pid", pid.to_string())));
        self.observer.live.update(format!("{}: floor of the producer", scenario.name));
        let limit = self.timing.floor_warmup + self.timing.floor + FLOOR_PATIENCE;
        let figures = run_floor(&self.bench.loadtest, "producer", &options, &log, limit).await;
        self.topics.delete(&[&topic]).await?;
        Ok(producer_figures(&figures?))
    }

    fn log(&self, name: &str) -> PathBuf {
        self.bench.site.logs.join(format!("{name}.log"))
    }
}

/// Waits until somebody accepts connections; whoever waits has a way to give up.
async fn listening(address: std::net::SocketAddr) {
    while tokio::net::TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(FLOOR_PAUSE).await;
    }
}

fn http_figures(run: &Run) -> Floor {
    Floor {
        seconds: run.seconds,
        events_per_second: run.events_per_second,
        usage: run.server,
        broker: None,
        record_bytes: None,
        valid: run.is_valid(),
    }
}

fn producer_figures(figures: &ProducerFigures) -> Floor {
    Floor {
        seconds: figures.seconds,
        events_per_second: figures.acknowledged as f64 / figures.seconds.max(1e-6),
        usage: figures.usage,
        broker: figures.broker,
        record_bytes: Some(figures.record_bytes),
        valid: figures.failed == 0,
    }
}
