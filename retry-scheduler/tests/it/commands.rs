//! Commands to pending retries, through whatever happens to the shard's owner.

use crate::{
    crashes::{STOP_COMMITS, hold, sessions_end, started, waiting},
    outages::{Proxy, free_address},
    world::{Record, World, outcome, retry, retry_key, settings},
};
use floodway_retry_scheduler::Settings;
use floodway_schemas::{
    due::RetryKey,
    ids::{RetryCommandId, SubscriptionId},
    outcome::{Outcome, OutcomeKind},
    retry_command::{RETRY_COMMAND_VERSION, RetryAction, RetryCommand, RetryScope},
    topic::Topic,
};
use std::{collections::BTreeSet, time::Duration};
use uuid::Uuid;

/// Whose retries the commands are about, and somebody else's.
const MINE: SubscriptionId = SubscriptionId(Uuid::from_u128(11));
const OTHER: SubscriptionId = SubscriptionId(Uuid::from_u128(12));

/// Retries of a test.
const N: i64 = 20;

/// Refuses to store how far a mark is.
const STOP_PROGRESS: &str = "
    CREATE FUNCTION refuse_progress() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF NEW.done >= 0 THEN RAISE EXCEPTION 'not now' USING ERRCODE = 'query_canceled'; END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER stop_progress BEFORE INSERT ON retry_mark FOR EACH ROW EXECUTE FUNCTION refuse_progress()";

/// Holds the commit of how far a mark is until the test lets it go.
const STOP_PROGRESS_COMMITS: &str = "
    CREATE FUNCTION wait_for_test() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER stop_progress_commits AFTER INSERT ON retry_mark DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW WHEN (NEW.done >= 0) EXECUTE FUNCTION wait_for_test()";

/// Marks whose work is done.
const ENDED: &str = "SELECT count(*) FROM retry_mark WHERE done = id";

const CANCELLED: &str = "SELECT count(*) FROM delivery WHERE kind = 'cancelled'";

const STORED: &str = "SELECT coalesce(max(next_offset), 0) FROM retry_shard";

/// The `n`th event's outcome, with an envelope as ingest makes them.
fn of(subscription: SubscriptionId, outcome: Outcome<'static>) -> Outcome<'static> {
    let envelope = format!(r#"{{"id":"{}","type":"order.created","source":"s"}}"#, outcome.event_id);
    let event = Some(serde_json::from_str(Box::leak(envelope.into_boxed_str())).unwrap());
    Outcome { subscription, event, ..outcome }
}

fn mine(n: i64, delay_ms: u64) -> Outcome<'static> {
    of(MINE, retry(n, delay_ms))
}

fn other(n: i64, delay_ms: u64) -> Outcome<'static> {
    of(OTHER, retry(n, delay_ms))
}

fn command(action: RetryAction, scope: RetryScope) -> Vec<u8> {
    let command = RetryCommand {
        v: RETRY_COMMAND_VERSION,
        command: RetryCommandId(Uuid::now_v7()),
        action,
        tenant: crate::world::TENANT,
        scope,
        at: floodway_runtime::clock::now(),
    };
    command.encode().unwrap()
}

fn all_mine(action: RetryAction) -> Vec<u8> {
    command(action, RetryScope::of_subscription(MINE))
}

fn ids(records: &[Record]) -> Vec<i64> {
    records.iter().map(|record| retry_key(record).id).collect()
}

