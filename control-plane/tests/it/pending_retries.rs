use crate::{history::prepare, world::World};
use floodway_schemas::retry_command::{RetryAction, RetryCommand, RetryScope};
use floodway_store::{
    DbInstant,
    retry::{self, NewRetry, Position},
    retry_marks::Mark,
};
use serde_json::json;
use std::time::Duration;
use uuid::Uuid;

/// Of the retry that is a lease.
const LEASE: i64 = 6;

const HOUR: Duration = Duration::from_secs(3_600);

/// Stores retries 0 to `count` of a subscription in shard 1, due an hour apart from an hour from now on.
async fn store(
    world: &World,
    tenant: &str,
    subscription: &str,
    count: i64,
    marks: impl Fn(DbInstant) -> Vec<Mark>,
) {
    prepare(&world.pool).await;
    let mut client = world.pool.get().await.unwrap();
    let shard = retry::take_over(&client, 1, "test", 0).await.unwrap();
    let batch = retry::begin(&mut client, 1, shard.epoch, 0, count).await.unwrap();
    let rows: Vec<NewRetry> = (0..count)
        .map(|id| NewRetry {
            position: Position { due: batch.db_now.plus(HOUR * u32::try_from(id + 1).unwrap()), id },
            tenant: tenant.parse().unwrap(),
            subscription: subscription.parse().unwrap(),
            event_id: format!("e-{}", id % 2),
            attempt: 2,
            lease: id == LEASE,
            record_key: format!("{subscription}/k"),
            record: b"{}".to_vec(),
        })
        .collect();
    batch.add_retries(1, &rows.iter().collect::<Vec<_>>()).await.unwrap();
    let marks = marks(batch.db_now);
    batch.add_marks(1, &marks.iter().collect::<Vec<_>>()).await.unwrap();
    batch.commit().await.unwrap();
}

async fn commands(world: &World) -> Vec<RetryCommand> {
    let values = world.outcome_records().await.into_iter().filter_map(|record| record.value);
    values.map(|value| RetryCommand::decode(&value).unwrap()).collect()
}

