//! Configuration and dead letters as files, for another server or version of PostgreSQL.

use floodway_store::{Pool, testing::TestDatabase};
use std::{path::Path, process::Command};

const ROWS: &str = "
    INSERT INTO tenant (id, name, state, version, created_at)
        VALUES ('01938f2e-0000-7000-8000-000000000001', 'Acme', 'active', 3, now());
    CREATE TABLE dead_letter_202001 PARTITION OF dead_letter FOR VALUES FROM ('2020-01-01Z') TO ('2020-02-01Z');
    INSERT INTO dead_letter (recorded_at, shard, id, at, since, tenant_id, subscription_id, event_id, event_type, record_key,
            attempts, reason, event, members)
        SELECT '2020-01-31T23:59:59Z', 0, id, now(), now(), gen_random_uuid(), gen_random_uuid(), 'order-1', 'order.created',
            'k', 1, 'expired', '\\x7b22610a', CASE WHEN id = 2 THEN ARRAY['a, \"b\"', E'c\\n'] END
        FROM generate_series(1, 3) AS id";

/// All that is to be the same on both sides.
const CONTENTS: &str = "SELECT (SELECT string_agg(t::text, ';' ORDER BY id) FROM tenant t)
    || (SELECT string_agg(d::text, ';' ORDER BY id) FROM dead_letter d)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configuration_and_dead_letters_are_copied_to_another_database_as_they_are() {
    let (from, to) = tokio::join!(TestDatabase::create(), TestDatabase::create());
    execute(&from.pool(), ROWS).await;
    let folder = std::env::temp_dir().join(format!("floodway-tables-{}", uuid::Uuid::new_v4().as_simple()));
    let folder_text = folder.to_str().unwrap();
    script("backup", &from, &["--tables", "--to", folder_text]).unwrap();
    script("restore", &to, &["--tables", "--from", folder_text]).unwrap();
    assert_eq!(contents(&to.pool()).await, contents(&from.pool()).await);
    // A second time, and from files that were changed, nothing is written.
    script("restore", &to, &["--tables", "--from", folder_text]).unwrap_err();
    std::fs::write(folder.join("tenant.csv"), "id\n").unwrap();
    let error = script("restore", &to, &["--tables", "--from", folder_text]).unwrap_err();
    assert!(error.contains("is damaged"), "{error}");
    assert_eq!(contents(&to.pool()).await, contents(&from.pool()).await);
    std::fs::remove_dir_all(folder).unwrap();
    from.drop().await;
    to.drop().await;
}

async fn execute(pool: &Pool, sql: &str) {
    pool.get().await.unwrap().batch_execute(sql).await.unwrap();
}

async fn contents(pool: &Pool) -> String {
    pool.get().await.unwrap().query_one(CONTENTS, &[]).await.unwrap().get(0)
}

/// Runs one of the scripts; its connection is libpq's. The error is what it says.
fn script(name: &str, database: &TestDatabase, arguments: &[&str]) -> Result<(), String> {
    let rest = database.url_text().strip_prefix("postgres://").unwrap();
    let (user, rest) = rest.split_once('@').unwrap();
    let ((user, password), (address, database)) =
        (user.split_once(':').unwrap(), rest.split_once('/').unwrap());
    let (host, port) = address.rsplit_once(':').unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts").join(name);
    let mut command = Command::new(script);
    command.args(arguments).env("PGHOST", host).env("PGPORT", port).env("PGUSER", user);
    command.env("PGPASSWORD", password).env("PGDATABASE", database);
    let output = command.output().unwrap();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}
