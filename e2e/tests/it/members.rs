//! Several dispatchers in one group that die, come and go.

use anyhow::{Result, ensure};
use floodway_e2e::{
    pipeline::Pipeline,
    producer::{OnFailure, Producer},
    progress::{Watch, now},
    reconcile::all_delivered,
    role::Role,
    stack::Stack,
    takeovers::{Kill, repeats},
};
use floodway_loadtest::receive::behaviour::Behaviour;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Dispatchers that stay, of which each is killed once.
const MEMBERS: usize = 3;
/// Events that each endpoint gets between two changes of the group.
const BETWEEN: u64 = 100;
/// How often one more dispatcher joins and leaves.
const GUESTS: usize = 4;
/// Partitions of each topic.
const PARTITIONS: f64 = 4.0;
/// The endpoints. The last one becomes slow.
const PATHS: [&str; 3] = ["/ok", "/fail/1", "/ok/slow"];
/// How long it takes then.
const SLOW: Behaviour = Behaviour::Delay(Duration::from_millis(500));
/// Longest wait for a group to have shared its partitions out: a dead member counts for its session timeout of 15 s.
const PATIENCE: Duration = Duration::from_secs(90);

#[tokio::test(flavor = "multi_thread")]
async fn dispatchers_that_die_come_and_go_lose_nothing_and_repeat_only_what_no_commit_covered() -> Result<()>
{
    let mut pipeline = Pipeline::start(Stack::shared()?).await?;
    let mut paths = Vec::new();
    for path in PATHS {
        paths.push((path, pipeline.subscribe(path).await?.id));
    }
    let mut group = Group::form(&pipeline).await?;
    let watch = Watch::start(&pipeline)?;
    let producer = Producer::start(&pipeline.events_url, &pipeline.key, 4, 2, OnFailure::SendAgain);
    endpoints_go_on(&pipeline).await?;
    for member in 0..MEMBERS {
        group.kill(&mut pipeline, member).await?;
        let killed = group.member(&mut pipeline, member);
        killed.start()?;
        killed.ready().await?;
        group.is_settled(&mut pipeline, MEMBERS).await?;
        endpoints_go_on(&pipeline).await?;
    }
    pipeline.receiver.set_behaviour(PATHS[2], SLOW);
    for guest in 0..GUESTS {
        group.welcomes_a_guest(&mut pipeline).await?;
        endpoints_go_on(&pipeline).await?;
        if guest % 2 == 0 {
            group.guest_leaves().await?;
        } else {
            group.kill(&mut pipeline, MEMBERS).await?;
        }
        endpoints_go_on(&pipeline).await?;
    }
    let sent = producer.stop().await;
    ensure!(sent.failed.is_empty(), "{} events were given up by the producer", sent.failed.len());

    for path in PATHS {
        all_delivered(&pipeline, path, &sent.accepted).await?;
    }
    group.is_settled(&mut pipeline, MEMBERS).await?;
    let logs = group.logs(&pipeline);
    let looks = watch.stop().await?;
    let paths: Vec<(&str, &str)> = paths.iter().map(|(path, id)| (*path, id.as_str())).collect();
    let repeats = repeats(&pipeline, &paths, &logs, &group.kills, &looks).await?;
    println!(
        "three dispatchers killed in turn, a fourth that came and went {GUESTS} times: accepted {}, lost 0, {repeats:?}",
        sent.accepted.len()
    );
    ensure!(repeats.takeovers_after_kills >= MEMBERS, "partitions of the dead were not taken over");
    group.finish().await?;
    pipeline.finish().await.map(drop)
}

/// The dispatchers: the pipeline's own, two more, and one that comes and goes.
struct Group {
    others: Vec<Role>,
    kills: Vec<Kill>,
}

impl Group {
    async fn form(pipeline: &Pipeline) -> Result<Self> {
        let mut others = Vec::new();
        for name in ["second", "third", "guest"] {
            others.push(pipeline.another("dispatcher", name)?);
        }
        for role in &mut others[..MEMBERS - 1] {
            role.start()?;
        }
        for role in &mut others[..MEMBERS - 1] {
            role.ready().await?;
        }
        Ok(Self { others, kills: Vec::new() })
    }

    fn member<'a>(&'a mut self, pipeline: &'a mut Pipeline, member: usize) -> &'a mut Role {
        if member == 0 { &mut pipeline.dispatcher } else { &mut self.others[member - 1] }
    }

    /// Kills a dispatcher that consumes partitions.
    async fn kill(&mut self, pipeline: &mut Pipeline, member: usize) -> Result<()> {
        let role = self.member(pipeline, member);
        role.kill().await?;
        self.kills.push(Kill { dispatcher: member, at: now() });
        Ok(())
    }

    /// Starts the guest and waits until it consumes partitions.
    async fn welcomes_a_guest(&mut self, pipeline: &mut Pipeline) -> Result<()> {
        let guest = &mut self.others[MEMBERS - 1];
        guest.start()?;
        guest.ready().await?;
        self.is_settled(pipeline, MEMBERS + 1).await
    }

    async fn guest_leaves(&mut self) -> Result<()> {
        let guest = &mut self.others[MEMBERS - 1];
        let status = guest.terminate().await?;
        ensure!(status.success(), "it ended with {status}:\n{}", guest.log_tail());
        Ok(())
    }

    /// Waits until so many dispatchers have all partitions of both topics among them, and each has one.
    async fn is_settled(&mut self, pipeline: &mut Pipeline, members: usize) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            let mut shares = Vec::new();
            for member in 0..members {
                let role = self.member(pipeline, member);
                for topic in ["events", "due"] {
                    let name = format!("floodway_dispatcher_assigned_partitions{{topic=\"{topic}\"}}");
                    shares.push(role.metric(&name).await.unwrap_or(0.0));
                }
            }
            if shares.iter().sum::<f64>() == 2.0 * PARTITIONS && shares.iter().all(|share| *share > 0.0) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "the partitions are not shared out: {shares:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn logs(&self, pipeline: &Pipeline) -> Vec<String> {
        std::iter::once(&pipeline.dispatcher).chain(&self.others).map(Role::log).collect()
    }

    async fn finish(mut self) -> Result<()> {
        for role in &mut self.others[..MEMBERS - 1] {
            let status = role.terminate().await?;
            ensure!(status.success(), "it ended with {status}:\n{}", role.log_tail());
        }
        Ok(())
    }
}

/// Each endpoint gets further events.
async fn endpoints_go_on(pipeline: &Pipeline) -> Result<()> {
    let totals = |path: &&str| pipeline.receiver.ledger().totals(path).webhooks;
    let before: Vec<u64> = PATHS.iter().map(totals).collect();
    let went_on = pipeline
        .receiver
        .wait_until(PATIENCE, |ledger| {
            PATHS.iter().zip(&before).all(|(path, before)| ledger.totals(path).webhooks >= before + BETWEEN)
        })
        .await;
    ensure!(went_on, "{PATHS:?} were {before:?} and did not get {BETWEEN} more each");
    Ok(())
}
