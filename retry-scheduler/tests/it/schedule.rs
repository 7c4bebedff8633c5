//! What outcomes become.

use crate::world::{EVENT, SUBSCRIPTION, TENANT, World, outcome, retry, retry_key, retry_keys, settings};
use floodway_retry_scheduler::Settings;
use floodway_schemas::{
    UnixMillis,
    dead_letter::DeadLetter,
    due::{Due, RetryKey},
    ids::{SubscriptionId, TenantId},
    outcome::{Cause, DeadReason, Outcome, OutcomeKind},
    topic::Topic,
};
use floodway_store::{
    counts::{self, CountFilter},
    dead_letters::{self, DeadLetterFilter},
    deliveries::{self, DeliveryFilter},
};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_comes_back_on_time_with_the_next_attempt_and_its_event_untouched() {
    let world = World::new(2).await;
    let scheduler = world.start().await;
    world.number_becomes("SELECT count(*) FROM retry_shard", |n| n == 2).await;
    let delay = Duration::from_millis(700);
    let written_at = Instant::now();
    world.write(1, &[outcome(OutcomeKind::Retry, 1, delay), outcome(OutcomeKind::Deferred, 2, delay)]);
    let records = world.read_due(2).await;
    for record in &records {
        let due = Due::decode(&record.value).unwrap();
        let key = retry_key(record);
        // The retry used up an attempt, the deferral did not.
        assert_eq!(due.attempt, if key.id == 0 { 3 } else { 2 });
        assert_eq!((key.shard, record.partition), (1, 1));
        assert_eq!(record.key, format!("{SUBSCRIPTION}/customer-9"));
        assert_eq!(due.event.get(), EVENT);
        assert!(record.at >= written_at + delay, "{:?} early", written_at + delay - record.at);
    }
    assert_eq!(records.len(), 2);
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_final_failure_is_on_the_topic_and_in_the_table_once() {
    let world = World::new(1).await;
    let scheduler = world.start().await;
    let dead = Outcome { reason: Some(DeadReason::Expired), ..outcome(OutcomeKind::Dead, 1, Duration::ZERO) };
    world.write(0, &[dead, outcome(OutcomeKind::Disable, 2, Duration::ZERO)]);
    let records = world.read(Topic::DeadLetters, |records| records.len() == 2).await;
    let letter = DeadLetter::decode(&records[0].value).unwrap();
    assert_eq!((letter.id.as_ref(), letter.reason, letter.attempts), ("0-0", DeadReason::Expired, 2));
    assert_eq!(letter.event.get(), EVENT);
    assert_eq!(records[0].key, format!("{TENANT}/{SUBSCRIPTION}"));

    world.number_becomes("SELECT count(*) FROM dead_letter", |n| n == 2).await;
    let client = world.pool.get().await.unwrap();
    let filter = DeadLetterFilter { subscription: Some(SUBSCRIPTION), ..DeadLetterFilter::of(TENANT) };
    let first = dead_letters::list(&client, &filter, None, 1).await.unwrap();
    assert_eq!(first.items[0].id, RetryKey { shard: 0, id: 1 });
    assert_eq!(first.items[0].reason, "endpoint_gone");
    let cursor = first.next_cursor.unwrap().parse().unwrap();
    let second = dead_letters::list(&client, &filter, Some(cursor), 1).await.unwrap();
    assert_eq!((second.items[0].id, second.next_cursor), (RetryKey { shard: 0, id: 0 }, None));
    let letter = dead_letters::get(&client, TENANT, RetryKey { shard: 0, id: 0 }).await.unwrap();
    assert_eq!(letter.event, EVENT.as_bytes());
    assert!(
        dead_letters::get(&client, floodway_schemas::ids::TenantId(SUBSCRIPTION.0), letter.summary.id)
            .await
            .is_err()
    );
    let all = [RetryKey { shard: 0, id: 0 }, RetryKey { shard: 0, id: 1 }, RetryKey { shard: 9, id: 9 }];
    assert_eq!(dead_letters::by_ids(&client, TENANT, &all).await.unwrap().len(), 2);
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_has_failures_and_asked_for_successes_and_counts_have_everything() {
    let world = World::new(1).await;
    let scheduler = world.start().await;
    let asked_for = Outcome { record: true, ..outcome(OutcomeKind::Delivered, 1, Duration::ZERO) };
    let kinds = [OutcomeKind::Delivered, OutcomeKind::Deferred, OutcomeKind::Retry, OutcomeKind::Dropped];
    let mut outcomes = vec![asked_for];
    outcomes.extend(kinds.into_iter().zip(2..).map(|(kind, n)| outcome(kind, n, Duration::from_secs(3600))));
    world.write(0, &outcomes);
    world.number_becomes("SELECT coalesce(sum(n), 0)::bigint FROM delivery_count", |n| n == 5).await;

    let mut client = world.pool.get().await.unwrap();
    let page = deliveries::list(&client, &DeliveryFilter::of(TENANT), None, 10).await.unwrap();
    let rows: Vec<_> = page.items.iter().map(|row| (row.event_id.as_str(), row.kind.as_str())).collect();
    assert_eq!((rows, page.next_cursor), (vec![("order-4", "retry"), ("order-1", "delivered")], None));
    assert!(page.items[0].next_at.unwrap().since(page.items[0].at) > Duration::from_secs(3000));

    let filter = DeliveryFilter { event_id: Some("order-1".into()), ..DeliveryFilter::of(TENANT) };
    assert_eq!(deliveries::list(&client, &filter, None, 10).await.unwrap().items.len(), 1);
    let first = deliveries::list(&client, &DeliveryFilter::of(TENANT), None, 1).await.unwrap();
    let cursor = first.next_cursor.unwrap().parse().unwrap();
    let second = deliveries::list(&client, &DeliveryFilter::of(TENANT), Some(cursor), 1).await.unwrap();
    assert_eq!((second.items[0].event_id.as_str(), second.next_cursor), ("order-1", None));

    let filter = CountFilter { tenant: TENANT, subscription: None, from: None, to: None };
    let counts = counts::count(&mut client, &filter).await.unwrap().subscriptions;
    let expected = [("deferred", 1), ("delivered", 2), ("dropped", 1), ("retry", 1)];
    assert_eq!(counts.len(), 1);
    assert_eq!(counts[0].by_kind, BTreeMap::from(expected.map(|(kind, n)| (kind.to_owned(), n))));
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outcome_written_twice_is_stored_once_also_by_the_next_owner() {
    let world = World::new(1).await;
    let scheduler = world.start().await;
    world.write(0, &[retry(1, 300), retry(1, 900), retry(2, 300)]);
    world.number_becomes("SELECT count(*) FROM retry", |n| n == 2).await;
    scheduler.stop().await;
    // The next owner rebuilds what it has to know from the log.
    let scheduler = world.start().await;
    world.write(0, &[retry(2, 300), retry(3, 300)]);
    world.number_becomes("SELECT coalesce(max(next_offset), 0) FROM retry_shard", |n| n == 5).await;
    assert_eq!(world.number("SELECT count(*) FROM retry").await, 3);
    assert_eq!(retry_keys(&world.read_due(3).await).len(), 3);
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_that_was_delivered_twice_goes_on_once() {
    let world = World::new(1).await;
    let scheduler = world.start().await;
    let cause = Cause::Due(RetryKey { shard: 0, id: 77 });
    let copies = [OutcomeKind::Retry, OutcomeKind::Deferred, OutcomeKind::Delivered]
        .map(|kind| Outcome { cause: cause.clone(), ..outcome(kind, 1, Duration::from_millis(300)) });
    world.write(0, &copies);
    world.number_becomes("SELECT coalesce(max(next_offset), 0) FROM retry_shard", |n| n == 3).await;
    assert_eq!(world.number("SELECT count(*) FROM retry").await, 1);
    assert_eq!(world.number("SELECT sum(n)::bigint FROM delivery_count").await, 1);
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_in_doubt_is_made_again_unless_its_own_outcome_is_known() {
    let world = World::new(1).await;
    let scheduler = world.start().await;
    let lease = Duration::from_millis(1_500);
    let in_doubt = |n| outcome(OutcomeKind::InDoubt, n, lease);
    // Answered after the hand-over, before it, by a retry, and not at all.
    let delivered = |n| outcome(OutcomeKind::Delivered, n, Duration::ZERO);
    world.write(0, &[in_doubt(1), delivered(1), delivered(2), in_doubt(2)]);
    world.write(0, &[in_doubt(3), retry(3, 300), in_doubt(4), in_doubt(4)]);
    let keys = retry_keys(&world.read_due(2).await);
    // The retry of the third, and the lease of the fourth.
    assert_eq!(keys.into_iter().map(|key| key.id).collect::<Vec<_>>(), [5, 6]);
    let after =
        "SELECT count(*) FROM retry_shard JOIN retry USING (shard) WHERE (due_at, id) > (cur_due, cur_id)";
    world.number_becomes(after, |open| open == 0).await;

    // What ended a lease is known to the next owner.
    let later = Duration::from_secs(4);
    world.write(0, &[outcome(OutcomeKind::InDoubt, 5, later), outcome(OutcomeKind::InDoubt, 6, later)]);
    world.write(0, &[delivered(5)]);
    world.number_becomes("SELECT coalesce(max(next_offset), 0) FROM retry_shard", |n| n == 11).await;
    scheduler.stop().await;
    let scheduler = world.start().await;
    // What the lease brought about goes on.
    let due = Outcome { cause: Cause::Due(RetryKey { shard: 0, id: 6 }), ..retry(4, 300) };
    world.write(0, &[due]);
    let keys = retry_keys(&world.read_due(4).await);
    assert_eq!(keys.into_iter().map(|key| key.id).collect::<Vec<_>>(), [5, 6, 9, 11]);
    world.number_becomes(after, |open| open == 0).await;
    assert_eq!(world.read_due(4).await.len(), 4);
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outcomes_that_cannot_be_used_do_not_hold_up_the_shard() {
    let world = World::new(1).await;
    let scheduler = world.start().await;
    for bytes in [&b"not json"[..], b"", b"{\"v\":2}"] {
        world.write_bytes(0, bytes);
    }
    // Of a kind that only a later version knows.
    let unknown = String::from_utf8(retry(9, 0).encode().unwrap()).unwrap();
    world.write_bytes(0, unknown.replacen("\"kind\":\"retry\"", "\"kind\":\"later\"", 1).as_bytes());
    let without_time = Outcome { not_before: None, ..retry(1, 0) };
    let without_event = Outcome { event: None, ..retry(2, 0) };
    world.write(0, &[without_time, without_event, retry(3, 300)]);
    let records = world.read_due(1).await;
    assert_eq!(retry_key(&records[0]), RetryKey { shard: 0, id: 6 });
    // Those that named their delivery have a row that says so; the one with its event is not lost either.
    let rows = "SELECT count(*) FROM delivery WHERE detail LIKE 'unusable outcome%'";
    assert_eq!(world.number(rows).await, 2);
    assert_eq!(world.number("SELECT min(id) FROM dead_letter").await, 4);
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strange_outcomes_are_stored_as_they_are_and_hold_nobody_up() {
    let world = World::new(1).await;
    let scheduler = world.start().await;
    let day = Duration::from_secs(86_400);
    let now = floodway_runtime::clock::now();
    let soon = Duration::from_millis(300);
    // By the clock of a dispatcher that is a day ahead, or has no clock at all: only the delay counts.
    let from_the_future =
        Outcome { at: now.plus(day), not_before: Some(now.plus(day).plus(soon)), ..retry(0, 0) };
    let from_long_ago = Outcome { at: UnixMillis(0), not_before: Some(UnixMillis(300)), ..retry(1, 0) };
    let back_in_time = Outcome { not_before: Some(UnixMillis(0)), ..retry(2, 0) };
    // Longer than any delay: it is cut, so that there is a partition for it.
    let for_ever = Outcome { not_before: Some(UnixMillis(i64::MAX)), ..retry(3, 0) };
    let of_nobody = Outcome {
        tenant: TenantId(uuid::Uuid::from_u128(1)),
        subscription: SubscriptionId(uuid::Uuid::from_u128(2)),
        ..retry(4, 300)
    };
    let event = format!("{{\"data\":\"{}\"}}", "x".repeat(900_000));
    let enormous = Outcome {
        event: Some(serde_json::from_str(&event).unwrap()),
        response: Some("y".repeat(100_000).into()),
        ..retry(5, 300)
    };
    world.write(0, &[from_the_future, from_long_ago, back_in_time, for_ever, of_nobody, enormous]);
    let records = world.read_due(5).await;
    assert_eq!(retry_keys(&records).into_iter().map(|key| key.id).collect::<Vec<_>>(), [0, 1, 2, 4, 5]);
    let large = records.iter().find(|record| retry_key(record).id == 5).unwrap();
    assert_eq!(Due::decode(&large.value).unwrap().event.get(), event);
    let cut = "SELECT extract(epoch FROM due_at - clock_timestamp())::bigint FROM retry WHERE id = 3";
    assert!((86_000..=86_400).contains(&world.number(cut).await));
    assert_eq!(world.number("SELECT count(*) FROM delivery").await, 6);
    assert!(world.number("SELECT max(octet_length(response))::bigint FROM delivery").await < 100_000);
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_the_database_refuses_is_passed_over_alone_and_one_of_history_without_its_retry() {
    let world = World::new(1).await;
    world.execute("ALTER TABLE retry ADD CONSTRAINT refused CHECK (event_id <> 'order-3')").await;
    world.execute("ALTER TABLE delivery ADD CONSTRAINT refused CHECK (event_id <> 'order-5')").await;
    let scheduler = world.start().await;
    world.write(0, &(0..8).map(|n| retry(n, 300)).collect::<Vec<_>>());
    let keys = retry_keys(&world.read_due(7).await);
    let expected: Vec<i64> = [0, 1, 2, 4, 5, 6, 7].into();
    assert_eq!(keys.into_iter().map(|key| key.id).collect::<Vec<_>>(), expected);
    assert_eq!(world.number("SELECT next_offset FROM retry_shard").await, 8);
    assert_eq!(world.number("SELECT count(*) FROM delivery").await, 6);
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delivery_in_doubt_whose_own_outcome_the_database_refuses_is_made_again() {
    let world = World::new(1).await;
    world.execute("ALTER TABLE dead_letter ADD CONSTRAINT refused CHECK (event_id <> 'order-1')").await;
    let scheduler = world.start().await;
    let lease = Duration::from_secs(4);
    let in_doubt = |n| outcome(OutcomeKind::InDoubt, n, lease);
    let dead = |n| outcome(OutcomeKind::Dead, n, Duration::ZERO);
    world.write(0, &[in_doubt(1), in_doubt(2), dead(1), dead(2)]);
    world.number_becomes("SELECT coalesce(max(next_offset), 0) FROM retry_shard", |next| next == 4).await;
    assert_eq!(world.number("SELECT count(*) FROM dead_letter").await, 1);
    let passed = "SELECT count(*) FROM retry, retry_shard WHERE (due_at, id) <= (cur_due, cur_id)";
    world.number_becomes(passed, |n| n == 2).await;
    let keys = retry_keys(&world.read_due(1).await);
    assert_eq!(keys.into_iter().map(|key| key.id).collect::<Vec<_>>(), [0]);
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dispatcher_whose_clock_is_ahead_makes_nobodys_repeats_count() {
    let world = World::new(1).await;
    let scheduler = world.start().await;
    // Kafka itself refuses a producer's time that is more than an hour ahead, unless the broker's counts.
    world.write_as_of(0, &[retry(1, 300)], 6 * 3_600_000);
    world.takes_producers_times().await;
    // Further than repeats are remembered.
    let ahead_ms = 50 * 60 * 1_000;
    world.write_as_of(0, &[retry(2, 300)], ahead_ms);
    world.write(0, &[retry(1, 300), retry(3, 300)]);
    world.write_as_of(0, &[retry(3, 300)], ahead_ms);
    world.write(0, &[retry(2, 300)]);
    world.number_becomes("SELECT coalesce(max(next_offset), 0) FROM retry_shard", |next| next == 6).await;
    let keys = retry_keys(&world.read_due(3).await);
    assert_eq!(keys.into_iter().map(|key| key.id).collect::<Vec<_>>(), [0, 1, 3]);
    assert_eq!(world.number("SELECT count(*) FROM retry").await, 3);
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shard_that_is_far_behind_still_knows_its_leases_and_repeats_after_a_takeover() {
    let world = World::new(1).await;
    world.takes_producers_times().await;
    let scheduler = world.start().await;
    let hour_ago = -3_600_000;
    world.write_as_of(
        0,
        &[outcome(OutcomeKind::InDoubt, 1, Duration::from_secs(8)), retry(2, 300)],
        hour_ago,
    );
    world.number_becomes("SELECT coalesce(max(next_offset), 0) FROM retry_shard", |next| next == 2).await;
    scheduler.stop().await;
    // An hour's backlog: the window of repeats ended before its first record.
    let delivered = outcome(OutcomeKind::Delivered, 1, Duration::ZERO);
    world.write_as_of(0, &[delivered, retry(2, 300), retry(3, 300)], hour_ago + 1_000);
    let scheduler = world.start().await;
    let open =
        "SELECT count(*) FROM retry, retry_shard WHERE (due_at, id) > (cur_due, cur_id) OR next_offset < 5";
    world.number_becomes(open, |n| n == 0).await;
    let records = world.read_due(2).await;
    assert_eq!(records.iter().map(|record| retry_key(record).id).collect::<Vec<_>>(), [1, 4]);
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_retries_fire_in_order_through_a_memory_for_a_thousand() {
    let world = World::new(1).await;
    let settings = Settings { heap_rows: 1_000, page_rows: 300, fire_rows: 400, ..settings() };
    let scheduler = world.start_with(settings, world.pool()).await;
    // Delays go against the order of the offsets.
    let outcomes: Vec<_> = (0..10_000).map(|n| retry(n, 3_000 - (n as u64 % 1_000) * 2)).collect();
    world.write(0, &outcomes);
    let records = world.read_due(10_000).await;
    assert_eq!(records.len(), 10_000, "each once");
    let client = world.pool.get().await.unwrap();
    let rows = client.query("SELECT id FROM retry ORDER BY due_at, id", &[]).await.unwrap();
    let in_order: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    let fired: Vec<i64> = records.iter().map(|record| retry_key(record).id).collect();
    assert_eq!(fired, in_order);
    scheduler.stop().await;
    world.end().await;
}
