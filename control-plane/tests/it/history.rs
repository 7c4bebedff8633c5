use crate::world::{Plane, World, eventually, settings};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use floodway_control_plane::Databases;
use floodway_runtime::testing::TestTopics;
use floodway_store::{
    DbInstant, Pool,
    deliveries::{CountDelta, JsonText, NewDelivery},
    partitions::{self, Plan, Retention},
    pool::READ_POOL_SIZE,
    retry,
    testing::TestDatabase,
};
use secrecy::SecretString;
use serde_json::json;
use std::time::Duration;
use uuid::Uuid;

/// Creates the partitions that the retry scheduler would.
pub(crate) async fn prepare(pool: &Pool) {
    let mut maintainer = partitions::lock(pool).await.unwrap().unwrap();
    let month = Duration::from_secs(30 * 86_400);
    let retention = Retention { deliveries: month, counts: month, dead_letters: month };
    partitions::maintain(&mut maintainer, Plan::default(), retention).await.unwrap();
}

fn delivery(id: i64, tenant: &str, subscription: &str, kind: &'static str) -> NewDelivery {
    NewDelivery {
        id,
        at: DbInstant(1_795_275_240_123_000),
        tenant: tenant.parse().unwrap(),
        subscription: subscription.parse().unwrap(),
        event_id: format!("e-{id}"),
        event_type: "order.created".to_owned(),
        attempt: 1,
        kind,
        reason: None,
        status: Some(500),
        error: Some("status"),
        via: (kind == "dead").then_some("fallback"),
        detail: None,
        duration_ms: Some(12),
        next_at: None,
        response: Some("oops".to_owned()),
        exchange: JsonText::of(
            &json!({"address": "192.0.2.1:443", "reused": false, "timings": {"dns_us": 5, "total_us": 900},
            "request_headers": [{"name": "ce-id", "value": "1"}], "response_headers": []}),
        ),
        members: None,
        member_types: None,
    }
}

