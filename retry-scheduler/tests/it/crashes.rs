//! Every point at which a scheduler may be killed or cut off: what is in the database afterwards, and what comes on `due`.

use crate::{
    outages::{Proxy, free_address},
    process::{Process, SESSIONS},
    world::{Record, Running, World, outcome, retry, retry_key, retry_keys, settings},
};
use floodway_schemas::{
    due::RetryKey,
    outcome::{Cause, Outcome, OutcomeKind},
    topic::Topic,
};
use floodway_store::pool::DedicatedClient;
use std::{collections::BTreeSet, time::Duration};

/// Outcomes of a test.
const N: i64 = 20;

/// Stored outcomes less stored rows, in one snapshot: 0 at any time.
const APART: &str = "SELECT next_offset - (SELECT count(*) FROM retry) FROM retry_shard";

/// Retries that the cursor is past.
const PASSED: &str = "SELECT count(*) FROM retry, retry_shard WHERE (due_at, id) <= (cur_due, cur_id)";

const COUNTED: &str = "SELECT coalesce(sum(n), 0)::bigint FROM delivery_count";

/// Stops every commit of a batch until [`hold`]'s lock is free: deferred triggers run when COMMIT has begun.
pub(crate) const STOP_COMMITS: &str = "
    CREATE FUNCTION wait_for_test() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER stop_commits AFTER UPDATE ON retry_shard DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW WHEN (OLD.next_offset <> NEW.next_offset) EXECUTE FUNCTION wait_for_test()";

/// Refuses to move a cursor past a retry.
const STOP_CURSOR: &str = "
    CREATE FUNCTION refuse_cursor() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF EXISTS (SELECT FROM retry WHERE (due_at, id) <= (NEW.cur_due, NEW.cur_id)) THEN
            RAISE EXCEPTION 'not now' USING ERRCODE = 'query_canceled';
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER stop_cursor BEFORE UPDATE OF cur_due ON retry_shard FOR EACH ROW EXECUTE FUNCTION refuse_cursor()";

fn outcomes() -> Vec<Outcome<'static>> {
    (0..N).map(|n| retry(n, 400 + n as u64)).collect()
}

fn all_keys() -> BTreeSet<RetryKey> {
    (0..N).map(|id| RetryKey { shard: 0, id }).collect()
}

/// Sessions that wait for a lock in a statement like this.
pub(crate) fn waiting(statement: &str) -> String {
    format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock' \
         AND query LIKE '{statement}%'"
    )
}

/// Waits until the server has noticed that a killed process is gone, and rolled back or committed what it did.
pub(crate) async fn sessions_end(world: &World) {
    let sessions = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = '{SESSIONS}'"
    );
    world.number_becomes(&sessions, |n| n == 0).await;
}

/// A session that may hold a lock for as long as the test needs.
pub(crate) async fn holder(world: &World) -> DedicatedClient {
    let client = world.pool.dedicated().await.unwrap();
    client
        .batch_execute("SET statement_timeout = 0; SET transaction_timeout = 0; SET idle_in_transaction_session_timeout = 0")
        .await
        .unwrap();
    client
}

pub(crate) async fn hold(world: &World) -> DedicatedClient {
    let holder = holder(world).await;
    holder.batch_execute("SELECT pg_advisory_lock(4711)").await.unwrap();
    holder
}

pub(crate) async fn started(world: &World) -> Process {
    let process = Process::start(world);
    world.number_becomes("SELECT count(*) FROM retry_shard", |n| n == 1).await;
    process
}

/// Whoever owns the shard now: every outcome is stored once, and every retry comes once.
async fn everything_fires_once(world: &World) {
    let records = world.read_due(N as usize).await;
    assert_eq!((retry_keys(&records), records.len()), (all_keys(), N as usize));
    assert_eq!((world.number(APART).await, world.number(COUNTED).await), (0, N));
}

