//! The demo: starts Floodway, creates a tenant with a healthy, a flaky and a dead endpoint, sends events, and shows what
//! became of every one of them, by two independent accounts.

pub mod environment;
pub mod guide;
pub mod progress;
pub mod provision;
pub mod reconcile;
pub mod table;

use self::{
    environment::Listeners,
    guide::Guide,
    progress::Snapshot,
    provision::Provision,
    reconcile::{Line, receive_account, send_faults},
};
use crate::{
    admin_client::{AdminClient, AdminError, Counts, DeadLetter},
    child::{ChildError, GuardedChild, last_lines},
    file_error::FileError,
    live_line::LiveLine,
    receive::{BindError, Receiver, ReceiverConfig, verify::InvalidSecret},
    report,
    send::{SendError, SendPlan, SendReport, payload::Payload, record::SendRecord, send},
};
use bytes::Bytes;
use http::Method;
use std::{collections::HashSet, net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};
use thiserror::Error;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Where the log of Floodway goes, under the stack's directory.
const LOG_FILE: &str = "demo-floodway.log";
/// Pause between two looks at the readiness of Floodway.
const READY_PAUSE: Duration = Duration::from_millis(200);
/// Pause between two updates of the progress line.
const PROGRESS_PAUSE: Duration = Duration::from_millis(250);
/// Updates of the progress line for each question to the control plane.
const UPDATES_PER_COUNT: u32 = 4;

/// What the demo does.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// The binary whose `dev` command is started.
    pub floodway: PathBuf,
    /// Where the servers are, besides this process's environment.
    pub env_file: Option<PathBuf>,
    /// Directory for the log and the sealing key.
    pub stack_dir: PathBuf,
    /// Where Floodway is to listen.
    pub listeners: Listeners,
    /// Port of the receiver; 0 takes a free one.
    pub receiver_port: u16,
    /// Events to send.
    pub events: u64,
    /// Events of one request.
    pub batch: usize,
    /// Connections.
    pub connections: usize,
    /// Events per second, at most.
    pub rate: Option<f64>,
    /// End after the table instead of staying up.
    pub once: bool,
    /// How long Floodway may take to become ready.
    pub ready_deadline: Duration,
    /// How long the deliveries may take to end.
    pub deadline: Duration,
}

/// Why the demo could not be carried through.
#[derive(Debug, Error)]
pub enum DemoError {
    /// A server's address is not known.
    #[error("{0} is not set: run scripts/stack up, or set it to a server of yours")]
    MissingSetting(&'static str),
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// Floodway cannot be started, or ended by itself.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// Floodway did not become ready.
    #[error(
        "floodway dev was not ready after {seconds} s; its health is {health}, its last lines are:\n{log}"
    )]
    NotReady {
        /// The deadline.
        seconds: u64,
        /// What its admin listener says.
        health: String,
        /// End of its log.
        log: String,
    },
    /// What was created did not take effect.
    #[error("the new key and subscriptions had no effect after {seconds} s; the last probe: {last}")]
    NotInEffect {
        /// The deadline.
        seconds: u64,
        /// What came of the last probe.
        last: String,
    },
    /// Not even the first webhook is signed with the subscription's secret.
    #[error(
        "the receiver refuses the signature of the first webhook: it does not fit the subscription's secret"
    )]
    Signature,
    /// The receiver cannot start.
    #[error(transparent)]
    Receiver(#[from] BindError),
    /// The control plane returned a secret that is none.
    #[error(transparent)]
    Secret(#[from] InvalidSecret),
    /// The control plane did not do what it was asked.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// Events could not be sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The result cannot be written.
    #[error("the result cannot be written: {0}")]
    Output(std::io::Error),
    /// A signal came before the result.
    #[error("interrupted")]
    Interrupted,
}

impl DemoError {
    /// Whether the command line or the environment is to be changed, rather than anything that ran.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::MissingSetting(_)
                | Self::File(_)
                | Self::Child(ChildError::Log { .. } | ChildError::Start { .. })
        )
    }
}

