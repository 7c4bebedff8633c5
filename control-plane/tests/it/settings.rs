use crate::world::{Plane, eventually, settings};
use floodway_control_plane::{ControlPlane, Error, Settings};
use floodway_runtime::{
    testing::{TestTopics, context, kafka},
    topics::{self, TopicPlan},
};
use floodway_store::{Pool, testing::TestDatabase};
use std::time::{Duration, Instant};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

#[tokio::test]
async fn a_missing_admin_key_is_a_startup_error_naming_its_variable() {
    let pool = Pool::new(&"postgres://127.0.0.1:1/none".into(), "test", 1).unwrap();
    let settings = Settings { admin_key: None, ..settings() };
    let error = ControlPlane::bind(settings, context(kafka()), pool).await.unwrap_err();
    assert!(matches!(error, Error::Setting(_)));
    assert!(error.to_string().contains("FLOODWAY_CONTROL_PLANE__ADMIN_KEY"), "{error}");
}

#[tokio::test]
async fn missing_topics_are_a_startup_error_naming_them() {
    let database = TestDatabase::create().await;
    let error = ControlPlane::bind(settings(), context(kafka()), database.pool()).await.unwrap_err();
    assert!(matches!(error, Error::Topics(_)), "{error}");
    assert!(error.to_string().contains("-config"), "{error}");
    database.drop().await;
}

#[tokio::test]
async fn a_database_without_the_schema_is_a_startup_error_saying_what_to_do() {
    let (topics, database) = tokio::join!(TestTopics::create(1), TestDatabase::create_empty());
    let error = ControlPlane::bind(settings(), topics.context(), database.pool()).await.unwrap_err();
    assert!(error.to_string().contains("floodway migrate"), "{error}");
    topics.delete().await;
    database.drop().await;
}

#[tokio::test]
async fn without_kafka_and_database_it_starts_and_health_says_why() {
    let mut away = context(kafka());
    away.kafka.brokers = "127.0.0.1:1".to_owned();
    let pool = Pool::new(&"postgres://127.0.0.1:1/none".into(), "test", 1).unwrap();
    let mut plane = Plane::start(settings(), away, pool).await;
    let answer = plane.get("/v1/tenants").await;
    answer.is_problem(503, "database");
    assert!(!plane.context.health.is_ready());
    let names: Vec<&str> = plane.context.health.reports().iter().map(|report| report.name).collect();
    assert_eq!(names, ["postgresql", "kafka"]);
    plane.stop().await;
}

#[tokio::test]
async fn migrations_run_once_when_several_processes_start_together() {
    let database = TestDatabase::create_empty().await;
    let (first, second) = tokio::join!(
        floodway_store::migrate::migrate(&database.url),
        floodway_store::migrate::migrate(&database.url)
    );
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.version, second.version);
    assert_ne!(first.applied.is_empty(), second.applied.is_empty(), "one of them applies all");
    database.drop().await;
}

/// Waits until the session that migrates a database waits for a lock, or does not any more.
async fn until_migrating_waits(pool: &Pool, wanted: bool) {
    let sql = "-- migrating_waits\nSELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() \
               AND application_name = 'floodway-migrate' AND wait_event_type = 'Lock')";
    let deadline = Instant::now() + Duration::from_secs(60);
    while pool.get().await.unwrap().query_typed_one(sql, &[]).await.unwrap().get::<_, bool>(0) != wanted {
        assert!(Instant::now() < deadline, "waits for a lock: never {wanted}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_migration_lets_others_pass_now_and_then_while_its_tables_are_in_use() {
    let database = TestDatabase::create_empty().await;
    let pool = database.pool();
    let user = pool.get().await.unwrap();
    user.batch_execute("-- user\nBEGIN; CREATE TABLE tenant (of_user text)").await.unwrap();
    let (report, ()) = tokio::join!(floodway_store::migrate::migrate(&database.url), async {
        until_migrating_waits(&pool, true).await;
        until_migrating_waits(&pool, false).await;
        user.batch_execute("-- user\nROLLBACK").await.unwrap();
    });
    let report = report.unwrap();
    assert_eq!(report.version, floodway_store::migrate::supported_version());
    assert!(!report.applied.is_empty());
    drop(user);
    database.drop().await;
}

#[tokio::test]
async fn a_database_newer_than_the_binary_is_refused() {
    let database = TestDatabase::create().await;
    let newer = "INSERT INTO refinery_schema_history (version, name, applied_on, checksum)
        VALUES (9999, 'later', '2026-01-01T00:00:00Z', '1')";
    let pool = database.pool();
    pool.get().await.unwrap().batch_execute(newer).await.unwrap();
    let refused = [
        floodway_store::migrate::check_schema(&pool).await.unwrap_err(),
        floodway_store::migrate::migrate(&database.url).await.unwrap_err(),
    ];
    for error in refused {
        assert!(matches!(error, floodway_store::Error::Schema(_)), "{error}");
        assert!(error.to_string().contains("9999") && error.to_string().contains("newer binary"), "{error}");
    }
    database.drop().await;
}

#[tokio::test]
async fn kafka_that_comes_later_is_up_only_when_its_topics_are_right() {
    let database = TestDatabase::create().await;
    let there = kafka();
    let mut context = context(there.clone());
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    context.kafka.brokers = address.to_string();
    let mut plane = Plane::start(settings(), context, database.pool()).await;
    // The way to the first connection; the broker itself tells its address for all others.
    let (listener, broker) = (TcpListener::bind(address).await.unwrap(), there.brokers.clone());
    let mut proxy = JoinSet::new();
    proxy.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let broker = broker.clone();
            connections.spawn(async move {
                if let Ok(mut far) = TcpStream::connect(broker).await {
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    });
    let kafka_reason = || {
        let reports = plane.context.health.reports();
        reports.into_iter().find(|report| report.name == "kafka").unwrap().reason
    };
    eventually("missing topics are told", || async {
        kafka_reason().is_some_and(|reason| reason.contains("missing"))
    })
    .await;
    topics::apply(&there, TopicPlan { partitions: 1, replication: 1, dev: true }).await.unwrap();
    eventually("up", || async { kafka_reason().is_none() }).await;
    assert_eq!(plane.post("/v1/tenants", r#"{"name":"Acme"}"#).await.status, 201);
    plane.stop().await;
    TestTopics { kafka: there }.delete().await;
    database.drop().await;
}