async fn end(world: World, scheduler: Running) {
    scheduler.stop().await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_before_its_commit_it_leaves_neither_rows_nor_position() {
    let world = World::new(1).await;
    let process = started(&world).await;
    // History cannot be written for now, so the transaction stops behind its retries.
    let holder = holder(&world).await;
    holder.batch_execute("BEGIN; LOCK TABLE delivery IN SHARE MODE").await.unwrap();
    world.write(0, &outcomes());
    world.number_becomes(&waiting("COPY delivery"), |n| n == 1).await;
    process.kill();
    holder.batch_execute("ROLLBACK").await.unwrap();
    sessions_end(&world).await;
    assert_eq!(world.number("SELECT next_offset FROM retry_shard").await, 0);
    assert_eq!(world.number(APART).await, 0);

    let next = world.start().await;
    everything_fires_once(&world).await;
    end(world, next).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_during_its_commit_it_leaves_all_of_the_batch_and_the_next_owner_stores_none_of_it_again() {
    let world = World::new(1).await;
    world.execute(STOP_COMMITS).await;
    let holder = hold(&world).await;
    let process = started(&world).await;
    world.write(0, &outcomes());
    world.number_becomes(&waiting("COMMIT"), |n| n == 1).await;
    process.kill();
    holder.batch_execute("SELECT pg_advisory_unlock(4711)").await.unwrap();
    sessions_end(&world).await;
    let stored = world.number("SELECT next_offset FROM retry_shard").await;
    assert!(stored > 0, "the server did not finish the commit");
    assert_eq!(world.number(APART).await, 0);

    let next = world.start().await;
    everything_fires_once(&world).await;
    end(world, next).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_missed_the_answer_to_its_commit_finds_out_that_it_happened() {
    let world = World::new(1).await;
    world.execute(STOP_COMMITS).await;
    let holder = hold(&world).await;
    let address = free_address().await;
    let proxy = Proxy::open(address, world.server()).await;
    let scheduler = world.start_with(settings(), world.pool_through(address)).await;
    let epoch =
        world.number_becomes("SELECT coalesce(max(epoch), 0) FROM retry_shard", |epoch| epoch > 0).await;
    world.write(0, &outcomes());
    world.number_becomes(&waiting("COMMIT"), |n| n == 1).await;
    drop(proxy);
    scheduler.health_becomes("postgresql", |reason| reason.is_some()).await;
    holder.batch_execute("SELECT pg_advisory_unlock(4711)").await.unwrap();
    world.number_becomes("SELECT next_offset FROM retry_shard", |next| next > 0).await;
    let _proxy = Proxy::open(address, world.server()).await;
    everything_fires_once(&world).await;
    assert_eq!(world.number("SELECT epoch FROM retry_shard").await, epoch, "it went on as the same owner");
    end(world, scheduler).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_between_acknowledgement_and_cursor_it_leaves_retries_that_come_again_as_the_same_records() {
    let world = World::new(1).await;
    world.execute(STOP_CURSOR).await;
    let process = started(&world).await;
    world.write(0, &outcomes());
    world.read_due(N as usize).await;
    process.kill();
    sessions_end(&world).await;
    assert_eq!(world.number(PASSED).await, 0, "the cursor stays before what was produced");
    world.execute("DROP TRIGGER stop_cursor ON retry_shard").await;

    let next = world.start().await;
    let records = world.read(Topic::Due, |records| records.len() == 2 * N as usize).await;
    world.number_becomes(PASSED, |n| n == N).await;
    let (first, second) = records.split_at(N as usize);
    let contents = |records: &[Record]| -> BTreeSet<_> {
        records.iter().map(|record| (record.partition, record.key.clone(), record.value.clone())).collect()
    };
    assert_eq!(retry_keys(first), all_keys());
    assert_eq!(contents(first), contents(second));

    // Both copies are delivered, and the endpoint answers differently: the first outcome is the one that counts.
    let answers: Vec<_> = records
        .iter()
        .enumerate()
        .map(|(place, record)| {
            let kind = if place < N as usize { OutcomeKind::Delivered } else { OutcomeKind::Retry };
            let cause = Cause::Due(retry_key(record));
            Outcome { cause, ..outcome(kind, retry_key(record).id, Duration::from_millis(300)) }
        })
        .collect();
    world.write(0, &answers);
    world.number_becomes("SELECT next_offset FROM retry_shard", |next| next == 3 * N).await;
    assert_eq!(world.number(COUNTED).await, 2 * N);
    assert_eq!(world.number("SELECT count(*) FROM retry").await, N);
    end(world, next).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_hangs_in_an_open_transaction_holds_nobody_up_and_changes_nothing_when_it_wakes() {
    let world = World::new(1).await;
    let process = started(&world).await;
    let before = world.number("SELECT epoch FROM retry_shard").await;
    let holder = holder(&world).await;
    holder.batch_execute("BEGIN; LOCK TABLE delivery IN SHARE MODE").await.unwrap();
    world.write(0, &outcomes());
    world.number_becomes(&waiting("COPY delivery"), |n| n == 1).await;
    process.freeze();
    holder.batch_execute("ROLLBACK").await.unwrap();

    let hangs = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active' \
                 AND wait_event = 'ClientRead' AND query LIKE 'COPY delivery%'";
    world.number_becomes(hangs, |n| n == 1).await;

    // Its group waits for its session to time out; then the takeover ends the transaction, which the server would not.
    let next = world.start().await;
    everything_fires_once(&world).await;
    assert!(world.number("SELECT epoch FROM retry_shard").await > before);
    world.number_becomes(PASSED, |n| n == N).await;
    process.thaw();
    world.write(0, &[retry(N, 300)]);
    let records = world.read_due(N as usize + 1).await;
    assert_eq!(records.len(), N as usize + 1, "nothing came twice");
    assert_eq!((world.number(APART).await, world.number(COUNTED).await), (0, N + 1));
    drop(process);
    end(world, next).await;
}
