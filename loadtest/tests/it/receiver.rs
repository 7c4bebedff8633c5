use crate::http::{HttpClient, client, post};
use floodway_loadtest::receive::{
    Receiver, ReceiverConfig,
    behaviour::Behaviour,
    verify::{Refusal, Verdict},
};
use http_body_util::BodyExt;
use standardwebhooks::Webhook;
use std::time::{Duration, Instant};

const SECRET: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
const OTHER_SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const DEADLINE: Duration = Duration::from_secs(10);

async fn receiver() -> (Receiver, HttpClient) {
    let config = ReceiverConfig { captured: 8, ..ReceiverConfig::default() };
    (Receiver::bind("127.0.0.1:0", config).await.unwrap(), client())
}

/// The status of each of several deliveries of one webhook; 0 for no answer.
async fn statuses(receiver: &Receiver, client: &HttpClient, path: &str, deliveries: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..deliveries {
        let answer =
            post(client, &receiver.url(path), &[("webhook-id", "msg_1"), ("ce-id", "e-1")], b"{}").await;
        statuses.push(answer.map_or(0, |answer| answer.status().as_u16()));
    }
    statuses
}

#[allow(clippy::disallowed_methods, reason = "a signature that is valid now needs the time")]
fn unix_seconds() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64
}

/// Delivers one signed webhook; its status.
async fn deliver(receiver: &Receiver, client: &HttpClient, path: &str, secret: &str, timestamp: i64) -> u16 {
    let signature = Webhook::new(secret).unwrap().sign("msg_1", timestamp, b"{}").unwrap();
    let timestamp = timestamp.to_string();
    let headers =
        [("webhook-id", "msg_1"), ("webhook-timestamp", &*timestamp), ("webhook-signature", &*signature)];
    post(client, &receiver.url(path), &headers, b"{}").await.unwrap().status().as_u16()
}

#[tokio::test]
async fn a_path_answers_as_its_name_says() {
    let (receiver, client) = receiver().await;
    for (path, expected) in [
        ("/ok/label", [200, 200, 200]),
        ("/fail/2", [500, 500, 200]),
        ("/fail/1/x?status=503", [503, 200, 200]),
        ("/status/500", [500, 500, 500]),
        ("/status/204", [204, 204, 204]),
        ("/gone", [410, 410, 410]),
        ("/redirect", [302, 302, 302]),
        ("/reset", [0, 0, 0]),
        ("/nothing", [404, 404, 404]),
    ] {
        assert_eq!(statuses(&receiver, &client, path, 3).await, expected, "{path}");
    }
    let answer = post(&client, &receiver.url("/status/429?retry-after=7"), &[], b"").await.unwrap();
    assert_eq!(answer.headers()["retry-after"], "7");
    let answer = post(&client, &receiver.url("/redirect"), &[], b"").await.unwrap();
    assert_eq!(answer.headers()["location"], "/ok/redirected");
    assert_eq!(receiver.summary().unrouted, 3);
    receiver.stop().await;
}

#[tokio::test]
async fn a_delay_is_kept_and_other_requests_do_not_wait_for_it() {
    let (receiver, client) = receiver().await;
    let begun = Instant::now();
    let (url, ok) = (receiver.url("/delay/300ms"), receiver.url("/ok"));
    let slow = async {
        let answer = post(&client, &url, &[], b"").await.unwrap();
        (answer.status().as_u16(), begun.elapsed())
    };
    let fast = async {
        post(&client, &ok, &[], b"").await.unwrap();
        begun.elapsed()
    };
    let ((status, slow), fast) = tokio::join!(slow, fast);
    assert_eq!(status, 200);
    assert!(slow >= Duration::from_millis(300) && fast < slow, "{slow:?}, {fast:?}");
}

#[tokio::test]
async fn hanging_and_endless_answers_end_when_the_receiver_stops() {
    let (receiver, client) = receiver().await;
    let hang = statuses(&receiver, &client, "/hang", 1);
    let endless = async |path: &'static str| {
        let request = http::Request::post(receiver.url(path)).body(Default::default()).unwrap();
        let mut body = client.request(request).await.unwrap().into_body();
        body.frame().await.unwrap().unwrap().into_data().unwrap()
    };
    let stop = async {
        assert_eq!(endless("/drip").await, ".");
        assert!(endless("/big").await.len() > 1000);
        let arrived =
            |ledger: &floodway_loadtest::receive::ledger::Ledger| ledger.totals("/hang").arrivals == 1;
        assert!(receiver.wait_until(DEADLINE, arrived).await);
        tokio::time::timeout(DEADLINE, receiver.stop()).await.unwrap();
    };
    let (statuses, ()) = tokio::join!(hang, stop);
    assert_eq!(statuses, [0]);
    assert_eq!(receiver.ledger().totals("/big").delivered, 0);
}

