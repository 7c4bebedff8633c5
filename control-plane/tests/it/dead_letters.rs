use crate::{history::prepare, world::World};
use floodway_schemas::due::{Due, Origin};
use floodway_store::{DbInstant, dead_letters::NewDeadLetter, retry};
use serde_json::json;

const EVENT: &str = r#"{"specversion":"1.0","id":"e","source":"s","type":"order.created","data":{"n": 1.0}}"#;

/// Stores dead letters 0 to `count` in shard 3.
async fn bury(world: &World, tenant: &str, subscription: &str, count: i64) {
    bury_for(world, tenant, count, |_| subscription).await;
}

/// The same for several subscriptions.
async fn bury_for<'s>(world: &World, tenant: &str, count: i64, subscription: impl Fn(i64) -> &'s str) {
    prepare(&world.pool).await;
    let mut client = world.pool.get().await.unwrap();
    let shard = retry::take_over(&client, 3, "test", 0).await.unwrap();
    let batch = retry::begin(&mut client, 3, shard.epoch, 0, count).await.unwrap();
    let letters: Vec<NewDeadLetter> = (0..count)
        .map(|id| NewDeadLetter {
            id,
            at: DbInstant(1_795_275_240_123_000),
            since: DbInstant(1_795_275_240_000_000),
            tenant: tenant.parse().unwrap(),
            subscription: subscription(id).parse().unwrap(),
            event_id: "e".to_owned(),
            event_type: "order.created".to_owned(),
            record_key: format!("{}/k{id}", subscription(id)),
            attempts: 9,
            reason: "attempts_exhausted",
            status: Some(503),
            error: Some("status"),
            detail: None,
            response: None,
            event: EVENT.as_bytes().to_vec(),
            members: None,
        })
        .collect();
    batch.add_dead_letters(3, &letters.iter().collect::<Vec<_>>()).await.unwrap();
    batch.commit().await.unwrap();
}

#[tokio::test]
async fn a_dead_letter_is_listed_shown_and_delivered_again() {
    let world = World::start().await;
    let (tenant, other) = (world.tenant().await, world.tenant().await);
    let subscription = world.subscription(&tenant).await;
    bury(&world, &tenant, &subscription, 3).await;
    let path = format!("/v1/tenants/{tenant}/dead-letters");
    let list = world.plane.get(&format!("{path}?limit=2&subscription={subscription}")).await;
    assert_eq!(list.status, 200, "{list:?}");
    assert_eq!((&list.json["items"][0]["id"], &list.json["items"][0]["replays"]), (&json!("3-2"), &json!(0)));
    let rest = world.plane.get(&format!("{path}?limit=2&cursor={}", list.text("next_cursor"))).await;
    assert_eq!((&rest.json["items"][0]["id"], &rest.json["next_cursor"]), (&json!("3-0"), &json!(null)));

    let replayed = world.plane.call("POST", &format!("{path}/3-1/replay"), None).await;
    assert_eq!(replayed.status, 202, "{replayed:?}");
    let records = world.replay_records().await;
    assert_eq!((records.len(), records[0].key.as_str()), (1, format!("{subscription}/k1").as_str()));
    let value = records[0].value.clone().unwrap();
    let due = Due::decode(&value).unwrap();
    assert_eq!(due.origin, Origin::ReplayId(replayed.text("replay_id").parse().unwrap()));
    assert_eq!((due.attempt, due.event.get()), (1, EVENT));
    assert!(due.since.0 > 1_795_275_240_123);

    let shown = world.plane.get(&format!("{path}/3-1")).await;
    assert_eq!((&shown.json["replays"], &shown.json["attempts"]), (&json!(1), &json!(9)));
    assert_eq!(shown.json["event"]["type"], "order.created");
    assert!(!shown.json["replayed_at"].is_null());

    let foreign = format!("/v1/tenants/{other}/dead-letters");
    for path in [format!("{path}/3-99"), format!("{path}/x"), format!("{foreign}/3-1")] {
        world.plane.get(&path).await.is_problem(404, "dead letter");
        world.plane.call("POST", &format!("{path}/replay"), None).await.is_problem(404, "dead letter");
    }
    for bad in ["limit=501", "cursor=AAAA", "to=never", "colour=red"] {
        world.plane.get(&format!("{path}?{bad}")).await.is_problem(400, "");
    }
    assert_eq!(world.replay_records().await.len(), 1);
    world.end().await;
}

