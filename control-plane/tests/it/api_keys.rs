use crate::world::World;
use floodway_schemas::{
    api_key::PresentedKey,
    config::{ApiKeyState, ConfigChange},
};
use serde_json::json;

#[tokio::test]
async fn a_key_is_shown_once_and_published_as_its_hash() {
    let world = World::start().await;
    let path = format!("/v1/tenants/{}/api-keys", world.tenant().await);
    let created = world.plane.post(&path, r#"{"name":"checkout"}"#).await;
    assert_eq!(created.status, 201, "{created:?}");
    let key = created.text("key");
    assert!(key.starts_with("fw_live_"), "{key}");
    let presented = PresentedKey::parse(&key).unwrap();
    assert_eq!(presented.id.to_string(), created.text("id"));

    let records = world.config_records().await;
    let record = records.iter().find(|record| record.offset == created.offset()).unwrap();
    let ConfigChange::ApiKey(published) = record.change() else { panic!("{record:?}") };
    assert_eq!((published.hash, published.state), (presented.hash, ApiKeyState::Active));

    let list = world.plane.get(&path).await;
    assert_eq!(list.json["items"].as_array().unwrap().len(), 1);
    assert!(!list.json.to_string().contains(&key));
    world.end().await;
}

#[tokio::test]
async fn a_revoked_key_stays_listed_and_is_published_as_revoked() {
    let world = World::start().await;
    let path = format!("/v1/tenants/{}/api-keys", world.tenant().await);
    let created = world
        .plane
        .post(&path, r#"{"name":"k","environment":"test","expires_at":"2099-01-01T00:00:00Z","requests_per_second":3}"#)
        .await;
    assert_eq!(created.json["expires_at"], "2099-01-01T00:00:00.000Z", "{created:?}");
    assert!(created.text("key").starts_with("fw_test_"));
    let rates = (&created.json["events_per_second"], &created.json["requests_per_second"]);
    assert_eq!(rates, (&json!(null), &json!(3)));
    let revoked = world.plane.delete(&format!("{path}/{}", created.text("id"))).await;
    assert_eq!(
        (revoked.status, &revoked.json["state"], &revoked.json["version"]),
        (200, &json!("revoked"), &json!(2))
    );
    let records = world.config_records().await;
    let ConfigChange::ApiKey(published) = records.last().unwrap().change() else { panic!("{records:?}") };
    assert_eq!((published.state, published.version), (ApiKeyState::Revoked, 2));
    assert_eq!(world.plane.get(&path).await.json["items"][0]["state"], "revoked");
    world.end().await;
}

#[tokio::test]
async fn bad_keys_are_refused() {
    let world = World::start().await;
    let (tenant, other) = (world.tenant().await, world.tenant().await);
    let path = format!("/v1/tenants/{tenant}/api-keys");
    let plane = &world.plane;
    plane.post(&path, "{}").await.is_problem(400, "name");
    plane.post(&path, r#"{"name":"k","environment":"Live"}"#).await.is_problem(400, "environment");
    plane.post(&path, r#"{"name":"k","expires_at":"2001-01-01T00:00:00Z"}"#).await.is_problem(400, "future");
    plane.post(&path, r#"{"name":"k","expires_at":"soon"}"#).await.is_problem(400, "RFC 3339");
    let unknown = "01938f2e-0000-7000-8000-000000000001";
    plane.post(&format!("/v1/tenants/{unknown}/api-keys"), r#"{"name":"k"}"#).await.is_problem(404, "tenant");
    plane.delete(&format!("{path}/{unknown}")).await.is_problem(404, "API key");
    let key = plane.post(&path, r#"{"name":"k"}"#).await.text("id");
    plane.delete(&format!("/v1/tenants/{other}/api-keys/{key}")).await.is_problem(404, "API key");
    world.end().await;
}
