use crate::world::{World, settings};
use floodway_control_plane::Settings;
use floodway_runtime::testing::SEALING_KEY;
use floodway_schemas::{
    config::{ConfigChange, Subscription, SubscriptionState},
    due::{Due, Origin},
    event::Event,
    seal::SealingKeys,
};
use secrecy::ExposeSecret;
use serde_json::json;

async fn last_published(world: &World) -> Subscription {
    let records = world.config_records().await;
    match records.last().unwrap().change() {
        ConfigChange::Subscription(subscription) => *subscription,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_subscription_is_published_with_its_secret_sealed_for_it() {
    let world = World::start().await;
    let path = format!("/v1/tenants/{}/subscriptions", world.tenant().await);
    let body = r#"{"url":"https://example.com/hook?a=b","types":["order.*","invoice.paid"],"name":"orders",
        "retry":{"delays_seconds":[1,2.5],"jitter":0,"max_age_seconds":60},"history":"all","timeout_ms":2000,
        "headers":{"X-Team":"blue"},"format":"cloudevents","active_from":"2026-01-01T00:00:00Z"}"#;
    let created = world.plane.post(&path, body).await;
    assert_eq!(created.status, 201, "{created:?}");
    let published = last_published(&world).await;
    assert_eq!(published.id.to_string(), created.text("id"));
    assert_eq!(published.url.as_str(), "https://example.com/hook?a=b");
    assert_eq!(serde_json::to_value(&published.types).unwrap(), json!(["order.*", "invoice.paid"]));
    assert_eq!(published.retry.delays_seconds, [1.0, 2.5]);
    assert_eq!(
        (published.timeout_ms, published.version, published.state),
        (2_000, 1, SubscriptionState::Active)
    );
    assert_eq!(published.headers.get("x-team").map(String::as_str), Some("blue"));
    assert_eq!(published.active_from.to_rfc3339(), "2026-01-01T00:00:00.000Z");
    let keys = SealingKeys::parse(&SEALING_KEY.to_owned().into()).unwrap();
    let opened = keys.open(&published.secrets[0].sealed, &published.id.to_string()).unwrap();
    assert_eq!(opened.expose_secret(), created.text("secret"));
    assert!(created.text("secret").starts_with("whsec_"));

    let shown = world.plane.get(&format!("{path}/{}", created.text("id"))).await;
    assert_eq!(shown.status, 200);
    assert_eq!(
        (&shown.json["name"], &shown.json["history"], &shown.json["format"]),
        (&json!("orders"), &json!("all"), &json!("cloudevents"))
    );
    assert!(shown.json.get("secret").is_none());
    let shown = format!("{path}/{}", created.text("id"));
    for history in [json!({"sampled": 100}), json!("counters"), json!({"sampled": 7})] {
        let changed = world.plane.patch(&shown, &json!({"history": history}).to_string()).await;
        assert_eq!((changed.status, &changed.json["history"]), (200, &history), "{changed:?}");
        assert_eq!(world.plane.get(&shown).await.json["history"], history);
        assert_eq!(serde_json::to_value(last_published(&world).await.history).unwrap(), history);
    }
    world.end().await;
}

#[tokio::test]
async fn secrets_are_nowhere_in_clear() {
    let world = World::start().await;
    let tenant = world.tenant().await;
    let path = format!("/v1/tenants/{tenant}/subscriptions");
    let created = world.plane.post(&path, r#"{"url":"https://example.com/"}"#).await;
    let rotated =
        world.plane.call("POST", &format!("{path}/{}/rotate-secret", created.text("id")), None).await;
    let key =
        world.plane.post(&format!("/v1/tenants/{tenant}/api-keys"), r#"{"name":"k"}"#).await.text("key");
    let key_secret = key.splitn(4, '_').nth(3).unwrap().to_owned();
    let secrets = [created.text("secret"), rotated.text("secret"), key_secret];

    let mut stored = Vec::new();
    let client = world.pool.get().await.unwrap();
    for table in ["tenant", "api_key", "subscription", "config_outbox"] {
        // The outbox holds bytes: as escaped text, so that they can be searched.
        let value = if table == "config_outbox" { "encode(value, 'escape')" } else { "t::text" };
        for row in client.query(&format!("SELECT {value} FROM {table} t"), &[]).await.unwrap() {
            stored.push(row.get::<_, Option<String>>(0).unwrap_or_default());
        }
    }
    drop(client);
    for record in world.config_records().await {
        stored.push(String::from_utf8(record.value.unwrap_or_default()).unwrap());
    }
    assert!(stored.iter().any(|text| text.contains("fws1.test.")), "the sealed form is looked at too");
    for secret in secrets {
        let bare = secret.trim_start_matches("whsec_");
        assert!(stored.iter().all(|text| !text.contains(bare)), "a secret is stored in clear");
    }
    world.end().await;
}

#[tokio::test]
async fn a_change_leaves_other_fields_and_raises_the_version() {
    let world = World::start().await;
    let tenant = world.tenant().await;
    let path = format!("/v1/tenants/{tenant}/subscriptions/{}", world.subscription(&tenant).await);
    let body = r#"{"types":["a.b"],"name":"n","retry":{"delays_seconds":[]},"headers":{"x-a":"1"},"timeout_ms":100}"#;
    let changed = world.plane.patch(&path, body).await;
    assert_eq!((changed.status, &changed.json["version"]), (200, &json!(2)), "{changed:?}");
    assert_eq!(
        (&changed.json["types"], &changed.json["url"]),
        (&json!(["a.b"]), &json!("https://example.com/hook"))
    );
    assert_eq!(
        (&changed.json["retry"]["delays_seconds"], &changed.json["retry"]["jitter"]),
        (&json!([]), &json!(0.2))
    );
    let cleared = world.plane.patch(&path, r#"{"name":null,"retry":null,"url":"http://example.org/"}"#).await;
    assert_eq!((&cleared.json["name"], &cleared.json["url"]), (&json!(null), &json!("http://example.org/")));
    assert_eq!(cleared.json["retry"]["delays_seconds"].as_array().unwrap().len(), 8);
    assert_eq!(last_published(&world).await.version, 3);
    world.plane.patch(&path, r#"{"url":"http://10.0.0.1/"}"#).await.is_problem(400, "private");
    world.plane.patch(&path, r#"{"state":"active"}"#).await.is_problem(400, "state");
    assert_eq!(world.plane.delete(&path).await.status, 200);
    assert_eq!(world.config_records().await.last().unwrap().value, None);
    world.plane.get(&path).await.is_problem(404, "subscription");
    world.plane.delete(&path).await.is_problem(404, "subscription");
    world.plane.patch(&path, "{}").await.is_problem(404, "subscription");
    world.end().await;
}

#[tokio::test]
async fn bad_subscriptions_are_refused_by_the_name_of_the_field() {
    let world = World::start().await;
    let path = format!("/v1/tenants/{}/subscriptions", world.tenant().await);
    let many_types = format!("[{}]", vec!["\"a\""; 65].join(","));
    let table = [
        ("{}".to_owned(), "url"),
        (r#"{"url":"ftp://example.com/"}"#.to_owned(), "url"),
        (r#"{"url":"http://169.254.169.254/"}"#.to_owned(), "metadata"),
        (r#"{"url":"http://localhost/"}"#.to_owned(), "FLOODWAY_CONTROL_PLANE__ALLOWED_NETWORKS"),
        (r#"{"url":"https://e.com/","types":[]}"#.to_owned(), "types has 0 entries"),
        (r#"{"url":"https://e.com/","types":["a*"]}"#.to_owned(), "type pattern"),
        (format!("{{\"url\":\"https://e.com/\",\"types\":{many_types}}}"), "types has 65 entries"),
        (r#"{"url":"https://e.com/","retry":{"jitter":0.9}}"#.to_owned(), "jitter"),
        (r#"{"url":"https://e.com/","retry":{"delay":1}}"#.to_owned(), "unknown field `delay`"),
        (r#"{"url":"https://e.com/","timeout_ms":50}"#.to_owned(), "timeout_ms"),
        (r#"{"url":"https://e.com/","timeout_ms":60001}"#.to_owned(), "timeout_ms"),
        (r#"{"url":"https://e.com/","headers":{"Webhook-Id":"x"}}"#.to_owned(), "headers.webhook-id"),
        (r#"{"url":"https://e.com/","history":"none"}"#.to_owned(), "history"),
        (r#"{"url":"https://e.com/","history":{"sampled":1}}"#.to_owned(), "sampled is 1"),
        (r#"{"url":"https://e.com/","history":{"sampled":0}}"#.to_owned(), "history"),
        (r#"{"url":"https://e.com/","format":"xml"}"#.to_owned(), "format"),
        (r#"{"url":"https://e.com/","filter":"data.total >"}"#.to_owned(), "filter: not a CEL expression"),
        (r#"{"url":"https://e.com/","filter":"order.total > 1"}"#.to_owned(), "\"order\" is unknown"),
        (r#"{"url":"https://e.com/","filter":"size(data)"}"#.to_owned(), "filter must be a condition"),
        (r#"{"url":"https://e.com/","filter":""}"#.to_owned(), "filter has 1 to 1024 bytes"),
        (r#"{"url":"https://e.com/","batch":{"max_events":1}}"#.to_owned(), "batch.max_events is 1"),
        (
            r#"{"url":"https://e.com/","batch":{"max_bytes":2000000}}"#.to_owned(),
            "batch.max_bytes is 2000000",
        ),
        (r#"{"url":"https://e.com/","batch":{"max_age_ms":5}}"#.to_owned(), "batch.max_age_ms is 5"),
        (r#"{"url":"https://e.com/","batch":{"events":5}}"#.to_owned(), "unknown field `events`"),
        (r#"{"url":"https://e.com/","batch":{},"format":"data"}"#.to_owned(), "batch needs format"),
        (
            r#"{"url":"https://e.com/","retry":{"max_attempts":201}}"#.to_owned(),
            "retry.max_attempts is 201, it must be from 1 to 200",
        ),
        (
            r#"{"url":"https://e.com/","retry":{"delays_seconds":[],"max_attempts":2}}"#.to_owned(),
            "retry.delays_seconds is empty",
        ),
        (
            r#"{"url":"https://e.com/","retry":{"delays_seconds":[2592001]}}"#.to_owned(),
            "retry.delays_seconds holds 2592001",
        ),
        (r#"{"url":"https://e.com/","fallback_url":"https://e.com"}"#.to_owned(), "fallback_url is url"),
        (
            r#"{"url":"https://e.com/","fallback_url":"http://10.1.2.3/"}"#.to_owned(),
            "fallback_url points to",
        ),
        (r#"{"url":"https://e.com/","breaker":{"failures":65}}"#.to_owned(), "breaker.failures is 65"),
        (r#"{"url":"https://e.com/","breaker":{"open":1}}"#.to_owned(), "unknown field `open`"),
        (
            r#"{"url":"https://e.com/","requests_per_second":0}"#.to_owned(),
            "requests_per_second is 0, it must be from 1 to 1000000",
        ),
        (r#"{"url":"https://e.com/","signature":"v2"}"#.to_owned(), "signature"),
        (r#"{"url":"https://e.com/","secret":"whsec_x"}"#.to_owned(), "unknown field `secret`"),
    ];
    for (body, detail) in table {
        world.plane.post(&path, &body).await.is_problem(400, detail);
    }
    let unknown = "/v1/tenants/01938f2e-0000-7000-8000-000000000001/subscriptions";
    world.plane.post(unknown, r#"{"url":"https://e.com/"}"#).await.is_problem(404, "tenant");
    world.end().await;
}

#[tokio::test]
async fn batches_imply_whole_envelopes_and_end_with_null() {
    let world = World::start().await;
    let path = format!("/v1/tenants/{}/subscriptions", world.tenant().await);
    let created = world.plane.post(&path, r#"{"url":"https://e.com/","batch":{"max_events":7}}"#).await;
    let expected = json!({"max_events": 7, "max_bytes": 262_144, "max_age_ms": 1_000});
    assert_eq!((created.status, &created.json["batch"]), (201, &expected), "{created:?}");
    assert_eq!(created.json["format"], "cloudevents");
    assert_eq!(serde_json::to_value(last_published(&world).await.batch).unwrap(), expected);

    let own = format!("{path}/{}", created.text("id"));
    world.plane.patch(&own, r#"{"format":"data"}"#).await.is_problem(400, "batch needs format");
    let changed = world.plane.patch(&own, r#"{"batch":{"max_age_ms":50},"name":"n"}"#).await;
    assert_eq!(changed.json["batch"], json!({"max_events": 100, "max_bytes": 262_144, "max_age_ms": 50}));
    let kept = world.plane.patch(&own, r#"{"name":"m"}"#).await;
    assert_eq!(kept.json["batch"]["max_age_ms"], 50);
    let ended = world.plane.patch(&own, r#"{"batch":null,"format":"data"}"#).await;
    assert_eq!((&ended.json["batch"], &ended.json["format"]), (&json!(null), &json!("data")));
    assert_eq!(last_published(&world).await.batch, None);
    world.plane.patch(&own, r#"{"batch":{}}"#).await.is_problem(400, "batch needs format");
    let again = world.plane.patch(&own, r#"{"batch":{},"format":"cloudevents"}"#).await;
    assert_eq!((again.status, &again.json["batch"]["max_events"]), (200, &json!(100)));
    assert_eq!(world.plane.get(&own).await.json["batch"], again.json["batch"]);
    world.end().await;
}

#[tokio::test]
async fn what_holds_for_an_endpoint_that_is_away_is_published_changed_and_removed() {
    let world = World::start().await;
    let path = format!("/v1/tenants/{}/subscriptions", world.tenant().await);
    let body = r#"{"url":"https://e.com/","fallback_url":"https://else.com/x","breaker":{"failures":3,"pause_ms":1000},
        "requests_per_second":50,"retry":{"delays_seconds":[1,2592000],"max_attempts":7,"max_age_seconds":7776000}}"#;
    let created = world.plane.post(&path, body).await;
    let breaker = json!({"failures": 3, "percent": null, "pause_ms": 1_000, "max_pause_ms": null});
    assert_eq!((created.status, &created.json["breaker"]), (201, &breaker), "{created:?}");
    assert_eq!(
        (
            &created.json["fallback_url"],
            &created.json["requests_per_second"],
            &created.json["retry"]["max_attempts"]
        ),
        (&json!("https://else.com/x"), &json!(50), &json!(7))
    );
    let published = last_published(&world).await;
    assert_eq!(published.fallback_url.unwrap().as_str(), "https://else.com/x");
    assert_eq!((published.breaker.unwrap().failures, published.retry.max_attempts), (Some(3), Some(7)));
    assert_eq!(published.requests_per_second.unwrap().get(), 50);

    let own = format!("{path}/{}", created.text("id"));
    world.plane.patch(&own, r#"{"url":"https://else.com/x"}"#).await.is_problem(400, "url is fallback_url");
    let both = r#"{"url":"https://else.com/x","fallback_url":"https://e.com/","requests_per_second":null}"#;
    let swapped = world.plane.patch(&own, both).await;
    assert_eq!(
        (
            swapped.status,
            &swapped.json["fallback_url"],
            &swapped.json["breaker"],
            &swapped.json["requests_per_second"]
        ),
        (200, &json!("https://e.com/"), &breaker, &json!(null))
    );
    let removed = world.plane.patch(&own, r#"{"fallback_url":null,"breaker":null}"#).await;
    assert_eq!((&removed.json["fallback_url"], &removed.json["breaker"]), (&json!(null), &json!(null)));
    let published = last_published(&world).await;
    assert_eq!(
        (published.fallback_url, published.breaker, published.requests_per_second),
        (None, None, None)
    );
    world.end().await;
}

#[tokio::test]
async fn networks_that_the_operator_allows_are_accepted() {
    let world =
        World::start_with(Settings { allowed_networks: vec!["127.0.0.0/8".parse().unwrap()], ..settings() })
            .await;
    let path = format!("/v1/tenants/{}/subscriptions", world.tenant().await);
    for url in ["http://127.0.0.1:9000/a", "http://localhost:9000/a"] {
        let created = world.plane.post(&path, &format!("{{\"url\":\"{url}\"}}")).await;
        assert_eq!((created.status, created.text("url").as_str()), (201, url));
    }
    let listed = world.plane.get(&format!("{path}?limit=1")).await;
    assert_eq!(listed.json["items"].as_array().unwrap().len(), 1);
    let cursor = listed.text("next_cursor");
    let rest = world.plane.get(&format!("{path}?cursor={cursor}")).await;
    assert_eq!((rest.json["items"].as_array().unwrap().len(), &rest.json["next_cursor"]), (1, &json!(null)));
    world.end().await;
}

#[tokio::test]
async fn states_follow_their_rules() {
    let world = World::start().await;
    let tenant = world.tenant().await;
    let path = format!("/v1/tenants/{tenant}/subscriptions/{}", world.subscription(&tenant).await);
    // Action, then the state it leads to, or none when it is refused.
    let walk = [
        ("resume", Some("active")),
        ("pause", Some("paused")),
        ("pause", Some("paused")),
        ("enable", None),
        ("resume", Some("active")),
        ("disable", Some("disabled")),
        ("disable", Some("disabled")),
        ("pause", None),
        ("resume", None),
        ("enable", Some("active")),
        ("enable", Some("active")),
    ];
    let mut version = 1;
    for (action, state) in walk {
        let answer = world.plane.call("POST", &format!("{path}/{action}"), None).await;
        match state {
            Some(state) => {
                version += 1;
                assert_eq!((answer.status, answer.text("state").as_str()), (200, state), "{action}");
                let published = last_published(&world).await;
                assert_eq!((published.version, published.state.as_str()), (version, state));
            }
            None => answer.is_problem(409, "the subscription is"),
        }
    }
    let unknown = format!("/v1/tenants/{tenant}/subscriptions/01938f2e-0000-7000-8000-000000000001");
    for action in ["pause", "resume", "disable", "enable", "rotate-secret", "test"] {
        world.plane.call("POST", &format!("{unknown}/{action}"), None).await.is_problem(404, "subscription");
    }
    world.end().await;
}

#[tokio::test]
async fn rotation_keeps_the_old_secret_for_the_overlap_and_three_at_most() {
    let world = World::start().await;
    let tenant = world.tenant().await;
    let path =
        format!("/v1/tenants/{tenant}/subscriptions/{}/rotate-secret", world.subscription(&tenant).await);
    let rotated = world.plane.post(&path, r#"{"overlap_seconds":3600}"#).await;
    assert_eq!(rotated.status, 200, "{rotated:?}");
    let published = last_published(&world).await;
    assert_eq!(published.secrets.len(), 2);
    assert_eq!(published.secrets[0].expires_at, None);
    let end = published.secrets[1].expires_at.unwrap().to_rfc3339();
    assert_eq!(end, rotated.text("previous_expires_at"));
    for _ in 0..3 {
        assert_eq!(world.plane.call("POST", &path, None).await.status, 200);
    }
    assert_eq!(last_published(&world).await.secrets.len(), 3);
    assert_eq!(world.plane.post(&path, r#"{"overlap_seconds":0}"#).await.status, 200);
    assert_eq!(last_published(&world).await.secrets.len(), 1);
    world.plane.post(&path, r#"{"overlap_seconds":604801}"#).await.is_problem(400, "604800");
    world.plane.post(&path, r#"{"overlap":1}"#).await.is_problem(400, "overlap");
    world.end().await;
}

#[tokio::test]
async fn an_asymmetric_signature_shows_its_public_key_and_never_its_secret() {
    let world = World::start().await;
    let path = format!("/v1/tenants/{}/subscriptions", world.tenant().await);
    let created = world.plane.post(&path, r#"{"url":"https://e.com/","signature":"v1a"}"#).await;
    assert_eq!((created.status, &created.json["signature"]), (201, &json!("v1a")), "{created:?}");
    let public = created.text("secret");
    assert!(public.starts_with("whpk_"), "{created:?}");
    let path = format!("{path}/{}", created.text("id"));
    let shown = world.plane.get(&path).await;
    assert_eq!(shown.json["secrets"], json!([{"public_key": public, "expires_at": null}]));
    assert!(!shown.json.to_string().contains("whsk_"));
    let published = last_published(&world).await;
    let keys = SealingKeys::parse(&SEALING_KEY.to_owned().into()).unwrap();
    let opened = keys.open(&published.secrets[0].sealed, &published.id.to_string()).unwrap();
    assert!(opened.expose_secret().starts_with("whsk_"));

    // A rotation keeps the scheme unless it names another one; both sign meanwhile.
    let rotate = format!("{path}/rotate-secret");
    assert!(world.plane.post(&rotate, "{}").await.text("secret").starts_with("whpk_"));
    assert!(world.plane.post(&rotate, r#"{"signature":"v1"}"#).await.text("secret").starts_with("whsec_"));
    let shown = world.plane.get(&path).await;
    assert_eq!(shown.json["signature"], "v1");
    let keys: Vec<bool> = (0..3).map(|at| shown.json["secrets"][at]["public_key"].is_string()).collect();
    assert_eq!(keys, [false, true, true]);
    world.end().await;
}

#[tokio::test]
async fn a_filter_is_published_changed_and_removed() {
    let world = World::start().await;
    let path = format!("/v1/tenants/{}/subscriptions", world.tenant().await);
    let filter = "data.total > 100 && event.source == '/shop'";
    let body = json!({"url": "https://e.com/", "filter": filter}).to_string();
    let created = world.plane.post(&path, &body).await;
    assert_eq!((created.status, &created.json["filter"]), (201, &json!(filter)), "{created:?}");
    assert_eq!(last_published(&world).await.filter.as_deref(), Some(filter));
    let path = format!("{path}/{}", created.text("id"));
    world.plane.patch(&path, r#"{"filter":"1 +"}"#).await.is_problem(400, "filter");
    world.plane.patch(&path, r#"{"name":"n"}"#).await;
    assert_eq!(world.plane.get(&path).await.json["filter"], filter);
    let removed = world.plane.patch(&path, r#"{"filter":null}"#).await;
    assert_eq!((removed.status, &removed.json["filter"]), (200, &json!(null)));
    assert_eq!(last_published(&world).await.filter, None);
    world.end().await;
}

#[tokio::test]
async fn a_test_event_lands_on_replays_whatever_the_patterns_say() {
    let world = World::start().await;
    let tenant = world.tenant().await;
    let path = format!("/v1/tenants/{tenant}/subscriptions");
    let created = world.plane.post(&path, r#"{"url":"https://example.com/","types":["order.*"]}"#).await;
    let path = format!("{path}/{}", created.text("id"));
    let answer = world.plane.call("POST", &format!("{path}/test"), None).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    let records = world.replay_records().await;
    assert_eq!(records.len(), 1);
    let value = records[0].value.clone().unwrap();
    let due = Due::decode(&value).unwrap();
    assert_eq!(due.origin, Origin::ReplayId(answer.text("replay_id").parse().unwrap()));
    assert_eq!(
        (due.attempt, due.subscription.to_string(), due.tenant.to_string()),
        (1, created.text("id"), tenant)
    );
    let event = Event::decode(due.event.get().as_bytes()).unwrap();
    assert_eq!(
        (event.event_type.as_ref(), event.id.as_ref()),
        ("floodway.test", answer.text("event_id").as_str())
    );
    assert_eq!(records[0].key, format!("{}/{}", created.text("id"), event.id));

    world.plane.call("POST", &format!("{path}/pause"), None).await;
    world.plane.call("POST", &format!("{path}/test"), None).await.is_problem(409, "paused");
    world.end().await;
}
