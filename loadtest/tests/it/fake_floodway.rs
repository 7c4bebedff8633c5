//! The public interfaces of Floodway, in memory: enough for the demo to run against, and able to do wrong.

use crate::http::{HttpClient, client, json, post, serve};
use bytes::Bytes;
use floodway_loadtest::demo::environment::Listeners;
use http::{Method, Request, Response};
use serde_json::{Value, json as value};
use standardwebhooks::Webhook;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use tokio::task::JoinSet;

/// What the fake does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Calls the delivery of event 3 delivered without making it.
    Lose,
    /// Signs event 3 with a secret of its own.
    WrongSecret,
    /// Forgets one dead letter.
    ForgetDeadLetter,
}

#[derive(Clone)]
pub(crate) struct FakeFloodway {
    state: Arc<Mutex<State>>,
    fault: Fault,
    client: HttpClient,
}

#[derive(Default)]
struct State {
    subscriptions: BTreeMap<String, Subscription>,
    deliveries: JoinSet<()>,
    probes_to_refuse: u32,
}

#[derive(Clone)]
struct Subscription {
    url: String,
    types: Vec<String>,
    attempts: usize,
    delivered: u64,
    retry: u64,
    dead: Vec<String>,
}

impl FakeFloodway {
    /// Serves until the set is dropped.
    pub(crate) async fn start(tasks: &mut JoinSet<()>, fault: Fault) -> Listeners {
        let state = State { probes_to_refuse: 2, ..State::default() };
        let fake = Self { state: Arc::new(Mutex::new(state)), fault, client: client() };
        let (ingest, control_plane) = (fake.clone(), fake);
        Listeners {
            ingest: serve(tasks, move |request| {
                let response = ingest.accept(&request);
                async move { response }
            })
            .await,
            control_plane: serve(tasks, move |request| {
                let response = control_plane.administer(&request);
                async move { response }
            })
            .await,
            admin: serve(tasks, |_| async { json(200, "{}") }).await,
        }
    }

    fn accept(&self, request: &Request<Bytes>) -> Response<Bytes> {
        let mut state = self.state.lock().unwrap();
        if state.probes_to_refuse > 0 {
            // The key is not known yet.
            state.probes_to_refuse -= 1;
            return json(401, "{}");
        }
        let body: Value = serde_json::from_slice(request.body()).unwrap();
        let events = body.as_array().cloned().unwrap_or_else(|| vec![body]);
        for event in &events {
            let event_type = event["type"].as_str().unwrap();
            let matching: Vec<String> = state
                .subscriptions
                .iter()
                .filter(|(_, subscription)| {
                    subscription.types.iter().any(|pattern| matches(pattern, event_type))
                })
                .map(|(id, _)| id.clone())
                .collect();
            for id in matching {
                state.deliveries.spawn(self.clone().deliver(id, event.clone()));
            }
        }
        let ids: Vec<&Value> = events.iter().map(|event| &event["id"]).collect();
        json(202, value!({ "accepted": events.len(), "ids": ids }).to_string())
    }

    #[allow(clippy::disallowed_methods, reason = "a signature that is valid now needs the time")]
    async fn deliver(self, id: String, event: Value) {
        let subscription = self.state.lock().unwrap().subscriptions[&id].clone();
        let event_id = event["id"].as_str().unwrap().to_owned();
        let body = event["data"].to_string().into_bytes();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let webhook_id = format!("msg_{event_id}");
        let wrong = self.fault == Fault::WrongSecret && event_id.ends_with("-3");
        let key = if wrong { b"other".to_vec() } else { secret(&id) };
        let signature = Webhook::from_bytes(key).unwrap().sign(&webhook_id, now as i64, &body).unwrap();
        let timestamp = now.to_string();
        let headers = [
            ("webhook-id", &*webhook_id),
            ("webhook-timestamp", &*timestamp),
            ("webhook-signature", &*signature),
            ("ce-id", &*event_id),
        ];
        for attempt in 1..=subscription.attempts {
            let lose = self.fault == Fault::Lose && event_id.ends_with("-3");
            let answer =
                if lose { None } else { post(&self.client, &subscription.url, &headers, &body).await };
            let delivered = lose || answer.is_some_and(|answer| answer.status().is_success());
            let mut state = self.state.lock().unwrap();
            let counted = state.subscriptions.get_mut(&id).unwrap();
            match delivered {
                true => {
                    counted.delivered += 1;
                    return;
                }
                false if attempt == subscription.attempts => counted.dead.push(event_id.clone()),
                false => counted.retry += 1,
            }
        }
    }

    fn administer(&self, request: &Request<Bytes>) -> Response<Bytes> {
        assert!(request.headers()["authorization"].to_str().unwrap().starts_with("Bearer demo_admin_"));
        let mut state = self.state.lock().unwrap();
        let path: Vec<&str> = request.uri().path().split('/').skip(2).collect();
        match (request.method(), path.as_slice()) {
            (&Method::POST, ["tenants"]) => json(201, r#"{"id":"tenant-1"}"#),
            (&Method::POST, ["tenants", _, "api-keys"]) => json(201, r#"{"id":"key-1","key":"fw_live_x"}"#),
            (&Method::POST, ["tenants", _, "subscriptions"]) => {
                let body: Value = serde_json::from_slice(request.body()).unwrap();
                let id = format!("subscription-{}", state.subscriptions.len());
                let subscription = Subscription {
                    url: body["url"].as_str().unwrap().to_owned(),
                    types: serde_json::from_value(body["types"].clone()).unwrap(),
                    attempts: body["retry"]["delays_seconds"].as_array().unwrap().len() + 1,
                    delivered: 0,
                    retry: 0,
                    dead: Vec::new(),
                };
                state.subscriptions.insert(id.clone(), subscription);
                let secret = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, secret(&id));
                json(201, value!({ "id": id, "secret": format!("whsec_{secret}") }).to_string())
            }
            (&Method::DELETE, ["tenants", _, "subscriptions", _]) => json(204, ""),
            (&Method::GET, ["tenants", _, "counts"]) => {
                let item = |(id, s): (&String, &Subscription)| value!({ "subscription": id, "delivered": s.delivered, "retry": s.retry, "dead": s.dead.len() });
                let items: Vec<Value> = state.subscriptions.iter().map(item).collect();
                json(200, value!({ "items": items }).to_string())
            }
            (&Method::GET, ["tenants", _, "dead-letters"]) => self.dead_letters(&state, request),
            other => panic!("unexpected request {other:?}"),
        }
    }

    /// Pages of 10, so that the demo has to follow the cursor.
    fn dead_letters(&self, state: &State, request: &Request<Bytes>) -> Response<Bytes> {
        let query: BTreeMap<&str, &str> =
            request.uri().query().unwrap().split('&').filter_map(|pair| pair.split_once('=')).collect();
        let mut dead = state.subscriptions[query["subscription"]].dead.clone();
        if self.fault == Fault::ForgetDeadLetter {
            dead.pop();
        }
        let from: usize = query.get("cursor").map_or(0, |cursor| cursor.parse().unwrap());
        let items: Vec<Value> = dead
            .iter()
            .skip(from)
            .take(10)
            .map(|event| value!({ "id": format!("0-{event}"), "event_id": event }))
            .collect();
        let next = (from + 10 < dead.len()).then(|| (from + 10).to_string());
        json(200, value!({ "items": items, "next_cursor": next }).to_string())
    }
}

fn matches(pattern: &str, event_type: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == event_type, |prefix| event_type.starts_with(prefix))
}

fn secret(subscription: &str) -> Vec<u8> {
    format!("a secret of 24 bytes for {subscription}").into_bytes()
}
