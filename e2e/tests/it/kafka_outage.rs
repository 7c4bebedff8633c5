//! One broker: ingest while it is stopped, frozen or killed.

use anyhow::{Context, Result, ensure};
use floodway_e2e::{
    front::Front,
    load::{EventClient, Ledger, Load, Outgoing, Word, reconcile, to_send_again},
    stack::Stack,
};
use floodway_schemas::topic::Topic;
use std::time::Duration;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

/// Events acknowledged before a fault, and after it.
const SOME: usize = 300;
/// Connections of a load.
const CONNECTIONS: usize = 4;
/// Longest time for what should happen within seconds.
const PATIENCE: Duration = Duration::from_secs(90);
/// Room of the producer's queue, in events: little, so that a test fills it.
const QUEUE_EVENTS: usize = 2_000;

#[tokio::test(flavor = "multi_thread")]
async fn one_broker_stopped_frozen_or_killed_loses_nothing_acknowledged_and_needs_no_help() -> Result<()> {
    let stack = Stack::kafka("e2e-broker", &[]).await?;
    let mut front = Front::prepare(&stack, "--dev --replication 1 --partitions 4", async |_| Ok(())).await?;
    let queue = QUEUE_EVENTS.to_string();
    front
        .start(&[("FLOODWAY_INGEST__PUBLISH_TIMEOUT", "5s"), ("FLOODWAY_INGEST__QUEUE_EVENTS", &queue)])
        .await?;
    let client = EventClient::new(&front.events_url, &front.key);
    let pid = front.ingest.runs()?;

    stopped(&stack, &mut front, &client).await?;
    frozen(&stack, &mut front, &client).await?;
    killed(&stack, &mut front, &client).await?;
    ensure!(front.ingest.runs()? == pid, "ingest was started again");
    ingest_killed(&mut front, &client).await?;
    too_large(&stack, &front, &client).await?;
    front.finish().await?;
    stack.remove().await
}

/// How long the long outage takes: beyond every timeout and backoff of the client.
const LONG_OUTAGE: Duration = Duration::from_secs(120);
/// How often the broker is killed in a row.
const KILLS: usize = 10;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes minutes: make outages"]
async fn a_long_outage_and_a_broker_killed_again_and_again_lose_nothing_acknowledged() -> Result<()> {
    let stack = Stack::kafka("e2e-long", &[]).await?;
    let mut front = Front::prepare(&stack, "--dev --replication 1 --partitions 4", async |_| Ok(())).await?;
    front.start(&[]).await?;
    let (client, pid) = (EventClient::new(&front.events_url, &front.key), front.ingest.runs()?);

    let load = Load::start(&client, CONNECTIONS);
    load.hears(Word::Acknowledged, SOME).await?;
    stack.fault("stop kafka").await?;
    let back = Instant::now() + LONG_OUTAGE;
    while Instant::now() < back {
        ensure!(front.ingest.health("live").await == Some(200), "it is not live");
        sleep(Duration::from_secs(1)).await;
    }
    stack.fault("start kafka").await?;
    recovers("stopped for two minutes", &mut front, &client, load).await?;

    let load = Load::start(&client, CONNECTIONS);
    for _ in 0..KILLS {
        load.hears(Word::Acknowledged, SOME).await?;
        stack.fault("kill kafka").await?;
        stack.fault("start kafka").await?;
    }
    recovers("killed ten times", &mut front, &client, load).await?;
    ensure!(front.ingest.runs()? == pid, "ingest was started again");
    front.finish().await?;
    stack.remove().await
}

/// Answers while Kafka is gone: late at first, at once when there is no room, and at once when it is known to be gone.
async fn stopped(stack: &Stack, front: &mut Front, client: &EventClient) -> Result<()> {
    let load = Load::start(client, CONNECTIONS);
    load.hears(Word::Acknowledged, SOME).await?;
    stack.fault("stop kafka").await?;
    refuses_at_once_when_the_queue_is_full(front, client).await?;
    let report = front.ingest.reports(&["\"ready\": false", "no broker answers"]).await?;
    ensure!(front.ingest.health("ready").await == Some(503), "{report}");
    ensure!(front.ingest.health("live").await == Some(200), "{report}");
    refuses_at_once_when_kafka_is_known_to_be_away(client).await?;

    stack.fault("start kafka").await?;
    recovers("stopped and started", front, client, load).await
}

async fn refuses_at_once_when_the_queue_is_full(front: &Front, client: &EventClient) -> Result<()> {
    const FULL: &str = "floodway_ingest_queue_full_total{queue=\"producer\"}";
    let before = front.ingest.metric(FULL).await.unwrap_or(0.0);
    let (waiting, sender) = (events("fills", QUEUE_EVENTS + 100), client.clone());
    let mut filling = JoinSet::new();
    filling.spawn(async move { sender.send(&waiting).await });
    let end = Instant::now() + PATIENCE;
    while front.ingest.metric(FULL).await.unwrap_or(0.0) <= before {
        ensure!(Instant::now() < end, "the queue did not fill");
        sleep(Duration::from_millis(10)).await;
    }
    let answer = client.send(&events("late", 10)).await?;
    ensure!(filling.try_join_next().is_none(), "the events that wait for Kafka were answered first");
    ensure!(answer.count(Word::NotPersisted) == 10 && !answer.refused_whole, "{answer:?}");
    let filling = filling.join_next().await.context("no request")???;
    ensure!(filling.count(Word::Acknowledged) == 0 && filling.status == Some(503), "{:?}", filling.status);
    ensure!(filling.count(Word::NotPersisted) >= 100, "{} had no room", filling.count(Word::NotPersisted));
    Ok(())
}

