//! PostgreSQL behind PgBouncer in transaction mode.

use crate::world::{Plane, World, settings};
use floodway_runtime::testing::TestTopics;
use floodway_store::testing::{TestDatabase, TestPooler};
use serde_json::json;

#[tokio::test]
async fn the_api_works_behind_a_pooler_that_shares_sessions() {
    let (topics, database) = tokio::join!(TestTopics::create(2), TestDatabase::create());
    let pooler = TestPooler::start(&database).await;
    let pool = pooler.pool("control-plane", 8);
    let plane = Plane::start(settings(), topics.context(), pool.clone()).await;
    let world = World { topics, database, pool, plane };
    let plane = &world.plane;
    let work = async || {
        let tenant = world.tenant().await;
        let path = format!("/v1/tenants/{tenant}");
        for n in 0..5 {
            let subscription = world.subscription(&tenant).await;
            let subscription = format!("{path}/subscriptions/{subscription}");
            let changed = plane.patch(&subscription, &format!(r#"{{"name":"n{n}"}}"#)).await;
            assert_eq!(
                (changed.status, &changed.json["name"]),
                (200, &json!(format!("n{n}"))),
                "{changed:?}"
            );
            assert_eq!(plane.get(&subscription).await.status, 200);
        }
        let key = plane.post(&format!("{path}/api-keys"), r#"{"name":"k"}"#).await;
        assert_eq!(key.status, 201, "{key:?}");
        for list in ["subscriptions", "api-keys", "deliveries", "dead-letters"] {
            let answer = plane.get(&format!("{path}/{list}")).await;
            assert_eq!(answer.status, 200, "{list}: {answer:?}");
        }
        assert_eq!(plane.patch(&path, r#"{"name":"Acme & Co"}"#).await.status, 200);
        assert_eq!(plane.delete(&path).await.status, 200);
    };
    // More at a time than the pooler has sessions, so that statements of one meet those of another.
    tokio::join!(work(), work(), work(), work(), work(), work());
    world.end().await;
    drop(pooler);
}
