//! Deliveries over TLS: HTTP/2 where the endpoint chooses it, and no endpoint that is not who it should be.

use crate::{
    frames::{
        CONTINUATION, DATA, EARLY_HINTS, END_HEADERS, END_STREAM, FrameServer, Frames, GOAWAY, HEADERS,
        HTTP_1_1_REQUIRED, OK, PING, REFUSED, RST_STREAM, SETTINGS,
    },
    receiver::{Answer, Receiver},
    tls::{Authority, BOTH},
    world::{DEADLINE, World, until},
};
use floodway_dispatcher::Settings;
use floodway_schemas::{
    config::{History, Subscription},
    topic::Topic,
};
use http::{Response, Version};
use http_body_util::Full;
use rcgen::date_time_ymd;
use rustls::{HandshakeKind, version};
use serde_json::{Value, json};
use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::sync::Mutex;
use url::Url;

fn trusting(authority: &Authority) -> Settings {
    Settings { ca_file: Some(authority.file.clone()), ..World::settings() }
}

/// A subscription to events of the type `name`, with the exchange of every attempt.
fn subscribe(world: &World, url: Url, name: &str) -> Subscription {
    let mut subscription = world.subscription(url);
    subscription.types = vec![name.parse().unwrap()];
    subscription.history = History::All;
    subscription.timeout_ms = 30_000;
    subscription
}

