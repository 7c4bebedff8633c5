use crate::world::World;
use floodway_schemas::config::{ConfigChange, ConfigKey, TenantState};
use serde_json::json;
use std::num::NonZeroU32;

const UNKNOWN: &str = "/v1/tenants/01938f2e-0000-7000-8000-000000000001";

#[tokio::test]
async fn a_tenant_is_on_the_config_topic_before_its_creation_is_answered() {
    let world = World::start().await;
    let created = world
        .plane
        .post("/v1/tenants", r#"{"name":"Acme","events_per_second":50,"requests_per_second":7}"#)
        .await;
    assert_eq!(created.status, 201, "{created:?}");
    let records = world.config_records().await;
    let record = records.iter().find(|record| record.offset == created.offset()).unwrap();
    let ConfigChange::Tenant(tenant) = record.change() else { panic!("{record:?}") };
    assert_eq!(tenant.id.to_string(), created.text("id"));
    assert_eq!((tenant.name.as_str(), tenant.version, tenant.state), ("Acme", 1, TenantState::Active));
    let rates = (tenant.events_per_second, tenant.requests_per_second);
    assert_eq!(rates, (NonZeroU32::new(50), NonZeroU32::new(7)));
    assert_eq!(created.json["requests_per_second"], 7);
    world.end().await;
}

#[tokio::test]
async fn a_tenant_can_be_shown_changed_and_deleted() {
    let world = World::start().await;
    let plane = &world.plane;
    let id = world.tenant().await;
    let path = format!("/v1/tenants/{id}");
    let shown = plane.get(&path).await;
    assert_eq!((shown.status, &shown.json["version"], &shown.json["name"]), (200, &json!(1), &json!("Acme")));
    assert!(shown.json.get("config_offset").is_none());

    let changed = plane.patch(&path, r#"{"state":"suspended","events_per_second":5}"#).await;
    assert_eq!((changed.status, &changed.json["version"]), (200, &json!(2)), "{changed:?}");
    assert_eq!((&changed.json["state"], &changed.json["name"]), (&json!("suspended"), &json!("Acme")));
    let changed = plane.patch(&path, r#"{"requests_per_second":9}"#).await;
    assert_eq!(
        (&changed.json["events_per_second"], &changed.json["requests_per_second"]),
        (&json!(5), &json!(9))
    );
    let changed = plane.patch(&path, r#"{"events_per_second":null,"name":"Acme & Co"}"#).await;
    assert_eq!((&changed.json["events_per_second"], &changed.json["version"]), (&json!(null), &json!(4)));
    plane.patch(&path, r#"{"state":"gone"}"#).await.is_problem(400, "gone");
    for rate in ["events_per_second", "requests_per_second"] {
        plane.patch(&path, &format!(r#"{{"{rate}":0}}"#)).await.is_problem(400, rate);
    }

    let subscription = world.subscription(&id).await;
    let key = plane.post(&format!("{path}/api-keys"), r#"{"name":"k"}"#).await.text("id");
    let deleted = plane.delete(&path).await;
    assert_eq!((deleted.status, &deleted.json["deleted"]), (200, &json!(true)));
    plane.get(&path).await.is_problem(404, "tenant");
    plane.delete(&path).await.is_problem(404, "tenant");
    let last: Vec<ConfigChange> =
        world.config_records().await.iter().rev().take(3).map(|record| record.change()).collect();
    assert_eq!(last[0], ConfigChange::Deleted(ConfigKey::Tenant(id.parse().unwrap())));
    assert_eq!(last[1], ConfigChange::Deleted(ConfigKey::Subscription(subscription.parse().unwrap())));
    assert_eq!(last[2], ConfigChange::Deleted(ConfigKey::ApiKey(key.parse().unwrap())));
    world.end().await;
}

#[tokio::test]
async fn tenants_are_listed_in_pages() {
    let world = World::start().await;
    let mut created = Vec::new();
    for _ in 0..5 {
        created.push(world.tenant().await);
    }
    let (mut listed, mut path) = (Vec::new(), "/v1/tenants?limit=2".to_owned());
    loop {
        let page = world.plane.get(&path).await;
        let items = page.json["items"].as_array().unwrap();
        assert!(items.len() <= 2);
        listed.extend(items.iter().map(|item| item["id"].as_str().unwrap().to_owned()));
        match page.json["next_cursor"].as_str() {
            Some(cursor) => path = format!("/v1/tenants?limit=2&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(listed, created);
    for query in ["limit=0", "limit=501", "limit=x", "cursor=zzz"] {
        world.plane.get(&format!("/v1/tenants?{query}")).await.is_problem(400, "");
    }
    world.end().await;
}

#[tokio::test]
async fn unknown_tenants_and_bad_names_are_refused() {
    let world = World::start().await;
    let plane = &world.plane;
    plane.get(UNKNOWN).await.is_problem(404, "tenant");
    plane.get("/v1/tenants/not-an-id").await.is_problem(404, "");
    plane.patch(UNKNOWN, "{}").await.is_problem(404, "tenant");
    for list in ["api-keys", "subscriptions", "deliveries", "counts", "dead-letters"] {
        plane.get(&format!("{UNKNOWN}/{list}")).await.is_problem(404, "tenant");
    }
    for name in ["", "a\\u0007b", &"x".repeat(201)] {
        plane.post("/v1/tenants", &format!("{{\"name\":\"{name}\"}}")).await.is_problem(400, "name");
    }
    plane.post("/v1/tenants", "{}").await.is_problem(400, "name");
    world.end().await;
}

#[tokio::test]
async fn a_tenant_with_thousands_of_subscriptions_is_deleted_in_order_and_without_gaps() {
    const COPIES: i64 = 11_000;
    let world = World::start().await;
    let tenant = world.tenant().await;
    world.subscription(&tenant).await;
    let columns =
        "tenant_id, name, url, types, state, active_from, secrets, retry, history, timeout_ms, headers,
        format, version, created_at, updated_at";
    let copy = format!(
        "INSERT INTO subscription (id, {columns}) SELECT gen_random_uuid(), {columns}
         FROM subscription, generate_series(1, {COPIES})"
    );
    let client = world.pool.get().await.unwrap();
    client.batch_execute(&copy).await.unwrap();
    // One statement for all of them: an insert of a single deletion of a subscription is refused.
    let once = "CREATE FUNCTION once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF EXISTS (SELECT FROM added WHERE entity_key LIKE 'subscription/%') AND (SELECT count(*) FROM added) = 1
            THEN RAISE 'row by row'; END IF; RETURN NULL; END $$;
        CREATE TRIGGER once AFTER INSERT ON config_outbox REFERENCING NEW TABLE AS added
            FOR EACH STATEMENT EXECUTE FUNCTION once()";
    client.batch_execute(once).await.unwrap();
    let answer = world.plane.delete(&format!("/v1/tenants/{tenant}")).await;
    assert!(matches!(answer.status, 200 | 202), "{answer:?}");
    let sql = "SELECT min(id), max(id), count(*) FROM config_outbox";
    crate::world::eventually("published", || async {
        client.query_one("SELECT outbox_id FROM config_publication", &[]).await.unwrap().get::<_, i64>(0)
            == COPIES + 4
    })
    .await;
    let row = client.query_one(sql, &[]).await.unwrap();
    let (first, last, count): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert_eq!((last, count), (COPIES + 4, last - first + 1), "no gap");
    let records = world.config_records().await;
    assert_eq!(records.last().map(|record| record.key.clone()), Some(format!("tenant/{tenant}")));
    drop(client);
    world.end().await;
}
