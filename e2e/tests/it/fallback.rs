use anyhow::{Result, ensure};
use bytes::Bytes;
use floodway_e2e::{
    pipeline::{Pipeline, wanted},
    producer::send_events,
    reconcile::{all_delivered, arrivals},
    stack::Stack,
    topic_reader::outcomes,
};
use floodway_loadtest::{
    admin_client::{Breaker, NewSubscription},
    receive::behaviour::Behaviour,
};
use floodway_schemas::outcome::{OutcomeKind, Via};
use http::StatusCode;
use std::{collections::BTreeMap, time::Duration};
use tokio::time::{Instant, sleep};

const MAIN: &str = "/ok/main";
const STAND_IN: &str = "/ok/stand-in";
/// Longest wait for a breaker to turn, and for history to be complete.
const DEADLINE: Duration = Duration::from_secs(60);
/// Pause between two events that find out whether the endpoint is back.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// Requests that open the breaker; a retry of each, and of each probe, is due soon and often.
const BREAKER: Breaker = Breaker { failures: 3, pause_ms: 1_000, max_pause_ms: 1_000 };
const RETRY_DELAYS: [f64; 20] = [0.3; 20];

#[tokio::test(flavor = "multi_thread")]
async fn while_an_endpoint_is_away_its_fallback_gets_every_event_once_and_then_the_endpoint_does_again()
-> Result<()> {
    let pipeline = Pipeline::start(Stack::shared()?).await?;
    let subscription = pipeline
        .subscribe_to(&NewSubscription {
            fallback_url: Some(pipeline.receiver.url(STAND_IN)),
            breaker: Some(BREAKER),
            ..wanted("away", &pipeline.receiver.url(MAIN), &RETRY_DELAYS)
        })
        .await?;
    for path in [MAIN, STAND_IN] {
        pipeline.receiver.set_secrets(path, &[&subscription.secret])?;
    }
    let mut sent = BTreeMap::new();
    let ways = [Behaviour::Reset, Behaviour::Status(StatusCode::SERVICE_UNAVAILABLE)];
    for (turn, away) in (1_u32..).zip(ways) {
        pipeline.receiver.set_behaviour(MAIN, away);
        let meanwhile = send(&pipeline, "away", 300).await?;
        all_delivered(&pipeline, STAND_IN, &meanwhile).await?;
        ensure!(turned(&pipeline, "opened").await >= f64::from(turn), "its breaker is not open");
        sent.extend(meanwhile);

        pipeline.receiver.set_behaviour(MAIN, Behaviour::Ok);
        let end = Instant::now() + DEADLINE;
        while turned(&pipeline, "closed").await < f64::from(turn) {
            ensure!(Instant::now() < end, "an endpoint that is back gets nothing");
            sent.extend(send(&pipeline, "probe", 1).await?);
            sleep(ASK_EVERY).await;
        }
        let afterwards = send(&pipeline, "back", 100).await?;
        all_delivered(&pipeline, MAIN, &afterwards).await?;
        let stood_in = arrivals(&pipeline, STAND_IN);
        ensure!(afterwards.keys().all(|id| !stood_in.contains_key(id)), "the fallback stands in for nobody");
        sent.extend(afterwards);
    }

    let delivered = each_taken_once(&pipeline, &sent).await?;
    let by_api = history(&pipeline, &subscription.id, sent.len()).await?;
    assert_eq!(by_api, delivered, "history is not what the endpoints saw");
    let (brokers, topic) = (pipeline.stack.brokers.clone(), pipeline.topic("outcomes"));
    let found = tokio::task::spawn_blocking(move || outcomes(&brokers, &topic)).await??;
    let by_outcome = found
        .iter()
        .filter(|outcome| outcome.kind == OutcomeKind::Delivered)
        .map(|outcome| (outcome.id.clone(), outcome.via));
    assert_eq!(once_each(by_outcome)?, delivered, "outcomes are not what the endpoints saw");
    let by_fallback = delivered.values().filter(|via| !via.is_main()).count();
    println!("accepted {}, lost 0, repeats 0; {by_fallback} by the fallback", sent.len());
    pipeline.finish().await.map(drop)
}

async fn send(pipeline: &Pipeline, name: &str, count: u64) -> Result<BTreeMap<String, Bytes>> {
    send_events(&pipeline.events_url, &pipeline.key, name, count).await
}

/// How often a breaker has opened or closed.
async fn turned(pipeline: &Pipeline, change: &str) -> f64 {
    let name = format!("floodway_dispatcher_breaker_changes_total{{change=\"{change}\"}}");
    pipeline.dispatcher.metric(&name).await.unwrap_or(0.0)
}

/// Which of the endpoints took each event. Every one was taken by one of them, once, and with a signature that verifies.
async fn each_taken_once(
    pipeline: &Pipeline,
    sent: &BTreeMap<String, Bytes>,
) -> Result<BTreeMap<String, Via>> {
    let taken = || {
        [(MAIN, Via::Main), (STAND_IN, Via::Fallback)].into_iter().flat_map(|(path, via)| {
            let arrived = arrivals(pipeline, path).into_iter();
            arrived.flat_map(move |(id, entry)| (0..entry.successes).map(move |_| (id.clone(), via)))
        })
    };
    let all = pipeline.receiver.wait_until(DEADLINE, |_| taken().count() >= sent.len()).await;
    let found = once_each(taken())?;
    ensure!(
        all && found.len() == sent.len(),
        "{} of {} events were lost",
        sent.len() - found.len(),
        sent.len()
    );
    for path in [MAIN, STAND_IN] {
        let totals = pipeline.receiver.ledger().totals(path);
        ensure!((totals.invalid_signatures, totals.changed_bodies) == (0, 0), "{path}: {totals:?}");
    }
    Ok(found)
}

/// Waits until the history has so many deliveries, and says where each was made.
async fn history(pipeline: &Pipeline, subscription: &str, count: usize) -> Result<BTreeMap<String, Via>> {
    let end = Instant::now() + DEADLINE;
    loop {
        let found = pipeline.admin.delivered(&pipeline.tenant, subscription, 2 * count).await?;
        if found.len() >= count {
            return once_each(found.into_iter().map(|delivery| {
                let via = if delivery.via.is_some() { Via::Fallback } else { Via::Main };
                (delivery.event_id, via)
            }));
        }
        ensure!(Instant::now() < end, "history has {} of {count} deliveries", found.len());
        sleep(ASK_EVERY).await;
    }
}

/// What there is about each event.
///
/// # Errors
/// When there is something twice about one.
fn once_each(found: impl Iterator<Item = (String, Via)>) -> Result<BTreeMap<String, Via>> {
    let mut once = BTreeMap::new();
    for (id, via) in found {
        ensure!(once.insert(id.clone(), via).is_none(), "{id} twice");
    }
    Ok(once)
}