#[tokio::test]
async fn deliveries_are_listed_newest_first_by_filter_and_in_pages() {
    let world = World::start().await;
    let (tenant, other) = (world.tenant().await, world.tenant().await);
    let subscription = world.subscription(&tenant).await;
    prepare(&world.pool).await;
    let mut client = world.pool.get().await.unwrap();
    let shard = retry::take_over(&client, 0, "test", 0).await.unwrap();
    let batch = retry::begin(&mut client, 0, shard.epoch, 0, 4).await.unwrap();
    let members = |texts: &[&str]| Some(texts.iter().map(|&text| text.to_owned()).collect());
    let rows = [
        delivery(0, &tenant, &subscription, "retry"),
        delivery(1, &tenant, &subscription, "retry"),
        NewDelivery {
            members: members(&["m-1", "m-2"]),
            member_types: members(&["order.created", "order.paid"]),
            ..delivery(2, &tenant, &subscription, "dead")
        },
        delivery(3, &other, &subscription, "retry"),
    ];
    batch.add_deliveries(0, &rows.each_ref()).await.unwrap();
    let (tenant_id, subscription_id): (Uuid, Uuid) = (tenant.parse().unwrap(), subscription.parse().unwrap());
    let count = |kind, n| CountDelta { tenant: tenant_id, subscription: subscription_id, kind, n };
    batch.add_counts(&[&count("delivered", 40), &count("retry", 2), &count("delivered", 2)]).await.unwrap();
    batch.commit().await.unwrap();
    drop(client);

    let path = format!("/v1/tenants/{tenant}/deliveries");
    let first = world.plane.get(&format!("{path}?limit=2")).await;
    assert_eq!(first.status, 200, "{first:?}");
    let ids = |answer: &crate::world::Answer| -> Vec<String> {
        let items = answer.json["items"].as_array().unwrap().iter();
        items.map(|item| item["event_id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&first), ["e-2", "e-1"]);
    assert_eq!(first.json["items"][0]["members"], json!(["m-1", "m-2"]));
    assert_eq!(
        (&first.json["items"][0]["via"], &first.json["items"][1]["via"]),
        (&json!("fallback"), &json!(null))
    );
    let item = &first.json["items"][1];
    assert_eq!(item["members"], json!(null));
    assert_eq!(
        (&item["http_status"], &item["kind"], &item["response"]),
        (&json!(500), &json!("retry"), &json!("oops"))
    );
    assert_eq!(item["at"], "2026-11-21T15:34:00.123Z");
    let exchange = &item["exchange"];
    assert_eq!(
        (&exchange["address"], &exchange["timings"]["dns_us"], &exchange["timings"]["tls_us"]),
        (&json!("192.0.2.1:443"), &json!(5), &json!(null))
    );
    assert_eq!(exchange["request_headers"], json!([{"name": "ce-id", "value": "1"}]));
    let rest = world.plane.get(&format!("{path}?limit=2&cursor={}", first.text("next_cursor"))).await;
    assert_eq!((ids(&rest), &rest.json["next_cursor"]), (vec!["e-0".to_owned()], &json!(null)));

    let filters = [
        (format!("status=dead&subscription={subscription}"), 1),
        ("event_id=e-1".to_owned(), 1),
        // In a batch.
        ("event_id=m-2".to_owned(), 1),
        ("event_id=m-3".to_owned(), 0),
        ("type=order.paid".to_owned(), 1),
        ("type=order.created".to_owned(), 3),
        ("type=order".to_owned(), 0),
        ("http_status=500&error=status".to_owned(), 3),
        ("http_status=404".to_owned(), 0),
        ("error=timeout".to_owned(), 0),
        ("to=2020-01-01T00:00:00Z".to_owned(), 0),
        ("from=2020-01-01T00:00:00Z".to_owned(), 3),
    ];
    for (filter, expected) in filters {
        let answer = world.plane.get(&format!("{path}?{filter}")).await;
        assert_eq!((answer.status, ids(&answer).len()), (200, expected), "{filter}");
    }
    // A cursor of the right form with an instant that no clock shows.
    let far = URL_SAFE_NO_PAD.encode(format!("{}.0.0", i64::MIN));
    let far = format!("cursor={far}");
    let bad = [
        "status=lost",
        "from=yesterday",
        "subscription=x",
        "cursor=AAAA",
        "limit=0",
        "colour=red",
        "http_status=99",
        "error=bad%20luck",
    ];
    for bad in bad.into_iter().chain(["event_id=%00", "type=%00", "event_id=a%20b", "type=", &far]) {
        world.plane.get(&format!("{path}?{bad}")).await.is_problem(400, "");
    }

    let counts = world.plane.get(&format!("/v1/tenants/{tenant}/counts?subscription={subscription}")).await;
    let expected = json!([{
        "subscription": subscription, "delivered": 42, "retry": 2, "deferred": 0, "dead": 0, "disable": 0, "cancelled": 0,
    }]);
    assert_eq!(counts.json["items"], expected);
    assert_eq!((&counts.json["from"], &counts.json["to"]), (&json!(null), &json!(null)));
    let path = format!("/v1/tenants/{tenant}/counts");
    let past = world.plane.get(&format!("{path}?from=2026-01-02T03:04:05Z&to=2026-02-02T03:04:05Z")).await;
    // Only whole days are told apart that far back.
    assert_eq!(
        past.json,
        json!({"items": [], "from": "2026-01-02T00:00:00.000Z", "to": "2026-02-03T00:00:00.000Z"})
    );
    let none = world.plane.get(&format!("/v1/tenants/{other}/counts")).await;
    assert_eq!(none.json["items"], json!([]));
    world.end().await;
}

#[tokio::test]
async fn history_is_read_from_a_replica_and_from_the_primary_while_it_is_away() {
    let (topics, database) = tokio::join!(TestTopics::create(2), TestDatabase::create());
    let reads = |url: &SecretString| Pool::read_only(url, "test-reads", READ_POOL_SIZE).unwrap();
    let nowhere: SecretString = "postgres://nobody@127.0.0.1:1/none".into();
    for (url, status, reason) in [(&nowhere, "down", "read from the primary"), (&database.url, "up", "")] {
        let databases =
            Databases { primary: database.pool(), reads: reads(&database.url), replica: Some(reads(url)) };
        let mut plane = Plane::start(settings(), topics.context(), databases).await;
        let told = || async {
            let reports = plane.context.health.reports();
            let replica = reports.iter().rfind(|report| report.name == "postgresql_replica").unwrap();
            replica.status == status && replica.reason.clone().unwrap_or_default().contains(reason)
        };
        eventually("health tells", told).await;
        let created = plane.post("/v1/tenants", r#"{"name":"Acme"}"#).await;
        let path = format!("/v1/tenants/{}", created.text("id"));
        prepare(&database.pool()).await;
        for list in ["deliveries", "dead-letters", "counts"] {
            let found = plane.get(&format!("{path}/{list}")).await;
            assert_eq!((found.status, &found.json["items"]), (200, &json!([])), "{list}");
        }
        plane.get(&format!("/v1/tenants/{}/counts", Uuid::nil())).await.is_problem(404, "tenant");
        plane.stop().await;
    }
    topics.delete().await;
    database.drop().await;
}

#[tokio::test]
async fn a_replica_that_is_busy_makes_requests_wait_and_refuses_them_and_does_not_load_the_primary() {
    let (topics, database) = tokio::join!(TestTopics::create(2), TestDatabase::create());
    let replica = Pool::read_only(&database.url, "test-replica", 2).unwrap();
    // Reading from the primary fails the test: nobody is there.
    let nowhere: SecretString = "postgres://nobody@127.0.0.1:1/none".into();
    let reads = Pool::read_only(&nowhere, "test-reads", READ_POOL_SIZE).unwrap();
    let databases = Databases { primary: database.pool(), reads, replica: Some(replica.clone()) };
    let mut plane = Plane::start(settings(), topics.context(), databases).await;
    let up = || async {
        let reports = plane.context.health.reports();
        reports.iter().rfind(|report| report.name == "postgresql_replica").unwrap().status == "up"
    };
    eventually("the replica is up", up).await;
    let created = plane.post("/v1/tenants", r#"{"name":"Acme"}"#).await;
    let path = format!("/v1/tenants/{}/deliveries", created.text("id"));
    prepare(&database.pool()).await;
    let busy = (replica.get().await.unwrap(), replica.get().await.unwrap());
    let refused = plane.get(&path).await;
    refused.is_problem(503, "at the same time");
    assert!(up().await, "busy is not away");
    drop(busy);
    assert_eq!(plane.get(&path).await.status, 200);
    plane.stop().await;
    topics.delete().await;
    database.drop().await;
}

#[tokio::test]
async fn connections_for_reading_cannot_write_also_where_only_a_primary_is_taken() {
    let database = TestDatabase::create().await;
    let failover: SecretString = format!("{}?target_session_attrs=read-write", database.url_text()).into();
    for url in [&database.url, &failover] {
        let pool = Pool::read_only(url, "test-reads", 1).unwrap();
        let client = pool.get().await.unwrap();
        let refused = client.batch_execute("DELETE FROM tenant").await.unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "25006");
        let shown = client.query_one("SHOW statement_timeout", &[]).await.unwrap();
        assert_eq!(shown.get::<_, String>(0), "5s");
    }
    database.drop().await;
}