/// Refused before its events are looked at: such a request waits for nothing.
async fn refuses_at_once_when_kafka_is_known_to_be_away(client: &EventClient) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let answer = client.send(&events("away", 10)).await?;
        ensure!(answer.count(Word::Acknowledged) == 0, "acknowledged without a broker: {answer:?}");
        if answer.refused_whole {
            return Ok(());
        }
        ensure!(Instant::now() < end, "Kafka's absence is not noticed");
    }
}

/// A broker that hangs takes requests and answers none: nobody knows what it has.
async fn frozen(stack: &Stack, front: &mut Front, client: &EventClient) -> Result<()> {
    let load = Load::start(client, CONNECTIONS);
    load.hears(Word::Acknowledged, SOME).await?;
    stack.fault("pause kafka").await?;
    load.hears(Word::Unknown, 1).await?;
    // What was acknowledged before has been answered by now.
    let acknowledged = load.count(Word::Acknowledged);
    load.hears(Word::Unknown, 30).await?;
    ensure!(load.count(Word::Acknowledged) == acknowledged, "acknowledged by a broker that is frozen");
    stack.fault("resume kafka").await?;
    recovers("frozen and resumed", front, client, load).await
}

async fn killed(stack: &Stack, front: &mut Front, client: &EventClient) -> Result<()> {
    let load = Load::start(client, CONNECTIONS);
    load.hears(Word::Acknowledged, SOME).await?;
    stack.fault("kill kafka").await?;
    stack.fault("start kafka").await?;
    recovers("killed and started", front, client, load).await
}

/// After a fault: ready without help, events are acknowledged again, what was said is true, and what was not known can be
/// sent again.
async fn recovers(fault: &str, front: &mut Front, client: &EventClient, load: Load) -> Result<()> {
    front.ingest.ready().await?;
    load.hears(Word::Acknowledged, SOME).await?;
    let ledger = load.stop().await;
    let kept = reconcile(front, &ledger).await?;
    println!("broker {fault}: lost 0, {kept:?}");
    send_again(front, client, &ledger).await
}

async fn send_again(front: &Front, client: &EventClient, ledger: &Ledger) -> Result<()> {
    let again = to_send_again(ledger, Word::Unknown);
    for events in again.chunks(100) {
        client.send_until_acknowledged(events).await?;
    }
    let acknowledged: Ledger = again.into_iter().map(|event| (event.id, Word::Acknowledged)).collect();
    reconcile(front, &acknowledged).await.map(drop)
}

/// A topic whose limit was lowered while ingest runs.
async fn too_large(stack: &Stack, front: &Front, client: &EventClient) -> Result<()> {
    let topic = front.kafka.topic(Topic::Events);
    let alter = ["kafka-configs", "--alter", "--entity-type", "topics", "--entity-name", &topic];
    stack.kafka_tool(&[&alter[..], &["--add-config", "max.message.bytes=20000"]].concat()).await?;
    // In partitions of their own: a limit below that of the producer's batches refuses whole batches.
    let spread = spread_over_partitions(front, client).await?;
    let end = Instant::now() + PATIENCE;
    loop {
        let run: u32 = rand::random();
        let mut events: Vec<Outgoing> = spread
            .iter()
            .enumerate()
            .map(|(n, key)| Outgoing::small(format!("{run:08x}-{n}"), key))
            .collect();
        events[1].bytes = 200_000;
        let answer = client.send(&events).await?;
        if answer.words == [Word::Acknowledged, Word::TooLarge, Word::Acknowledged] {
            ensure!(answer.status == Some(207), "{answer:?}");
            return Ok(());
        }
        ensure!(Instant::now() < end, "the broker's limit is not told: {answer:?}");
        sleep(Duration::from_millis(100)).await;
    }
}

/// Three partition keys of three partitions.
async fn spread_over_partitions(front: &Front, client: &EventClient) -> Result<Vec<String>> {
    let probes: Vec<Outgoing> =
        (0..32).map(|n| Outgoing::small(format!("probe-{n}"), format!("probe-{n}"))).collect();
    client.send_until_acknowledged(&probes).await?;
    let mut keys: Vec<(i32, String)> = Vec::new();
    for record in front.stored().await?.into_iter().filter(|record| record.id.starts_with("probe-")) {
        if keys.iter().all(|(partition, _)| *partition != record.partition) {
            keys.push((record.partition, record.id));
        }
    }
    ensure!(keys.len() >= 3, "32 keys are in {} partitions", keys.len());
    Ok(keys.into_iter().take(3).map(|(_, key)| key).collect())
}

async fn ingest_killed(front: &mut Front, client: &EventClient) -> Result<()> {
    let load = Load::start(client, CONNECTIONS);
    for _ in 0..2 {
        load.hears(Word::Acknowledged, SOME).await?;
        front.ingest.kill().await?;
        front.ingest.start()?;
        front.ingest.ready().await?;
    }
    load.hears(Word::Acknowledged, SOME).await?;
    let kept = reconcile(front, &load.stop().await).await?;
    println!("ingest killed twice under load: lost 0, {kept:?}");
    Ok(())
}

fn events(name: &str, count: usize) -> Vec<Outgoing> {
    let run: u32 = rand::random();
    (0..count).map(|n| Outgoing::small(format!("{run:08x}-{name}-{n}"), format!("{name}-{n}"))).collect()
}