#[tokio::test]
async fn http_2_without_tls_is_understood() {
    let (receiver, _) = receiver().await;
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .http2_only(true)
        .build_http();
    let answer = post(&client, &receiver.url("/ok"), &[("webhook-id", "msg_1")], b"x").await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (200, http::Version::HTTP_2));
    assert_eq!(receiver.ledger().totals("/ok").delivered, 1);
}

#[tokio::test]
async fn the_ledger_counts_per_path_and_webhook() {
    let (receiver, client) = receiver().await;
    statuses(&receiver, &client, "/fail/2", 4).await;
    statuses(&receiver, &client, "/ok", 1).await;
    post(&client, &receiver.url("/ok"), &[("webhook-id", "msg_2")], b"other").await.unwrap();
    let failing = receiver.ledger().entry("/fail/2", "msg_1").unwrap();
    assert_eq!((failing.arrivals, failing.successes, failing.order), (4, 2, 0));
    assert_eq!(failing.event_id.as_deref(), Some("e-1"));
    assert!(failing.first_success.unwrap() > failing.first_arrival);
    let totals = receiver.ledger().totals("/ok");
    assert_eq!((totals.webhooks, totals.arrivals, totals.delivered, totals.body_bytes), (2, 2, 2, 7));
    let order: Vec<String> = receiver.ledger().entries("/ok").into_iter().map(|(id, _)| id).collect();
    assert_eq!(order, ["msg_1", "msg_2"]);
    let captured = receiver.captured();
    assert_eq!((captured.len(), &captured[5].body[..]), (6, &b"other"[..]));

    let summary = post(&client, &receiver.url("/_ledger"), &[], b"").await.unwrap();
    let summary: serde_json::Value = serde_json::from_slice(summary.body()).unwrap();
    assert_eq!(summary["paths"]["/fail/2"]["arrivals"], 4);
    assert_eq!(summary["untracked"], 0);
}

#[tokio::test]
async fn an_endpoint_can_break_and_heal_while_it_serves() {
    let (receiver, client) = receiver().await;
    receiver.set_behaviour("/ok", Behaviour::Gone);
    assert_eq!(statuses(&receiver, &client, "/ok", 1).await, [410]);
    receiver.set_behaviour("/ok", Behaviour::Ok);
    assert_eq!(statuses(&receiver, &client, "/ok", 1).await, [200]);
}

#[tokio::test]
async fn only_fresh_signatures_of_a_known_secret_are_accepted() {
    let (receiver, client) = receiver().await;
    let now = unix_seconds();
    receiver.set_secrets("/ok/signed", &[SECRET]).unwrap();
    receiver.set_secrets("/ok/rotating", &[OTHER_SECRET, SECRET]).unwrap();
    for (path, secret, timestamp, expected, verdict) in [
        ("/ok/signed", SECRET, now, 200, Verdict::Valid),
        ("/ok/signed", OTHER_SECRET, now, 401, Verdict::Invalid(Refusal::Signature)),
        ("/ok/signed", SECRET, now - 600, 401, Verdict::Invalid(Refusal::Timestamp)),
        ("/ok/signed", SECRET, now + 600, 401, Verdict::Invalid(Refusal::Timestamp)),
        ("/ok/rotating", SECRET, now, 200, Verdict::Valid),
        ("/ok/unsigned", OTHER_SECRET, now, 200, Verdict::NotChecked),
    ] {
        let status = deliver(&receiver, &client, path, secret, timestamp).await;
        assert_eq!((status, receiver.captured().pop().unwrap().verdict), (expected, verdict), "{path}");
    }
    let unsigned =
        post(&client, &receiver.url("/ok/signed"), &[("webhook-id", "msg_1")], b"{}").await.unwrap();
    assert_eq!(unsigned.status(), 401);
    let totals = receiver.ledger().totals("/ok/signed");
    assert_eq!((totals.arrivals, totals.verified, totals.delivered), (1, 1, 1));
    assert_eq!((totals.invalid_signatures, totals.invalid_timestamps), (4, 2));
    assert!(receiver.set_secrets("/ok", &["whsec_!"]).is_err());
}