/// Everything on `due` up to the retry with this id.
async fn until(world: &World, id: i64) -> Vec<i64> {
    let read = move |records: &[Record]| records.iter().any(|record| retry_key(record).id == id);
    ids(&world.read(Topic::Due, read).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn now_brings_all_of_a_subscription_back_in_the_order_of_arrival_and_nothing_else() {
    let world = World::new(1).await;
    // Less in memory than there is, so that most comes from the table.
    let scheduler = world.start_with(Settings { heap_rows: 6, ..settings() }, world.pool()).await;
    // The later ones would be due first.
    let hour = 3_600_000;
    let written: Vec<_> = (0..2 * N)
        .map(|n| if n % 2 == 0 { mine(n, hour - n as u64 * 1_000) } else { other(n, hour) })
        .collect();
    world.write(0, &written);
    let lease = of(MINE, outcome(OutcomeKind::InDoubt, 100, Duration::from_secs(1_800)));
    world.write(0, &[lease]);
    let now = all_mine(RetryAction::Now);
    world.write_bytes(0, &now);
    // The same record again, and what follows it.
    world.write_bytes(0, &now);
    world.write(0, &[mine(101, 3_000_000)]);
    world.number_becomes(ENDED, |n| n == 1).await;
    world.write(0, &[other(102, 300)]);
    let expected: Vec<i64> = (0..2 * N).step_by(2).chain([2 * N + 4]).collect();
    assert_eq!(until(&world, 2 * N + 4).await, expected);
    assert_eq!(world.number("SELECT count(DISTINCT id) FROM retry_mark").await, 1);
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_came_back_early_does_not_come_again_when_its_time_comes_whoever_owns_the_shard() {
    let world = World::new(1).await;
    let process = started(&world).await;
    world.write(0, &(0..N).map(|n| mine(n, 8_000 + n as u64)).collect::<Vec<_>>());
    world.number_becomes(STORED, |next| next == N).await;
    world.write_bytes(0, &all_mine(RetryAction::Now));
    world.number_becomes(ENDED, |n| n == 1).await;
    process.kill();
    sessions_end(&world).await;
    let next = world.start().await;
    world.write(0, &[other(N, 10_000)]);
    assert_eq!(until(&world, N + 1).await, (0..=N + 1).filter(|id| *id != N).collect::<Vec<_>>());
    next.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_before_it_stored_how_far_a_now_is_it_leaves_retries_that_come_again_and_no_third_time() {
    let world = World::new(1).await;
    world.execute(STOP_PROGRESS).await;
    let process = started(&world).await;
    world.write(0, &(0..N).map(|n| mine(n, 10_000 + n as u64)).collect::<Vec<_>>());
    world.write_bytes(0, &all_mine(RetryAction::Now));
    world.read_due(N as usize).await;
    process.kill();
    sessions_end(&world).await;
    world.execute("DROP TRIGGER stop_progress ON retry_mark").await;
    let next = world.start().await;
    world.number_becomes(ENDED, |n| n == 1).await;
    world.write(0, &[other(N, 12_000)]);
    let expected: Vec<i64> = (0..N).chain(0..N).chain([N + 1]).collect();
    assert_eq!(until(&world, N + 1).await, expected);
    next.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_now_covers_comes_although_kafka_refuses_it_until_it_is_due() {
    let world = World::new(1).await;
    let scheduler = world.start().await;
    // It starts with its topics as they are to be.
    world.number_becomes("SELECT count(*) FROM retry_shard", |n| n == 1).await;
    world.due_takes(64).await;
    world.write(0, &(0..N).map(|n| mine(n, 1_000 + n as u64)).collect::<Vec<_>>());
    world.write_bytes(0, &all_mine(RetryAction::Now));
    world.number_becomes(STORED, |next| next == N + 1).await;
    // Time enough for another try.
    let late = "SELECT count(*) FROM retry WHERE due_at > clock_timestamp() - interval '2 s'";
    world.number_becomes(late, |n| n == 0).await;
    assert_eq!(world.number(ENDED).await, 0, "nothing was acknowledged");
    world.due_takes(Topic::Due.max_record_bytes()).await;
    let came: BTreeSet<i64> = ids(&world.read_due(N as usize).await).into_iter().collect();
    assert_eq!(came, (0..N).collect());
    scheduler.stop().await;
    // What is too large ends its command; the next owner looks whether anything is left of it.
    let scheduler = world.start().await;
    world.number_becomes(ENDED, |n| n == 1).await;
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_missed_the_answer_to_a_commit_tells_what_was_cancelled_once() {
    let world = World::new(1).await;
    world.execute(STOP_PROGRESS_COMMITS).await;
    let holder = hold(&world).await;
    let address = free_address().await;
    let proxy = Proxy::open(address, world.server()).await;
    let scheduler = world.start_with(settings(), world.pool_through(address)).await;
    world.write(0, &(0..N).map(|n| mine(n, 3_600_000)).collect::<Vec<_>>());
    world.write_bytes(0, &all_mine(RetryAction::Cancel));
    world.write_bytes(0, &all_mine(RetryAction::Now));
    world.number_becomes(&waiting("COMMIT"), |n| n == 1).await;
    drop(proxy);
    scheduler.health_becomes("postgresql", |reason| reason.is_some()).await;
    holder.batch_execute("SELECT pg_advisory_unlock(4711)").await.unwrap();
    world.number_becomes(CANCELLED, |n| n == N).await;
    let _proxy = Proxy::open(address, world.server()).await;
    world.write(0, &[other(N, 500)]);
    assert_eq!(until(&world, N + 2).await, [N + 2]);
    let cursor = "SELECT count(*) FROM retry, retry_shard WHERE id = 22 AND due_at > cur_due";
    world.number_becomes(cursor, |n| n == 0).await;
    assert_eq!(world.number(CANCELLED).await, N);
    assert_eq!(world.number("SELECT sum(n)::bigint FROM delivery_count WHERE kind = 'cancelled'").await, N);
    drop(holder);
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_whose_mark_the_database_refuses_is_passed_over_and_its_neighbours_are_not() {
    let world = World::new(1).await;
    let refuse = "ALTER TABLE retry_mark ADD CONSTRAINT no_cancel CHECK (action <> 'cancel')";
    world.execute(refuse).await;
    let scheduler = world.start().await;
    world.write(0, &[mine(0, 3_600_000)]);
    world.write_bytes(0, &all_mine(RetryAction::Cancel));
    world.write_bytes(0, &all_mine(RetryAction::Cancel));
    world.write_bytes(0, &all_mine(RetryAction::Now));
    world.write(0, &[other(1, 300)]);
    world.number_becomes(STORED, |next| next == 5).await;
    world.number_becomes(ENDED, |n| n == 1).await;
    assert_eq!(ids(&world.read_due(2).await).into_iter().collect::<BTreeSet<_>>(), [0, 4].into());
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cancelled_never_comes_and_history_says_so() {
    let world = World::new(1).await;
    let scheduler = world.start().await;
    world.write(0, &(0..N).map(|n| mine(n, 2_000)).chain([other(N, 2_000)]).collect::<Vec<_>>());
    world.write_bytes(0, &all_mine(RetryAction::Cancel));
    // What follows the command is none of its business.
    world.write(0, &[mine(N + 1, 2_000), other(N + 2, 3_000)]);
    assert_eq!(until(&world, N + 3).await, [N, N + 2, N + 3]);
    world.number_becomes(CANCELLED, |n| n == N).await;
    let counted = "SELECT sum(n)::bigint FROM delivery_count WHERE kind = 'cancelled'";
    assert_eq!(world.number(counted).await, N);
    let told = "SELECT count(*) FROM delivery WHERE kind = 'cancelled' AND event_id = 'order-3' AND attempt = 3 \
                AND event_type = 'order.created' AND detail LIKE 'cancelled by command %'";
    assert_eq!(world.number(told).await, 1);
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_retry_and_one_event_are_cancelled_alone_and_a_now_tells_it_at_once() {
    let world = World::new(1).await;
    let scheduler = world.start().await;
    world.write(0, &[mine(0, 3_600_000), mine(1, 3_600_000), mine(2, 3_600_000), other(2, 3_600_000)]);
    let one = RetryScope { retry: Some(RetryKey { shard: 0, id: 0 }), ..RetryScope::default() };
    world.write_bytes(0, &command(RetryAction::Cancel, one));
    let event_id = Some("order-2".to_owned());
    let event = RetryScope { event_id: event_id.clone(), ..RetryScope::of_subscription(MINE) };
    world.write_bytes(0, &command(RetryAction::Cancel, event));
    world.write_bytes(0, &all_mine(RetryAction::Now));
    // An event whatever the subscription: only the other one's is left.
    world.write_bytes(0, &command(RetryAction::Now, RetryScope { event_id, ..RetryScope::default() }));
    world.number_becomes(ENDED, |n| n == 2).await;
    assert_eq!(ids(&world.read_due(2).await), [1, 3]);
    assert_eq!(world.number(CANCELLED).await, 2);
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_outlives_an_owner_that_is_killed_before_its_commit_and_one_that_is_killed_after_it() {
    let world = World::new(1).await;
    let process = started(&world).await;
    world.write(0, &(0..N).map(|n| mine(n, 3_600_000)).collect::<Vec<_>>());
    world.number_becomes(STORED, |next| next == N).await;
    let holder = crate::crashes::holder(&world).await;
    holder.batch_execute("BEGIN; LOCK TABLE retry_mark IN SHARE MODE").await.unwrap();
    world.write_bytes(0, &all_mine(RetryAction::Cancel));
    world.number_becomes(&waiting("COPY retry_mark"), |n| n == 1).await;
    process.kill();
    holder.batch_execute("ROLLBACK").await.unwrap();
    sessions_end(&world).await;
    assert_eq!(world.number(STORED).await, N);
    drop(holder);

    world.execute(STOP_COMMITS).await;
    let holder = hold(&world).await;
    let second = crate::process::Process::start(&world);
    world.number_becomes(&waiting("COMMIT"), |n| n == 1).await;
    second.kill();
    holder.batch_execute("SELECT pg_advisory_unlock(4711)").await.unwrap();
    sessions_end(&world).await;
    assert_eq!(world.number(STORED).await, N + 1, "the server finished the commit");
    assert_eq!(world.number("SELECT count(*) FROM retry_mark").await, 1);

    let next = world.start().await;
    // Who asks for them now learns what became of them.
    world.write_bytes(0, &all_mine(RetryAction::Now));
    world.number_becomes(CANCELLED, |n| n == N).await;
    world.write(0, &[other(N, 300)]);
    assert_eq!(until(&world, N + 2).await, [N + 2]);
    next.stop().await;
    drop(holder);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deferral_right_after_a_resumption_is_short_however_long_was_asked_for() {
    let world = World::new(1).await;
    let scheduler = world.start().await;
    let deferred =
        |subscription, n| of(subscription, outcome(OutcomeKind::Deferred, n, Duration::from_secs(3_600)));
    world.write_bytes(0, &all_mine(RetryAction::Now));
    world.write(0, &[deferred(MINE, 0), deferred(OTHER, 1)]);
    world.number_becomes(STORED, |next| next == 3).await;
    let soon = "SELECT count(*) FROM retry WHERE due_at < clock_timestamp() + interval '1 minute'";
    assert_eq!(world.number(soon).await, 1);
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_read_again_covers_nothing_that_came_after_it_and_all_that_is_read_again_before_it()
{
    let world = World::new(1).await;
    let scheduler = world.start().await;
    let hour = 3_600_000;
    world.write(0, &[mine(0, hour), other(1, hour)]);
    world.write_bytes(0, &all_mine(RetryAction::Cancel));
    world.write_bytes(0, &command(RetryAction::Cancel, RetryScope::of_subscription(OTHER)));
    world.write(0, &[mine(4, hour), other(5, hour)]);
    world.number_becomes(STORED, |next| next == 6).await;
    scheduler.stop().await;
    // As if the log had been longer; and one of the commands is so old that its mark is gone.
    let forget = format!("DELETE FROM retry_mark WHERE subscription_id = '{MINE}'");
    world.execute(&format!("{forget}; UPDATE retry_shard SET next_offset = 9")).await;
    // Who reads them again ends in the middle of it, and its successor knows what they are all the same.
    let holder = crate::crashes::holder(&world).await;
    holder.batch_execute("BEGIN; LOCK TABLE retry_mark IN SHARE MODE").await.unwrap();
    let process = started(&world).await;
    world.number_becomes(&waiting("COPY retry_mark"), |n| n == 1).await;
    process.kill();
    holder.batch_execute("ROLLBACK").await.unwrap();
    sessions_end(&world).await;
    assert_eq!(world.number(STORED).await, 0);
    drop(holder);
    let next = world.start().await;
    world.number_becomes(STORED, |next| next == 6).await;
    world.write_bytes(0, &all_mine(RetryAction::Now));
    world.write_bytes(0, &command(RetryAction::Now, RetryScope::of_subscription(OTHER)));
    world.number_becomes(ENDED, |n| n == 2).await;
    let again = |offset: i64| (1 << 44) + offset;
    let came: BTreeSet<i64> = ids(&world.read_due(5).await).into_iter().collect();
    // Of the one whose mark is gone the row of before it, too: in earnest it was due before the mark expired.
    assert_eq!(came, [0, 4, 5, again(4), again(5)].into());
    assert_eq!(world.number(CANCELLED).await, 3);
    next.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_of_before_the_topic_was_made_anew_cover_nothing_of_the_new_one() {
    let world = World::new(1).await;
    let scheduler = world.start().await;
    world.write(0, &[other(0, 3_600_000)]);
    world.write_bytes(0, &all_mine(RetryAction::Cancel));
    world.number_becomes(STORED, |next| next == 2).await;
    scheduler.stop().await;
    // As if the log had been long, and were cut short: ids of the new one are higher.
    world.execute("UPDATE retry_mark SET id = 10000; UPDATE retry_shard SET next_offset = 10001").await;
    let next = world.start().await;
    world.write(0, &[mine(1, 300)]);
    assert_eq!(ids(&world.read_due(1).await), [(1 << 44) + 2]);
    next.stop().await;
    world.end().await;
}
