//! Three brokers: ingest while a partition has no leader, a broker is killed, and too few replicas are left.

use anyhow::{Context, Result, ensure};
use floodway_e2e::{
    front::Front,
    load::{EventClient, Ledger, Load, Outgoing, Word, reconcile},
    stack::Stack,
};
use floodway_runtime::kafka::KafkaSettings;
use floodway_schemas::topic::Topic;
use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    producer::{BaseProducer, Producer},
};
use std::{collections::HashMap, time::Duration};

/// Events acknowledged before a fault, and after it.
const SOME: usize = 300;
const PARTITIONS: i32 = 6;
/// Partition keys that are tried out: enough for every partition to have one.
const KEYS: usize = 60;
/// Bytes that may wait for one partition: a few of the large events below.
const PARTITION_QUEUE_BYTES: &str = "1200000";
const LARGE: usize = 200_000;

#[tokio::test(flavor = "multi_thread")]
async fn three_brokers_losing_one_and_then_two_lose_nothing_acknowledged_and_need_no_help() -> Result<()> {
    let stack = Stack::kafka("e2e-cluster", &["--brokers", "3"]).await?;
    // As in production: three replicas, two of them in sync.
    let mut replicated = Front::prepare(&stack, "--replication 3 --partitions 6", async |_| Ok(())).await?;
    // Each partition of the events has one replica only, and so no leader while that one's broker is down.
    let mut single =
        Front::prepare(&stack, "--dev --replication 3 --partitions 6", single_replica_events).await?;
    replicated.start(&[("FLOODWAY_INGEST__PUBLISH_TIMEOUT", "5s")]).await?;
    single
        .start(&[
            ("FLOODWAY_INGEST__PUBLISH_TIMEOUT", "5s"),
            ("FLOODWAY_INGEST__PARTITION_QUEUE_BYTES", PARTITION_QUEUE_BYTES),
        ])
        .await?;
    let pids = (replicated.ingest.runs()?, single.ingest.runs()?);
    let client = EventClient::new(&replicated.events_url, &replicated.key);
    let load = Load::start(&client, 4);
    load.hears(Word::Acknowledged, SOME).await?;

    let keys = Keys::find(&single).await?;
    stack.fault(&format!("kill kafka-{}", keys.victim)).await?;
    let ledger = partition_without_leader(&single, &keys).await?;
    load.hears(Word::Acknowledged, SOME).await?;

    too_few_replicas(&stack, &mut replicated, &load, keys.victim).await?;
    for front in [&mut replicated, &mut single] {
        front.ingest.ready().await?;
    }
    load.hears(Word::Acknowledged, SOME).await?;
    let kept = reconcile(&replicated, &load.stop().await).await?;
    println!("three brokers, one and then two killed: lost 0, {kept:?}");
    let kept = reconcile(&single, &ledger).await?;
    println!("one partition in three without a leader: lost 0, {kept:?}");
    ensure!(pids == (replicated.ingest.runs()?, single.ingest.runs()?), "ingest was started again");
    replicated.finish().await?;
    single.finish().await?;
    stack.remove().await
}

/// Events of partitions that have a leader are acknowledged, beside others that wait for theirs and fill its queue.
async fn partition_without_leader(front: &Front, keys: &Keys) -> Result<Ledger> {
    let client = EventClient::new(&front.events_url, &front.key);
    let mut ledger = Ledger::new();
    for round in 0..2 {
        let mut events: Vec<Outgoing> = (0..10)
            .map(|n| Outgoing {
                id: format!("dead-{round}-{n}"),
                partition_key: keys.dead[0].clone(),
                bytes: LARGE,
            })
            .collect();
        let dead = events.len();
        events.extend(keys.live.iter().map(|key| Outgoing::small(format!("live-{round}-{key}"), key)));
        let answer = client.send(&events).await?;
        ensure!(answer.status == Some(207), "{answer:?}");
        let (of_dead, of_live) = answer.words.split_at(dead);
        ensure!(
            of_live.iter().all(|word| *word == Word::Acknowledged),
            "partitions with a leader: {of_live:?}"
        );
        // The first of them wait in vain, the others find no room.
        ensure!(of_dead[0] == Word::Unknown && of_dead[dead - 1] == Word::NotPersisted, "{of_dead:?}");
        ensure!(of_dead.iter().all(|word| *word != Word::Acknowledged), "without a leader: {of_dead:?}");
        ledger.extend(events.into_iter().map(|event| event.id).zip(answer.words));
    }
    Ok(ledger)
}

/// With one replica of three nothing is acknowledged; with all of them back, it is again.
async fn too_few_replicas(stack: &Stack, front: &mut Front, load: &Load, victim: i32) -> Result<()> {
    let second = victim % 3 + 1;
    stack.fault(&format!("kill kafka-{second}")).await?;
    front.ingest.reports(&["\"ready\": false"]).await?;
    ensure!(front.ingest.health("live").await == Some(200), "it is not live");
    // Once requests are refused at once, those that were under way when the broker died have been answered.
    load.hears(Word::NotPersisted, 1).await?;
    let acknowledged = load.count(Word::Acknowledged);
    load.hears(Word::NotPersisted, 100).await?;
    ensure!(load.count(Word::Acknowledged) == acknowledged, "acknowledged by one replica of three");
    stack.fault(&format!("start kafka-{victim} kafka-{second}")).await
}

/// Partition keys, by whether the broker that will be killed leads their partition.
struct Keys {
    victim: i32,
    dead: Vec<String>,
    live: Vec<String>,
}

impl Keys {
    /// Sends an event of each key and looks where it went.
    async fn find(front: &Front) -> Result<Self> {
        let client = EventClient::new(&front.events_url, &front.key);
        let probes: Vec<Outgoing> =
            (0..KEYS).map(|n| Outgoing::small(format!("k{n}"), format!("k{n}"))).collect();
        client.send_until_acknowledged(&probes).await?;
        let leaders = leaders(&front.kafka).await?;
        let stored = front.stored().await?;
        let leader =
            |partition: i32| leaders.get(&partition).copied().context("a partition without a leader");
        let victim = leader(stored[0].partition)?;
        let (mut dead, mut live) = (Vec::new(), Vec::new());
        for record in stored {
            if leader(record.partition)? == victim { dead.push(record.id) } else { live.push(record.id) }
        }
        ensure!(!dead.is_empty() && !live.is_empty(), "all partitions have one leader");
        Ok(Self { victim, dead, live })
    }
}

async fn leaders(kafka: &KafkaSettings) -> Result<HashMap<i32, i32>> {
    let (client, topic): (BaseProducer, _) = (kafka.client().create()?, kafka.topic(Topic::Events));
    tokio::task::spawn_blocking(move || {
        let metadata = client.client().fetch_metadata(Some(&topic), Duration::from_secs(30))?;
        let topic = metadata.topics().first().context("no topic")?;
        Ok(topic.partitions().iter().map(|partition| (partition.id(), partition.leader())).collect())
    })
    .await?
}

async fn single_replica_events(kafka: &KafkaSettings) -> Result<()> {
    let (name, settings) = (kafka.topic(Topic::Events), Topic::Events.settings());
    let mut topic =
        NewTopic::new(&name, PARTITIONS, TopicReplication::Fixed(1)).set("min.insync.replicas", "1");
    for setting in &settings {
        topic = topic.set(setting.name, &setting.value);
    }
    let admin: AdminClient<DefaultClientContext> = kafka.client().create()?;
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(30)));
    for created in admin.create_topics([&topic], &options).await? {
        created.map_err(|(topic, error)| anyhow::anyhow!("{topic}: {error}"))?;
    }
    Ok(())
}
