//! One endpoint never delays another.

use crate::{
    receiver::{Answer, Receiver},
    world::World,
};
use floodway_dispatcher::Settings;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_that_hang_delay_no_other_on_the_same_partition() {
    const HUNG: usize = 3;
    const EVENTS: usize = 200;
    let mut world = World::create(1).await;
    let hung = Receiver::start(|_| Answer::Hang).await;
    let mut healthy = Receiver::ok().await;
    let mut hanging = Vec::new();
    for _ in 0..HUNG {
        let mut subscription = world.subscription(hung.url(""));
        subscription.timeout_ms = 60_000;
        world.publish(&subscription);
        hanging.push(subscription.id.to_string());
    }
    world.publish(&world.subscription(healthy.url("")));
    // A small budget: hung lanes that could use it up would do so here.
    let settings = Settings {
        lane_in_flight: 4,
        lane_queue: 8,
        max_deliveries: 64,
        drain_timeout: std::time::Duration::from_millis(100),
        ..World::settings()
    };
    let running = world.run(settings).await;
    for event in 0..EVENTS {
        world.send(&format!("{event:04}"), "a");
    }
    // Some of the healthy endpoint's deliveries may be deferred while the burst lasts; none may wait for a hung one.
    let mut outcomes = world.outcomes();
    let mut count = 0;
    loop {
        count += 1;
        let seen = outcomes.at_least(count).await;
        let healthy =
            seen.iter().filter(|o| !hanging.iter().any(|id| o["subscription"] == id.as_str())).count();
        if healthy == EVENTS {
            break;
        }
    }
    let kinds = |kind: &str, hung: bool| {
        let is_hung =
            |o: &&serde_json::Value| hanging.iter().any(|id| o["subscription"] == id.as_str()) == hung;
        outcomes.seen.iter().filter(|o| o["kind"] == kind).filter(is_hung).count()
    };
    assert_eq!(kinds("delivered", true), 0);
    assert!(kinds("deferred", true) > 0);
    assert_eq!(kinds("delivered", false) + kinds("deferred", false), EVENTS);
    assert!(kinds("delivered", false) > 0);
    healthy.next().await;
    world.end(&[&running]).await;
}