fn kinds(outcomes: &[Value], kind: &str) -> usize {
    outcomes.iter().filter(|outcome| outcome["kind"] == kind).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_decides_which_protocol_is_spoken_and_whether_anything_is_sent_at_all() {
    let mut world = World::create(1).await;
    let (authority, stranger) = (Authority::new(), Authority::new());
    let newer = [&version::TLS13, &version::TLS12];
    let host = "localhost";
    let servers = [
        ("both", authority.acceptor(host, &BOTH), Some(Version::HTTP_2)),
        ("only-h2", authority.acceptor(host, &["h2"]), Some(Version::HTTP_2)),
        ("only-http1", authority.acceptor(host, &["http/1.1"]), Some(Version::HTTP_11)),
        ("no-alpn", authority.acceptor(host, &[]), Some(Version::HTTP_11)),
        ("tls12", authority.acceptor_with(host, &BOTH, &[&version::TLS12], |_| {}), Some(Version::HTTP_2)),
        ("strange-alpn", authority.acceptor(host, &["spdy/3"]), None),
        ("wrong-name", authority.acceptor("example.com", &BOTH), None),
        (
            "expired",
            authority
                .acceptor_with(host, &BOTH, &newer, |params| params.not_after = date_time_ymd(2020, 1, 1)),
            None,
        ),
        (
            "not-yet",
            authority
                .acceptor_with(host, &BOTH, &newer, |params| params.not_before = date_time_ymd(2090, 1, 1)),
            None,
        ),
        ("unknown-authority", stranger.acceptor(host, &BOTH), None),
    ];
    let mut table = Vec::new();
    for (name, acceptor, spoken) in servers {
        let receiver = Receiver::start_tls(acceptor, |_| Answer::status(204)).await;
        let subscription = subscribe(&world, receiver.url("hook?x=y"), name);
        world.publish(&subscription);
        table.push((name, receiver, subscription, spoken));
    }
    let plain = Receiver::ok().await;
    world.publish(&subscribe(&world, plain.url(""), "plain"));
    table.push(("plain", plain, subscribe(&world, "http://unused/".parse().unwrap(), "-"), None));
    let running = world.run(trusting(&authority)).await;
    for (name, ..) in &table {
        world.send(name, name);
    }
    let mut outcomes = world.outcomes();
    let (_, mut plain, ..) = table.pop().unwrap();
    assert_eq!(plain.next().await.version, Version::HTTP_11);
    for (name, receiver, subscription, spoken) in &mut table {
        let outcome = outcomes.of(subscription.id).await;
        let exchange = &outcome["exchange"];
        let Some(spoken) = spoken else {
            assert_eq!(
                (&outcome["kind"], &outcome["error"]),
                (&json!("retry"), &json!("tls")),
                "{name}: {outcome}"
            );
            assert!(receiver.rest().is_empty(), "{name}");
            assert!(exchange["timings"]["tls_us"].is_null(), "{name}: {outcome}");
            continue;
        };
        assert_eq!(
            (&outcome["kind"], &outcome["status"]),
            (&json!("delivered"), &json!(204)),
            "{name}: {outcome}"
        );
        let arrival = receiver.next().await;
        assert_eq!(arrival.version, *spoken, "{name}");
        assert_eq!((arrival.event_id(), &*arrival.body), (*name, &b"{}"[..]), "{name}");
        assert!(arrival.header("webhook-signature").starts_with("v1,"), "{name}");
        assert_eq!(arrival.header("content-length"), "2", "{name}");
        let timings = &exchange["timings"];
        for part in ["dns_us", "connect_us", "tls_us", "first_byte_us", "total_us"] {
            assert!(timings[part].is_u64(), "{name}: {part} in {outcome}");
        }
        assert!(exchange["address"].as_str().unwrap().starts_with("127.0.0.1:"), "{name}: {outcome}");
        assert_eq!(exchange["reused"], false, "{name}");
        let sent = exchange["request_headers"].as_array().unwrap();
        assert!(sent.contains(&json!({"name": "ce-id", "value": name})), "{name}: {outcome}");
        let received = exchange["response_headers"].as_array().unwrap();
        assert!(received.iter().any(|header| header["name"] == "date"), "{name}: {outcome}");
    }
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tls_session_is_resumed_by_the_next_connection() {
    let mut world = World::create(1).await;
    let authority = Authority::new();
    let mut receiver = Receiver::start_tls(authority.acceptor("localhost", &["http/1.1"]), |_| {
        Answer::Respond(Response::builder().header("connection", "close").body(Full::default()).unwrap())
    })
    .await;
    world.publish(&subscribe(&world, receiver.url(""), "*"));
    let running = world.run(trusting(&authority)).await;
    let mut handshakes = Vec::new();
    for id in ["1", "2"] {
        world.send(id, "a");
        handshakes.push(receiver.next().await.handshake);
    }
    assert_eq!(handshakes, [Some(HandshakeKind::Full), Some(HandshakeKind::Resumed)]);
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_share_one_connection_and_wait_for_their_place_on_it() {
    const AT_A_TIME: usize = 3;
    const LANES: usize = 10;
    let mut world = World::create(1).await;
    let authority = Authority::new();
    let serve = |_, mut frames: Frames| async move {
        let mut open = Vec::new();
        for left in (0..LANES).rev() {
            // As many as it takes at a time, or all that are left.
            while open.len() < AT_A_TIME.min(left + 1) {
                open.push(frames.request().await?);
            }
            if !frames.is_quiet().await? {
                // The test sees that answers are missing.
                return Ok(());
            }
            frames.answer(open.remove(0)).await?;
        }
        frames.answer_all().await;
        Ok(())
    };
    let server =
        FrameServer::start(authority.acceptor("localhost", &BOTH), Some(AT_A_TIME as u32), serve).await;
    for _ in 0..LANES {
        world.publish(&subscribe(&world, server.url(), "*"));
    }
    let running = world.run(trusting(&authority)).await;
    world.send("1", "a");
    let mut outcomes = world.outcomes();
    assert_eq!(kinds(outcomes.at_least(LANES).await, "delivered"), LANES, "{:?}", outcomes.seen);
    assert_eq!(server.connections(), 1);
    world.send("2", "a");
    let reused = |outcome: &&Value| outcome["exchange"]["reused"] == true;
    let seen = outcomes.at_least(2 * LANES).await;
    assert_eq!(seen[LANES..].iter().filter(reused).count(), LANES);
    assert_eq!((kinds(seen, "delivered"), server.connections()), (2 * LANES, 1));
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_leaves_loses_no_request_and_gets_none_twice_that_it_answered() {
    const LANES: usize = 8;
    let mut world = World::create(1).await;
    let authority = Authority::new();
    let answered = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&answered);
    let serve = move |number, mut frames: Frames| {
        let count = Arc::clone(&count);
        async move {
            if number == 0 {
                // Takes eight, answers two, says that it processes those up to the fourth, and answers them, too.
                let mut ids = Vec::new();
                while ids.len() < LANES {
                    ids.push(frames.request().await?);
                }
                frames.answer(ids[0]).await?;
                frames.answer(ids[1]).await?;
                let last = [ids[3].to_be_bytes(), [0; 4]].concat();
                frames.send(GOAWAY, 0, 0, &last).await?;
                frames.answer(ids[2]).await?;
                frames.answer(ids[3]).await?;
                count.fetch_add(4, Ordering::SeqCst);
            } else if number == 1 {
                // Refuses one of the four that are left.
                let refused = frames.request().await?;
                frames.send(RST_STREAM, 0, refused, &REFUSED).await?;
            }
            while let Ok(id) = frames.request().await {
                frames.answer(id).await?;
                count.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        }
    };
    let server = FrameServer::start(authority.acceptor("localhost", &BOTH), None, serve).await;
    for _ in 0..LANES {
        world.publish(&subscribe(&world, server.url(), "*"));
    }
    let running = world.run(trusting(&authority)).await;
    world.send("1", "a");
    let mut outcomes = world.outcomes();
    assert_eq!(kinds(outcomes.at_least(LANES).await, "delivered"), LANES, "{:?}", outcomes.seen);
    world.end(&[&running]).await;
    assert_eq!((answered.load(Ordering::SeqCst), server.connections()), (LANES, 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_asks_for_http_1_1_gets_every_request_over_it_from_then_on() {
    const LANES: usize = 8;
    let mut world = World::create(1).await;
    let authority = Authority::new();
    let mut servers = Vec::new();
    // For each request, or for the whole connection.
    for (name, goes_away) in [("reset", false), ("goaway", true)] {
        let serve = move |_, mut frames: Frames| async move {
            while let Ok(id) = frames.request().await {
                if goes_away {
                    frames.send(GOAWAY, 0, 0, &[[0; 4], HTTP_1_1_REQUIRED].concat()).await?;
                } else {
                    frames.send(RST_STREAM, 0, id, &HTTP_1_1_REQUIRED).await?;
                }
            }
            Ok(())
        };
        let server = FrameServer::start(authority.acceptor("localhost", &BOTH), None, serve).await;
        for _ in 0..LANES {
            world.publish(&subscribe(&world, server.url(), name));
        }
        servers.push((name, server));
    }
    let running = world.run(trusting(&authority)).await;
    let mut outcomes = world.outcomes();
    for round in 1..=3 {
        for (name, _) in &servers {
            world.send(&format!("{name}-{round}"), name);
        }
        let count = round * LANES * servers.len();
        assert_eq!(kinds(outcomes.at_least(count).await, "delivered"), count, "{:?}", outcomes.seen);
    }
    for (name, server) in &servers {
        assert_eq!((server.connections(), server.http1_requests()), (1, 3 * LANES), "{name}");
    }
    world.end(&[&running]).await;
}

/// A server on whose one connection every path has its own trouble.
async fn serve_paths(
    mut frames: h2::server::Connection<tokio_rustls::server::TlsStream<tokio::net::TcpStream>, bytes::Bytes>,
) {
    let mut tasks = tokio::task::JoinSet::new();
    while let Some(Ok((request, mut respond))) = frames.accept().await {
        tasks.spawn(async move {
            let path = request.uri().path().to_owned();
            let ok = || Response::new(());
            match &*path {
                "/reset" => respond.send_reset(h2::Reason::INTERNAL_ERROR),
                "/hang" => std::future::pending().await,
                "/drip" => {
                    let mut body = respond.send_response(ok(), false).unwrap();
                    while body.send_data("x".into(), false).is_ok() {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
                "/endless-body" => {
                    let mut body = respond.send_response(ok(), false).unwrap();
                    loop {
                        body.reserve_capacity(16_384);
                        match std::future::poll_fn(|context| body.poll_capacity(context)).await {
                            Some(Ok(room)) => drop(body.send_data(vec![b'x'; room].into(), false)),
                            _ => break,
                        }
                    }
                }
                "/large-head" => {
                    let large = Response::builder().header("x-large", "y".repeat(66_000)).body(()).unwrap();
                    drop(respond.send_response(large, true));
                }
                "/many-headers" => {
                    let many = (0..200)
                        .fold(Response::builder(), |response, n| response.header(format!("x-{n}"), "y"));
                    drop(respond.send_response(many.body(()).unwrap(), true));
                }
                _ => drop(respond.send_response(ok(), true)),
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_in_trouble_disturbs_no_other_on_its_connection() {
    const EVENTS: usize = 30;
    let mut world = World::create(1).await;
    let authority = Authority::new();
    let acceptor = authority.acceptor("localhost", &BOTH);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base: Url = format!("https://localhost:{}/", listener.local_addr().unwrap().port()).parse().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        let mut served = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let Ok(frames) = h2::server::handshake(stream).await else { continue };
            count.fetch_add(1, Ordering::SeqCst);
            served.spawn(serve_paths(frames));
        }
    });
    let troubles = [
        ("reset", "retry", json!("reset")),
        ("hang", "retry", json!("timeout")),
        ("drip", "retry", json!("timeout")),
        ("endless-body", "delivered", json!(null)),
        ("large-head", "retry", json!("protocol")),
        ("many-headers", "retry", json!("protocol")),
    ];
    let mut troubled = Vec::new();
    for (path, kind, error) in troubles {
        let mut subscription = subscribe(&world, base.join(path).unwrap(), "trouble");
        subscription.timeout_ms = 3_000;
        world.publish(&subscription);
        troubled.push((path, kind, error, subscription.id));
    }
    let healthy = subscribe(&world, base.join("healthy").unwrap(), "fine");
    world.publish(&healthy);
    let running = world.run(trusting(&authority)).await;
    world.send("trouble", "trouble");
    for event in 0..EVENTS {
        world.send(&format!("{event}"), "fine");
    }
    let mut outcomes = world.outcomes();
    outcomes.at_least(EVENTS + troubled.len()).await;
    for (path, kind, error, id) in troubled {
        let outcome = outcomes.of(id).await;
        assert_eq!((&outcome["kind"], &outcome["error"]), (&json!(kind), &error), "{path}: {outcome}");
        if path == "endless-body" {
            assert_eq!(outcome["response"].as_str().unwrap().len(), 4096);
        }
    }
    let id = healthy.id.to_string();
    let fine: Vec<_> =
        outcomes.seen.iter().filter(|outcome| outcome["subscription"] == id.as_str()).cloned().collect();
    assert_eq!((fine.len(), kinds(&fine, "delivered")), (EVENTS, EVENTS), "{fine:?}");
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    world.end(&[&running]).await;
}

/// Sends frames without end, as long as they are taken.
async fn flood(name: &str, frames: &mut Frames, id: u32) -> io::Result<()> {
    let header = [&[0x00, 1, b'x', 100][..], &[b'y'; 100]].concat();
    match name {
        "continuation" => {
            frames.send(HEADERS, 0, id, OK).await?;
            loop {
                frames.send(CONTINUATION, 0, id, &header).await?;
            }
        }
        "empty-continuation" => {
            frames.send(HEADERS, 0, id, OK).await?;
            loop {
                frames.send(CONTINUATION, 0, id, &[]).await?;
            }
        }
        "interim" => loop {
            frames.send(HEADERS, END_HEADERS, id, EARLY_HINTS).await?;
        },
        "settings" => loop {
            frames.send(SETTINGS, 0, 0, &[]).await?;
        },
        "ping" => loop {
            frames.send(PING, 0, 0, &[0; 8]).await?;
        },
        "empty-data" => {
            frames.send(HEADERS, END_HEADERS, id, OK).await?;
            loop {
                frames.send(DATA, 0, id, &[]).await?;
            }
        }
        "unasked" => loop {
            frames.send(DATA, 0, id + 1000, &[0; 1000]).await?;
        },
        // A frame of a kind that nobody knows, of the largest size.
        _ => loop {
            frames.send(0xfa, 0, 0, &[0; 16_384]).await?;
        },
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_floods_its_connection_is_left() {
    // What both sides' sockets hold comes on top of what is read.
    const MOST_SENT: usize = 32 * 1024 * 1024;
    let mut world = World::create(1).await;
    let authority = Authority::new();
    let sent: Arc<Mutex<Vec<(&str, usize)>>> = Arc::default();
    let mut floods = Vec::new();
    let names = [
        "continuation",
        "empty-continuation",
        "interim",
        "settings",
        "ping",
        "empty-data",
        "unasked",
        "unknown",
    ];
    for name in names {
        let sent = Arc::clone(&sent);
        let serve = move |_, mut frames: Frames| {
            let sent = Arc::clone(&sent);
            async move {
                let id = frames.request().await?;
                // Reads on: a peer that is not read cannot be told anything.
                let flooded = flood(name, &mut frames, id).await;
                sent.lock().await.push((name, frames.sent));
                flooded
            }
        };
        let server = FrameServer::start(authority.acceptor("localhost", &BOTH), None, serve).await;
        let subscription = subscribe(&world, server.url(), "*");
        world.publish(&subscription);
        floods.push((name, server, subscription.id));
    }
    let running = world.run(trusting(&authority)).await;
    world.send("1", "a");
    let mut outcomes = world.outcomes();
    for (name, _, id) in &floods {
        let outcome = outcomes.of(*id).await;
        assert_eq!(
            (&outcome["kind"], &outcome["error"]),
            (&json!("retry"), &json!("protocol")),
            "{name}: {outcome}"
        );
    }
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        let sent = sent.lock().await.clone();
        if sent.len() == names.len() {
            assert!(sent.iter().all(|(_, sent)| *sent < MOST_SENT), "{sent:?}");
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "some are still read: {sent:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_ends_fails_its_requests_as_reset_and_is_not_used_again() {
    let mut world = World::create(1).await;
    let authority = Authority::new();
    let left = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&left);
    let serve = move |number, mut frames: Frames| {
        let count = Arc::clone(&count);
        async move {
            let first = frames.request().await?;
            if number > 0 {
                frames.answer(first).await?;
            }
            if number > 1 {
                frames.answer_all().await;
            }
            // Ends without a word: before the answer, or after it.
            frames.leave().await;
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    };
    let server = FrameServer::start(authority.acceptor("localhost", &BOTH), None, serve).await;
    world.publish(&subscribe(&world, server.url(), "*"));
    let running = world.run(trusting(&authority)).await;
    let mut outcomes = world.outcomes();
    world.send("1", "a");
    let cut = outcomes.at_least(1).await[0].clone();
    assert_eq!((&cut["kind"], &cut["error"]), (&json!("retry"), &json!("reset")), "{cut}");
    world.send("2", "a");
    outcomes.at_least(2).await;
    until("end of the second connection on both sides", || left.load(Ordering::SeqCst) == 2).await;
    world.send("3", "a");
    let seen = outcomes.at_least(3).await;
    assert_eq!((kinds(seen, "delivered"), server.connections()), (2, 3), "{seen:?}");
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_on_which_nothing_is_heard_serves_no_request_after_the_one_that_timed_out() {
    let mut world = World::create(1).await;
    let authority = Authority::new();
    let serve = |number, mut frames: Frames| async move {
        if number == 0 {
            let first = frames.request().await?;
            frames.answer(first).await?;
            // From here on it is as if every packet were lost.
            std::future::pending::<()>().await;
        }
        frames.answer_all().await;
        Ok(())
    };
    let server = FrameServer::start(authority.acceptor("localhost", &BOTH), None, serve).await;
    let mut subscription = subscribe(&world, server.url(), "*");
    subscription.timeout_ms = 2_000;
    world.publish(&subscription);
    let running = world.run(trusting(&authority)).await;
    let mut outcomes = world.outcomes();
    for id in ["1", "2", "3"] {
        world.send(id, "a");
        let count = outcomes.seen.len() + 1;
        outcomes.at_least(count).await;
    }
    let seen: Vec<_> = outcomes
        .seen
        .iter()
        .map(|outcome| {
            let text = |field: &str| outcome[field].as_str().unwrap_or_default().to_owned();
            (text("kind"), text("error"), outcome["exchange"]["reused"] == true)
        })
        .collect();
    let row = |kind: &str, error: &str, reused| (kind.to_owned(), error.to_owned(), reused);
    let expected = [row("delivered", "", false), row("retry", "timeout", true), row("delivered", "", false)];
    assert_eq!((seen, server.connections()), (expected.to_vec(), 2));
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_waited_for_their_place_are_made_again_when_the_connection_ends() {
    const LANES: usize = 6;
    let mut world = World::create(1).await;
    let authority = Authority::new();
    let serve = |number, mut frames: Frames| async move {
        if number == 0 {
            // Takes one at a time, and ends with the others still waiting.
            frames.request().await?;
            frames.is_quiet().await?;
            frames.leave().await;
            return Ok(());
        }
        frames.answer_all().await;
        Ok(())
    };
    let server = FrameServer::start(authority.acceptor("localhost", &BOTH), Some(1), serve).await;
    for _ in 0..LANES {
        world.publish(&subscribe(&world, server.url(), "*"));
    }
    let running = world.run(trusting(&authority)).await;
    world.send("1", "a");
    let mut outcomes = world.outcomes();
    let seen = outcomes.at_least(LANES).await;
    // The endpoint may have seen the one that had a place.
    assert_eq!((kinds(seen, "retry"), kinds(seen, "delivered")), (1, LANES - 1), "{seen:?}");
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_frames_end_no_connection_with_requests_under_way() {
    const EVENTS: usize = 60;
    let mut world = World::create(1).await;
    let authority = Authority::new();
    let serve = |_, mut frames: Frames| async move {
        loop {
            let id = frames.request().await?;
            frames.send(HEADERS, END_HEADERS, id, OK).await?;
            for _ in 0..3 {
                frames.send(DATA, 0, id, &[]).await?;
            }
            frames.send(DATA, END_STREAM, id, &[]).await?;
        }
    };
    let server = FrameServer::start(authority.acceptor("localhost", &BOTH), None, serve).await;
    world.publish(&subscribe(&world, server.url(), "*"));
    let running = world.run(trusting(&authority)).await;
    let mut outcomes = world.outcomes();
    for event in 0..EVENTS {
        world.send(&event.to_string(), "a");
        // One after the other.
        outcomes.at_least(event + 1).await;
    }
    assert_eq!(kinds(&outcomes.seen, "delivered"), EVENTS, "{:?}", outcomes.seen);
    assert!(server.connections() > 1);
    world.end(&[&running]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_whose_endpoint_does_not_take_a_body_serves_no_request_after_it() {
    let mut world = World::create(1).await;
    let authority = Authority::new();
    let serve = |number, mut frames: Frames| async move {
        if number == 0 {
            // Never makes room for the rest of the body, and is alive all the same.
            while frames.next().await?.0 != DATA {}
            frames.send(PING, 0, 0, &[0; 8]).await?;
            while frames.next().await.is_ok() {}
        }
        frames.answer_all().await;
        Ok(())
    };
    let server = FrameServer::start(authority.acceptor("localhost", &BOTH), None, serve).await;
    let mut subscription = subscribe(&world, server.url(), "*");
    subscription.timeout_ms = 2_000;
    world.publish(&subscription);
    let running = world.run(trusting(&authority)).await;
    let large = format!(r#""{}""#, "x".repeat(100_000));
    world.produce(Topic::Events, None, "1", world.event("1", "a", &large).as_bytes());
    let mut outcomes = world.outcomes();
    let first = outcomes.at_least(1).await[0].clone();
    assert_eq!((&first["kind"], &first["error"]), (&json!("retry"), &json!("timeout")), "{first}");
    world.send("2", "a");
    let seen = outcomes.at_least(2).await;
    assert_eq!((kinds(seen, "delivered"), server.connections()), (1, 2), "{seen:?}");
    world.end(&[&running]).await;
}