#[tokio::test]
async fn many_dead_letters_are_delivered_again_under_one_replay_id() {
    const LETTERS: i64 = 40;
    let world = World::start().await;
    let tenant = world.tenant().await;
    let subscription = world.subscription(&tenant).await;
    bury(&world, &tenant, &subscription, LETTERS).await;
    let path = format!("/v1/tenants/{tenant}/dead-letters/replay");
    let mut ids: Vec<String> = (0..LETTERS).map(|id| format!("3-{id}")).collect();
    ids.extend(["3-0".to_owned(), "9-9".to_owned()]);
    let answer = world.plane.post(&path, &json!({ "ids": ids }).to_string()).await;
    assert_eq!(answer.status, 202, "{answer:?}");
    assert_eq!((&answer.json["count"], &answer.json["not_found"]), (&json!(LETTERS), &json!(["9-9"])));
    let records = world.replay_records().await;
    assert_eq!(records.len() as i64, LETTERS);
    for record in &records {
        let value = record.value.clone().unwrap();
        let origin = Due::decode(&value).unwrap().origin;
        assert_eq!(origin, Origin::ReplayId(answer.text("replay_id").parse().unwrap()));
    }

    let too_many: Vec<String> = (0..1_001).map(|id| format!("3-{id}")).collect();
    world.plane.post(&path, &json!({ "ids": too_many }).to_string()).await.is_problem(400, "1001 entries");
    world.plane.post(&path, r#"{"ids":[]}"#).await.is_problem(400, "0 entries");
    world.plane.post(&path, r#"{"ids":["x"]}"#).await.is_problem(400, "\"x\"");
    world.plane.post(&path, r#"{"ids":["9-9"]}"#).await.is_problem(404, "dead letter");
    world.end().await;
}

#[tokio::test]
async fn a_replay_to_a_subscription_that_cannot_take_it_is_refused() {
    let world = World::start().await;
    let tenant = world.tenant().await;
    let subscription = world.subscription(&tenant).await;
    bury(&world, &tenant, &subscription, 1).await;
    let path = format!("/v1/tenants/{tenant}");
    let replay = format!("{path}/dead-letters/3-0/replay");
    world.plane.call("POST", &format!("{path}/subscriptions/{subscription}/disable"), None).await;
    world.plane.call("POST", &replay, None).await.is_problem(409, "disabled");
    world.plane.delete(&format!("{path}/subscriptions/{subscription}")).await;
    world.plane.call("POST", &replay, None).await.is_problem(409, "deleted");
    assert_eq!(world.replay_records().await, []);
    world.end().await;
}

#[tokio::test]
async fn nothing_is_replayed_when_one_receiver_of_many_cannot_take_it() {
    const LETTERS: i64 = 40;
    let world = World::start().await;
    let tenant = world.tenant().await;
    let (well, disabled) = (world.subscription(&tenant).await, world.subscription(&tenant).await);
    bury_for(&world, &tenant, LETTERS, |id| if id + 1 < LETTERS { &well } else { &disabled }).await;
    let path = format!("/v1/tenants/{tenant}");
    world.plane.call("POST", &format!("{path}/subscriptions/{disabled}/disable"), None).await;
    let ids: Vec<String> = (0..LETTERS).map(|id| format!("3-{id}")).collect();
    let body = json!({ "ids": ids }).to_string();
    world.plane.post(&format!("{path}/dead-letters/replay"), &body).await.is_problem(409, "disabled");
    assert_eq!(world.replay_records().await, []);
    world.end().await;
}

#[tokio::test]
async fn an_error_in_the_middle_of_many_tells_how_many_are_on_their_way() {
    const LETTERS: i64 = 40;
    let world = World::start().await;
    let tenant = world.tenant().await;
    let subscription = world.subscription(&tenant).await;
    bury(&world, &tenant, &subscription, LETTERS).await;
    // The marks of the second batch of 16 cannot be written; its records can.
    let refuse = "ALTER TABLE dead_letter_replay ADD CONSTRAINT refused CHECK (outcome_offset < 16)";
    world.pool.get().await.unwrap().batch_execute(refuse).await.unwrap();
    let ids: Vec<String> = (0..LETTERS).map(|id| format!("3-{id}")).collect();
    let path = format!("/v1/tenants/{tenant}/dead-letters/replay");
    world.plane.post(&path, &json!({ "ids": ids }).to_string()).await.is_problem(409, "32 of 40");
    assert_eq!(world.replay_records().await.len(), 32);
    // The same where it is a matter of time: no partition for the marks.
    let drop_partitions = "DO $$ DECLARE name text; BEGIN FOR name IN SELECT inhrelid::regclass FROM pg_inherits
        WHERE inhparent = 'dead_letter_replay'::regclass LOOP EXECUTE 'DROP TABLE ' || name; END LOOP; END $$";
    world.pool.get().await.unwrap().batch_execute(drop_partitions).await.unwrap();
    world.plane.post(&path, &json!({ "ids": ids }).to_string()).await.is_problem(503, "16 of 40");
    world.end().await;
}

#[tokio::test]
async fn what_a_filter_matches_is_counted_and_delivered_again_page_by_page_once() {
    const LETTERS: i64 = 40;
    let world = World::start().await;
    let tenant = world.tenant().await;
    let (well, disabled) = (world.subscription(&tenant).await, world.subscription(&tenant).await);
    bury_for(&world, &tenant, LETTERS, |id| if id % 4 == 0 { &disabled } else { &well }).await;
    let path = format!("/v1/tenants/{tenant}");
    world.plane.call("POST", &format!("{path}/subscriptions/{disabled}/disable"), None).await;
    let counted = async |filter: &str| {
        world.plane.get(&format!("{path}/dead-letters/count?{filter}")).await.json["count"].as_i64().unwrap()
    };
    for (filter, expected) in [
        ("", 40),
        ("type=order.created&http_status=503&error=status&reason=attempts_exhausted", 40),
        (&format!("subscription={disabled}"), 10),
        ("event_id=e", 40),
        ("event_id=f", 0),
        ("http_status=500", 0),
        ("reason=expired", 0),
        ("replayed=false", 40),
        ("replayed=true", 0),
    ] {
        assert_eq!(counted(filter).await, expected, "{filter}");
    }
    for bad in ["limit=5", "reason=boredom", "error=none", "http_status=7", "cursor=AAAA", "event_id=%00"] {
        world.plane.get(&format!("{path}/dead-letters/count?{bad}")).await.is_problem(400, "");
    }

    let replay = format!("{path}/dead-letters/replay-matching");
    let first = world.plane.post(&replay, r#"{"replayed":false,"limit":24}"#).await;
    assert_eq!((first.status, &first.json["count"], &first.json["skipped"]), (202, &json!(18), &json!(6)));
    let body = json!({"replayed": false, "limit": 24, "cursor": first.text("next_cursor")});
    let rest = world.plane.post(&replay, &body.to_string()).await;
    assert_eq!(
        (&rest.json["count"], &rest.json["skipped"], &rest.json["next_cursor"]),
        (&json!(12), &json!(4), &json!(null))
    );
    let mut keys: Vec<String> = world.replay_records().await.into_iter().map(|record| record.key).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len(), 30);
    assert_eq!((counted("replayed=true").await, counted("replayed=false").await), (30, 10));
    let again = world.plane.post(&replay, r#"{"replayed":false}"#).await;
    assert_eq!((&again.json["count"], &again.json["skipped"]), (&json!(0), &json!(10)));
    world.plane.post(&replay, r#"{"colour":"red"}"#).await.is_problem(400, "colour");
    world.end().await;
}
