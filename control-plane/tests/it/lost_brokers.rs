//! Clients that have lost their brokers for good, while others reach them.

use crate::{disabling::emit, world::World};
use floodway_runtime::{clock, testing};
use floodway_schemas::outcome::OutcomeKind;
use std::time::{Duration, Instant};

/// Several times what it takes to notice that clients have lost their brokers, and to replace them.
const LOST_PATIENCE: Duration = Duration::from_secs(180);

async fn becomes(what: &str, holds: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < LOST_PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_whose_clients_have_lost_their_brokers_for_good_goes_on() {
    let lost_clients = || {
        ["disabler", "replays", "retry_commands"].map(|client| {
            testing::counted(&format!("floodway_control_plane_lost_clients_total{{client=\"{client}\"}}"))
        })
    };
    let before = lost_clients();
    let (world, mut relay) = World::start_relayed().await;
    let tenant = world.tenant().await;
    let begun = Instant::now();
    // Clients may get away: until each was lost.
    while lost_clients().iter().zip(before).any(|(now, before)| *now == before) {
        assert!(begun.elapsed() < 2 * LOST_PATIENCE, "not every client is lost: {:?}", lost_clients());
        let (gone, healthy) = (world.subscription(&tenant).await, world.subscription(&tenant).await);
        let path = |subscription| format!("/v1/tenants/{tenant}/subscriptions/{subscription}");
        let is_taken = async |what: &str, body| {
            let status = world.plane.post(&(path(&healthy) + what), body).await.status;
            assert!(matches!(status, 202 | 503), "{status}");
            status == 202
        };
        let deliver = async || is_taken("/test", "{}").await;
        let cancel = async || is_taken("/retries/cancel", r#"{"event_id":"e"}"#).await;
        // Clients that have nothing to do may sleep through it.
        let losing = tokio::task::spawn_blocking(move || {
            relay.loses_clients();
            relay
        });
        while !losing.is_finished() {
            tokio::join!(deliver(), cancel(), tokio::time::sleep(Duration::from_millis(100)));
        }
        relay = losing.await.unwrap();

        emit(&world, &tenant, &gone, OutcomeKind::Disable, clock::now().plus(Duration::from_secs(1))).await;
        becomes("deliveries are asked for", deliver).await;
        becomes("retries are cancelled", cancel).await;
        becomes("a subscription is disabled", async || {
            world.plane.get(&path(&gone)).await.text("state") == "disabled"
        })
        .await;
        becomes("it is ready", async || world.plane.context.health.is_ready()).await;
    }
    assert!(!world.replay_records().await.is_empty());
    world.end().await;
}