#[tokio::test]
async fn pending_retries_are_listed_soonest_first_in_pages_without_those_that_were_settled() {
    let world = World::start().await;
    let (tenant, other) = (world.tenant().await, world.tenant().await);
    let subscription = world.subscription(&tenant).await;
    let mark = |action, id, retry_id, done, now: DbInstant| Mark {
        id,
        first_id: 0,
        until: now.plus(HOUR * 100),
        recorded_at: now,
        command: Uuid::now_v7(),
        action,
        tenant: tenant.parse().unwrap(),
        subscription: Some(subscription.parse().unwrap()),
        event_id: None,
        retry_id,
        done,
    };
    // One is cancelled, and the first one came early.
    let marks = |now| {
        vec![
            mark(RetryAction::Cancel, 90, Some(4), -1, now),
            mark(RetryAction::Now, 91, None, -1, now),
            mark(RetryAction::Now, 91, None, 0, now),
        ]
    };
    store(&world, &tenant, &subscription, LEASE + 1, marks).await;
    let path = format!("/v1/tenants/{tenant}/subscriptions/{subscription}/retries");
    let page = world.plane.get(&format!("{path}?limit=3")).await;
    assert_eq!(page.status, 200, "{page:?}");
    let ids = |page: &crate::world::Answer| -> Vec<String> {
        page.json["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(ids(&page), ["1-1", "1-2", "1-3"]);
    assert_eq!(
        (&page.json["items"][0]["attempt"], &page.json["items"][0]["event_id"]),
        (&json!(2), &json!("e-1"))
    );
    let rest = world.plane.get(&format!("{path}?limit=3&cursor={}", page.text("next_cursor"))).await;
    assert_eq!((ids(&rest), &rest.json["next_cursor"]), (vec!["1-5".to_owned()], &json!(null)));
    assert_eq!(ids(&world.plane.get(&format!("{path}?event_id=e-0")).await), ["1-2"]);
    let preview = world.plane.post(&format!("{path}/cancel"), r#"{"preview":true}"#).await;
    assert_eq!((preview.status, &preview.json), (200, &json!({"count": 4, "complete": true})));
    assert!(commands(&world).await.is_empty(), "a preview changes nothing");
    for wrong in ["?limit=0", "?cursor=x", "?event_id=a%20b", "?other=1"] {
        world.plane.get(&format!("{path}{wrong}")).await.is_problem(400, "");
    }
    let of_other = format!("/v1/tenants/{other}/subscriptions/{subscription}/retries");
    world.plane.get(&of_other).await.is_problem(404, "subscription");
    world.end().await;
}

#[tokio::test]
async fn who_gave_too_many_small_commands_is_told_so_and_can_still_name_a_subscription() {
    let world = World::start().await;
    let (tenant, other) = (world.tenant().await, world.tenant().await);
    let (mine, others) = (world.subscription(&tenant).await, world.subscription(&other).await);
    let marks = |now: DbInstant| {
        let many = (0..1_500).map(|id| Mark {
            id,
            first_id: 0,
            until: now.plus(HOUR),
            recorded_at: now,
            command: Uuid::now_v7(),
            action: RetryAction::Now,
            tenant: tenant.parse().unwrap(),
            subscription: None,
            event_id: Some(id.to_string()),
            retry_id: None,
            done: -1,
        });
        // One of them is told twice, for its progress.
        let last = Mark { done: 700, ..many.clone().next_back().unwrap() };
        many.chain([last]).collect()
    };
    store(&world, &tenant, &mine, 1, marks).await;
    let path =
        |tenant, subscription| format!("/v1/tenants/{tenant}/subscriptions/{subscription}/retries/cancel");
    let (of_event, of_one) = (r#"{"event_id":"e-1"}"#, r#"{"id":"0-7"}"#);
    let refused = world.plane.post(&path(&tenant, &mine), of_event).await;
    refused.is_problem(429, "name a whole subscription");
    assert_eq!(refused.text("type"), "urn:floodway:problem:too-many");
    assert!(commands(&world).await.is_empty(), "nothing is written");
    // The shard of this one keeps none of them.
    assert_eq!(world.plane.post(&path(&tenant, &mine), of_one).await.status, 202);
    assert_eq!(world.plane.post(&path(&tenant, &mine), "{}").await.status, 202);
    assert_eq!(world.plane.post(&path(&other, &others), of_event).await.status, 202);
    world.end().await;
}

#[tokio::test]
async fn commands_go_to_every_partition_or_to_the_retrys_own_and_resuming_is_one() {
    let world = World::start().await;
    let tenant = world.tenant().await;
    let subscription = world.subscription(&tenant).await;
    let path = format!("/v1/tenants/{tenant}/subscriptions/{subscription}");
    let asked = world.plane.post(&format!("{path}/retries/cancel"), r#"{"event_id":"e-1"}"#).await;
    assert_eq!(asked.status, 202, "{asked:?}");
    let found = commands(&world).await;
    let scope = RetryScope {
        event_id: Some("e-1".into()),
        ..RetryScope::of_subscription(subscription.parse().unwrap())
    };
    assert_eq!(found.len(), 2, "one for each partition");
    for command in &found {
        assert_eq!((command.action, &command.scope), (RetryAction::Cancel, &scope));
        assert_eq!(
            (command.tenant.to_string(), command.command.to_string()),
            (tenant.clone(), asked.text("command_id"))
        );
    }
    let one = world.plane.post(&format!("{path}/retries/now"), r#"{"id":"1-7"}"#).await;
    assert_eq!(one.status, 202, "{one:?}");
    assert_eq!(commands(&world).await.len(), 3);
    world.plane.post(&format!("{path}/retries/now"), r#"{"id":"7-7"}"#).await.is_problem(404, "retry");
    world.plane.post(&format!("{path}/retries/now"), r#"{"id":"x"}"#).await.is_problem(400, "retry key");
    world
        .plane
        .post(&format!("{path}/retries/cancel"), r#"{"event_id":""}"#)
        .await
        .is_problem(400, "event_id");
    let unknown = format!("/v1/tenants/{tenant}/subscriptions/{}/retries/now", Uuid::nil());
    world.plane.call("POST", &unknown, None).await.is_problem(404, "subscription");

    // A pause is told with its time, and a resumption asks for the backlog once it is published.
    world.plane.call("POST", &format!("{path}/pause"), None).await;
    let paused = world.config_records().await.pop().unwrap().change();
    let floodway_schemas::config::ConfigChange::Subscription(paused) = paused else { panic!("{paused:?}") };
    assert!(paused.paused_since.is_some());
    let resumed = world.plane.call("POST", &format!("{path}/resume"), None).await;
    assert_eq!((resumed.status, resumed.text("state")), (200, "active".to_owned()));
    let now: Vec<RetryCommand> = commands(&world)
        .await
        .into_iter()
        .filter(|command| command.scope.retry.is_none() && command.action == RetryAction::Now)
        .collect();
    assert_eq!(now.len(), 2);
    assert_eq!(now[0].scope, RetryScope::of_subscription(subscription.parse().unwrap()));
    world.end().await;
}