/// Runs the demo. Returns what did not add up, in words; empty if everything did. `stop` ends it in order at any time.
pub async fn run(options: &DemoOptions, stop: &CancellationToken) -> Result<Vec<String>, DemoError> {
    let listeners = options.listeners;
    let admin_key = environment::random_admin_key();
    let variables = environment::variables(
        |name| std::env::var(name).ok(),
        options.env_file.as_deref(),
        &options.stack_dir,
        &listeners,
        &admin_key,
    )?;
    let log = options.stack_dir.join(LOG_FILE);
    let receiver_address = (Ipv4Addr::LOCALHOST, options.receiver_port);
    let receiver = Receiver::bind(receiver_address, ReceiverConfig::default()).await?;
    let mut floodway = GuardedChild::start(&options.floodway, &["dev"], &variables, &log)?;

    let mut demo = Demo {
        options,
        listeners,
        admin: AdminClient::new(&format!("http://{}", listeners.control_plane), Some(&admin_key))?,
        admin_key,
        run: format!("demo-{:08x}", rand::random::<u32>()),
        receiver: &receiver,
        progress: LiveLine::on_stderr(),
        log,
    };
    demo.progress.note(&format!(
        "floodway dev runs as process {}, its log is {}",
        floodway.pid().unwrap_or_default(),
        demo.log.display()
    ));
    let result = tokio::select! {
        result = demo.carry_out(stop) => result,
        ended = floodway.ended() => Err(ended.into()),
        () = stop.cancelled() => Err(DemoError::Interrupted),
    };
    let result = match result {
        Ok(faults) if !options.once => demo.stay_up(&mut floodway, stop).await.map(|()| faults),
        result => result,
    };
    demo.progress.note("stopping");
    if floodway.stop().await.is_none() {
        demo.progress.note("floodway dev did not drain in time and was killed");
    }
    receiver.stop().await;
    result
}

struct Demo<'a> {
    options: &'a DemoOptions,
    listeners: Listeners,
    admin: AdminClient,
    admin_key: String,
    run: String,
    receiver: &'a Receiver,
    progress: LiveLine,
    log: PathBuf,
}

