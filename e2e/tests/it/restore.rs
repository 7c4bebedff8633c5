use anyhow::{Context, Result, ensure};
use floodway_e2e::{
    backup::{Backup, How, Server},
    pipeline::Pipeline,
    producer::{OnFailure, Producer, Sent},
    reconcile::{all_dead, all_delivered, arrivals},
    role::Role,
    stack::Stack,
};
use floodway_loadtest::admin_client::Subscription;
use http::Method;
use serde_json::Value;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tokio_postgres::types::FromSqlOwned;

/// Longest wait for a server to show what another one has.
const PATIENCE: Duration = Duration::from_secs(60);

/// One retry, which falls due when everything broke and came back.
const LATER: [f64; 1] = [15.0];

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_lost_comes_back_from_its_backup_and_every_retry_is_made() -> Result<()> {
    let mut pipeline = Pipeline::start(Stack::archiving("e2e-restore").await?).await?;
    subscribe(&pipeline).await?;
    let dead = pipeline.subscribe("/status/500").await?;
    let producer = Producer::start(&pipeline.events_url, &pipeline.key, 2, 4, OnFailure::Note);
    producer.accepts_more(300).await?;
    let doomed = pipeline.subscribe("/ok/doomed").await?;
    let backup = Backup::take(&pipeline.stack).await?;
    // What comes from here on, configuration too, is not restored.
    let backup_url = Server::of(&pipeline.stack.database_url)?.backup_url();
    let until: String = value(&backup_url, "SELECT clock_timestamp()::text").await?;
    let url = format!("/v1/tenants/{}/subscriptions", pipeline.tenant);
    let young = pipeline.subscribe("/ok/young").await?;
    pipeline.admin.delete_subscription(&pipeline.tenant, &doomed.id).await?;
    for timeout_ms in [4_000, 3_000] {
        let changed = serde_json::json!({ "timeout_ms": timeout_ms }).to_string();
        pipeline.admin.call(Method::PATCH, &format!("{url}/{}", dead.id), changed.into()).await?;
    }
    producer.accepts_more(300).await?;
    archived(&backup_url).await?;
    let pending = arrivals(&pipeline, "/fail/1").values().filter(|entry| entry.successes == 0).count();
    ensure!(pending > 0, "no retry is pending");
    pipeline.control_plane.terminate().await?;
    pipeline.stack.fault("kill postgres").await?;
    let data = pipeline.stack.value("STACK_POSTGRES_DATA")?;
    tokio::fs::remove_dir_all(&data).await?;
    producer.accepts_more(300).await?;

    backup.restore(&data, How::Until(&until)).await?;
    pipeline.stack.start("postgres").await?;
    pipeline.operate(&["recover-configuration", "--dry-run"]).await?;
    pipeline.operate(&["recover-configuration"]).await?;
    pipeline.control_plane.start()?;
    for role in pipeline.roles() {
        role.ready().await?;
    }
    let (sent, repeats) = nothing_is_lost(&pipeline, producer).await?;
    let dead_repeats = all_dead(&pipeline, &dead.id, &sent.accepted).await?;
    let doomed: Result<Value, _> = pipeline.admin.get(&format!("{url}/{}", doomed.id)).await;
    ensure!(doomed.is_err(), "a subscription that was deleted is back");
    let young: Value = pipeline.admin.get(&format!("{url}/{}", young.id)).await?;
    ensure!(young["state"] == "active", "a new subscription is gone: {young}");
    let changed: Value = pipeline.admin.get(&format!("{url}/{}", dead.id)).await?;
    ensure!(changed["timeout_ms"] == 3_000, "a change is gone: {changed}");
    let lost = pipeline.retry_scheduler.metric("floodway_retry_log_lost_total{reason=\"retention\"}").await;
    ensure!(lost.unwrap_or_default() == 0.0, "outcomes were lost unread");
    println!(
        "database restored with {pending} retries pending: accepted {}, lost 0, repeats {repeats}, {dead_repeats} dead",
        sent.accepted.len()
    );
    pipeline.finish().await?.remove().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_shows_history_and_takes_over_when_it_is_promoted() -> Result<()> {
    let (standby, primary) = tokio::join!(Stack::postgres("e2e-standby"), Stack::archiving("e2e-primary"));
    let (standby, mut pipeline) = (standby?, Pipeline::start(primary?).await?);
    let old = Server::of(&pipeline.stack.database_url)?;
    // It becomes a copy of the first, users and passwords included, and keeps its port.
    let new = Server { address: Server::of(&standby.database_url)?.address, ..old.clone() };
    let (_, database) = pipeline.database_url.rsplit_once('/').context("no database")?;
    let url = |addresses: &str, database: &str| {
        format!("postgres://floodway:{}@{addresses}/{database}", old.password)
    };
    let both = url(&format!("{},{}", old.address, new.address), database);
    let replica = url(&new.address, database);
    for role in [&mut pipeline.retry_scheduler, &mut pipeline.control_plane] {
        role.terminate().await?;
        role.set("FLOODWAY_DATABASE_URL", format!("{both}?target_session_attrs=read-write"));
    }
    pipeline.control_plane.set("FLOODWAY_DATABASE_REPLICA_URL", &replica);
    for role in [&mut pipeline.retry_scheduler, &mut pipeline.control_plane] {
        role.start()?;
        role.ready().await?;
    }
    let later = subscribe(&pipeline).await?;
    let producer = Producer::start(&pipeline.events_url, &pipeline.key, 4, 4, OnFailure::Note);
    producer.accepts_more(200).await?;

    let backup = Backup::take(&pipeline.stack).await?;
    standby.stop("postgres").await?;
    let data = standby.value("STACK_POSTGRES_DATA")?;
    tokio::fs::remove_dir_all(&data).await?;
    backup.restore(&data, How::StandbyOf(&old)).await?;
    standby.start("postgres").await?;
    replica_is(&mut pipeline.control_plane, "up").await?;
    let before: i64 = value(&replica, "SELECT count(*) FROM delivery").await?;
    producer.accepts_more(200).await?;
    let grows = async {
        while value::<i64>(&replica, "SELECT count(*) FROM delivery").await? <= before + 200 {
            sleep(Duration::from_millis(100)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, grows).await.context("the replica does not follow")??;
    let listed = pipeline.admin.dead_letters(&pipeline.tenant, &later.id, 1).await?;
    ensure!(listed.is_empty(), "nothing is dead yet");

    pipeline.stack.fault("kill postgres").await?;
    producer.accepts_more(200).await?;
    ensure!(value::<bool>(&new.backup_url(), "SELECT pg_promote()").await?, "it was not promoted");
    for role in pipeline.roles() {
        role.ready().await?;
    }
    let (sent, repeats) = nothing_is_lost(&pipeline, producer).await?;
    println!("replica promoted: accepted {}, lost 0, repeats {repeats}", sent.accepted.len());
    // What is left is on the new one.
    pipeline.stack.database_url = url(&new.address, "floodway");
    pipeline.finish().await?.remove().await?;
    standby.remove().await
}

/// A subscription whose endpoint is well, and one whose endpoint fails once; returns that one.
async fn subscribe(pipeline: &Pipeline) -> Result<Subscription> {
    pipeline.subscribe("/ok").await?;
    let later = pipeline.subscribe_patiently("/fail/1", &pipeline.receiver.url("/fail/1"), &LATER).await?;
    pipeline.receiver.set_secrets("/fail/1", &[&later.secret])?;
    Ok(later)
}

/// Sends some more events, and waits until both have all; returns what was sent, and repeats in words.
async fn nothing_is_lost(pipeline: &Pipeline, producer: Producer) -> Result<(Sent, String)> {
    producer.accepts_more(100).await?;
    let sent = producer.stop().await;
    let healthy = all_delivered(pipeline, "/ok", &sent.accepted).await?;
    let retried = all_delivered(pipeline, "/fail/1", &sent.accepted).await?;
    Ok((sent, format!("{} healthy, {} retried", healthy.repeats, retried.repeats)))
}

/// Waits until health says so of the replica.
async fn replica_is(role: &mut Role, status: &str) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let report: Value = serde_json::from_str(&role.report().await).unwrap_or_default();
        let components = report["components"].as_array().cloned().unwrap_or_default();
        let is = components.iter().any(|one| one["name"] == "postgresql_replica" && one["status"] == status);
        if is {
            return Ok(());
        }
        role.runs()?;
        ensure!(Instant::now() < end, "the replica is not {status}: {report}");
        sleep(Duration::from_millis(100)).await;
    }
}

/// Waits until everything written so far is in the archive.
async fn archived(url: &str) -> Result<()> {
    let file: String = value(url, "SELECT pg_walfile_name(pg_switch_wal())").await?;
    let done = format!("SELECT coalesce(max(last_archived_wal) >= '{file}', false) FROM pg_stat_archiver");
    let wait = async {
        while !value::<bool>(url, &done).await? {
            sleep(Duration::from_millis(100)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, wait).await.context("nothing is archived")?
}

async fn value<T: FromSqlOwned>(url: &str, sql: &str) -> Result<T> {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
    tokio::select! {
        row = client.query_one(sql, &[]) => Ok(row?.try_get(0)?),
        ended = connection => { ended?; anyhow::bail!("the connection ended") }
    }
}
