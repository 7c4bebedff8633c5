//! What a delivery costs over each kind of connection. Asserts no time: run by hand, in release, on a machine that does nothing else.

use crate::{
    receiver::{Answer, Receiver},
    tls::Authority,
    world::World,
};
use floodway_dispatcher::Settings;
use std::time::{Duration, Instant};

const EVENTS: usize = 20_000;
const ROUNDS: usize = 2;

/// CPU time of the threads that make deliveries.
fn workers_cpu() -> Duration {
    let mut total = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let read = |name: &str| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
        if read("comm").starts_with("deliver-") {
            total += read("schedstat").split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0);
        }
    }
    Duration::from_nanos(total)
}

#[allow(clippy::print_stdout, reason = "the figures are what it is for")]
async fn measure(name: &str, receiver: Receiver, authority: &Authority) {
    let mut world = World::create(1).await;
    let mut subscription = world.subscription(receiver.url(""));
    subscription.timeout_ms = 60_000;
    world.publish(&subscription);
    for event in 0..EVENTS {
        let id = event.to_string();
        let data = format!(r#"{{"text":"{}"}}"#, "x".repeat(500));
        let event = world.event(&id, "a", &data);
        world.produce(floodway_schemas::topic::Topic::Events, None, &id, event.as_bytes());
        if id.ends_with("000") {
            world.flush();
        }
    }
    world.flush();
    // Wide enough to defer nothing.
    let settings = Settings {
        ca_file: Some(authority.file.clone()),
        lane_queue: 4 * EVENTS,
        lane_wait: Duration::from_secs(120),
        lane_share: 2,
        max_deliveries: 16 * EVENTS,
        max_bytes: 1 << 30,
        ..World::settings()
    };
    let began = Instant::now();
    let running = world.run(settings).await;
    let mut outcomes = world.outcomes();
    let seen = outcomes.at_least(EVENTS).await;
    let (cpu, took) = (workers_cpu(), began.elapsed());
    assert_eq!(seen.iter().filter(|outcome| outcome["kind"] == "delivered").count(), EVENTS);
    println!(
        "{name}: {:.1} µs of a worker's CPU per delivery, {:.0} deliveries a second",
        cpu.as_secs_f64() * 1e6 / EVENTS as f64,
        EVENTS as f64 / took.as_secs_f64()
    );
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures: cargo test --release -p floodway-dispatcher --test it cost -- --ignored --nocapture"]
async fn cpu_per_delivery_by_kind_of_connection() {
    let authority = Authority::new();
    for _ in 0..ROUNDS {
        measure("plain", Receiver::ok().await, &authority).await;
        for protocol in ["http/1.1", "h2"] {
            let acceptor = authority.acceptor("localhost", &[protocol]);
            let receiver = Receiver::start_tls(acceptor, |_| Answer::status(200)).await;
            measure(protocol, receiver, &authority).await;
        }
    }
}