impl Demo<'_> {
    /// From the start of Floodway to the table.
    async fn carry_out(&mut self, stop: &CancellationToken) -> Result<Vec<String>, DemoError> {
        self.wait_until_ready().await?;
        let ingest = format!("http://{}", self.listeners.ingest);
        let provision = provision::provision(&self.admin, &ingest, self.receiver, &self.run).await?;
        let (record, sent) = self.send_and_watch(&ingest, &provision, stop).await?;
        let (lines, dead) = self.account(&provision, &record).await?;
        report::print(&table::render(&lines, &sent)).map_err(DemoError::Output)?;

        let mut faults = send_faults(&sent.tally, self.options.events);
        faults.extend(lines.iter().flat_map(Line::faults));
        if self.receiver.ledger().untracked() > 0 {
            faults.push("the receiver's ledger is full: its account is incomplete".to_owned());
        }
        if !self.options.once {
            let guide = Guide {
                listeners: self.listeners,
                receiver: self.receiver,
                provision: &provision,
                admin_key: &self.admin_key,
                dead_letter: dead.as_deref(),
            };
            report::print(&guide.text()).map_err(DemoError::Output)?;
        }
        Ok(faults)
    }

    /// Waits for the admin listener to say that every role can do its job.
    async fn wait_until_ready(&self) -> Result<(), DemoError> {
        let health = AdminClient::new(&format!("http://{}", self.listeners.admin), None)?;
        let ask = async |path| health.call(Method::GET, path, Bytes::new()).await;
        let deadline = Instant::now() + self.options.ready_deadline;
        while ask("/health/ready").await.is_err() {
            if Instant::now() >= deadline {
                let detailed = match ask("/health/detailed").await {
                    Ok(body) => String::from_utf8_lossy(&body).into_owned(),
                    Err(error) => error.to_string(),
                };
                let seconds = self.options.ready_deadline.as_secs();
                return Err(DemoError::NotReady { seconds, health: detailed, log: last_lines(&self.log) });
            }
            tokio::time::sleep(READY_PAUSE).await;
        }
        self.progress.note("floodway is ready");
        Ok(())
    }

    /// Sends all events, and shows the progress until every delivery has ended or the deadline has passed.
    async fn send_and_watch(
        &mut self,
        ingest: &str,
        provision: &Provision,
        stop: &CancellationToken,
    ) -> Result<(Arc<SendRecord>, SendReport), DemoError> {
        let plan = SendPlan {
            url: ingest.to_owned(),
            key: provision.api_key.clone(),
            payload: Payload::Sample,
            batch: self.options.batch,
            connections: self.options.connections,
            rate: self.options.rate,
            ..SendPlan::default()
        };
        let record = Arc::new(SendRecord::new(&self.run, self.options.events));
        let mut sending = std::pin::pin!(send(&plan, &record, stop));
        let mut sent = None;
        let deadline = Instant::now() + self.options.deadline;
        let mut ticks = tokio::time::interval(PROGRESS_PAUSE);
        let mut counts = Vec::new();
        let mut updates = 0u32;
        loop {
            tokio::select! {
                result = &mut sending, if sent.is_none() => sent = Some(result?),
                _ = ticks.tick() => {
                    updates = updates.wrapping_add(1);
                    if updates.is_multiple_of(UPDATES_PER_COUNT) {
                        counts = self.counts(provision).await?;
                    }
                    let snapshot = self.snapshot(provision, &record, &counts);
                    self.progress.update(snapshot.text());
                    let done = sent.is_some() && snapshot.pending == 0;
                    if let Some(sent) = sent.take_if(|_| done || Instant::now() >= deadline) {
                        self.progress.finish(snapshot.text());
                        return Ok((Arc::clone(&record), sent));
                    }
                }
            }
        }
    }

    /// The control plane's counts in the order of the subscriptions.
    async fn counts(&self, provision: &Provision) -> Result<Vec<Counts>, AdminError> {
        let counts = self.admin.counts(&provision.tenant).await?;
        let of =
            |id: &str| counts.iter().find(|counts| counts.subscription == id).cloned().unwrap_or_default();
        Ok(provision.subscriptions.iter().map(|subscription| of(&subscription.id)).collect())
    }

    fn snapshot(&self, provision: &Provision, record: &SendRecord, counts: &[Counts]) -> Snapshot {
        let ledger = self.receiver.ledger();
        let ended = |position: usize| counts.get(position).map_or(0, reconcile::ended);
        let pending =
            (0..provision.subscriptions.len()).map(|at| record.accepted().saturating_sub(ended(at)));
        Snapshot {
            events: record.events(),
            accepted: record.accepted(),
            delivered: provision.subscriptions.iter().map(|s| ledger.totals(&s.path).delivered).sum(),
            retried: counts.iter().map(|counts| counts.retry).sum(),
            dead: counts.iter().map(|counts| counts.dead + counts.disable).sum(),
            pending: pending.sum(),
        }
    }

    /// Both accounts of every subscription, and the id of a dead letter.
    async fn account(
        &self,
        provision: &Provision,
        record: &SendRecord,
    ) -> Result<(Vec<Line>, Option<String>), DemoError> {
        let counts = self.counts(provision).await?;
        let mut lines = Vec::new();
        let mut some_dead_letter = None;
        // More than one per event would be a fault; enough are read to see it.
        let limit = usize::try_from(record.events()).unwrap_or(usize::MAX).saturating_add(1);
        for (subscription, reported) in provision.subscriptions.iter().zip(counts) {
            let letters = self.admin.dead_letters(&provision.tenant, &subscription.id, limit).await?;
            some_dead_letter = some_dead_letter.or(letters.first().map(|letter| letter.id.clone()));
            let dead_letters = letters.len() as u64;
            let dead: HashSet<String> =
                letters.into_iter().map(|DeadLetter { event_id, .. }| event_id).collect();
            let (received, latency) = receive_account(self.receiver.ledger(), record, subscription, &dead);
            let accepted = record.accepted();
            lines.push(Line { name: subscription.name, accepted, received, reported, dead_letters, latency });
        }
        Ok((lines, some_dead_letter))
    }

    /// Leaves everything running until it is told to stop.
    async fn stay_up(&self, floodway: &mut GuardedChild, stop: &CancellationToken) -> Result<(), DemoError> {
        tokio::select! {
            ended = floodway.ended() => Err(ended.into()),
            () = stop.cancelled() => Ok(()),
        }
    }
}
