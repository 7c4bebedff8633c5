//! How the database is reached: over TLS, and at whichever of several servers takes writes.

use crate::{outages::free_address, world::World};
use floodway_store::{
    Pool,
    testing::{TestDatabase, TestPooler},
};
use secrecy::ExposeSecret;
use std::{
    path::{Path, PathBuf},
    process::Command,
};
use tokio::net::TcpListener;

fn pool(url: &str) -> Pool {
    Pool::behind_pooler(&url.into(), &url.into(), "scheduler-under-test", 2).unwrap()
}

async fn answers(url: &str) -> Result<(), String> {
    let client = pool(url).get().await.map_err(|error| error.to_string())?;
    client.batch_execute("SELECT 1").await.map_err(|error| error.to_string())
}

/// `postgres://credentials@`, what follows up to `/`, and the rest.
fn parts(url: &str) -> (&str, &str, &str) {
    let host = url.find('@').unwrap() + 1;
    let path = host + url[host..].find('/').unwrap();
    (&url[..host], &url[host..path], &url[path..])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_servers_the_one_that_takes_writes_is_used() {
    let world = World::new(1).await;
    // One that reads only, as a replica would, is what this pooler looks like; it stands for the server itself, too.
    let replica =
        TestPooler::start_with(&world.database, "connect_query='SET default_transaction_read_only = on'", "")
            .await;
    let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (before, server, after) = parts(world.database.url_text());
    let (refusing, hanging) = (free_address().await, hanging.local_addr().unwrap());
    let (_, replica_host, _) = parts(replica.url.expose_secret());
    for hosts in [
        format!("{refusing},{server}"),
        format!("{hanging},{server}"),
        format!("{replica_host},{refusing},{server}"),
    ] {
        let url = format!("{before}{hosts}{after}?target_session_attrs=read-write");
        let client = pool(&url).get().await.unwrap();
        let row = client.query_one("SHOW transaction_read_only", &[]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), "off", "{hosts}");
    }
    let url = format!("{before}{replica_host}{after}?target_session_attrs=read-write");
    assert!(pool(&url).get().await.unwrap_err().is_unavailable(), "waited for, not given up");
    drop(replica);
    world.end().await;
}

/// An authority, and a certificate for `127.0.0.1` and another one that it signed.
fn certificates(folder: &Path) {
    let openssl = |arguments: &str| {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output().unwrap();
        assert!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    };
    for authority in ["ca", "other"] {
        openssl(&format!(
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={authority} -keyout {authority}-key.pem -out {authority}.pem"
        ));
    }
    std::fs::write(folder.join("extensions"), "subjectAltName=IP:127.0.0.1").unwrap();
    openssl("req -new -newkey rsa:2048 -nodes -subj /CN=server -keyout server-key.pem -out server.csr");
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 2 -extfile extensions -out server.pem",
    );
    // PgBouncer does not read it as root.
    let key = folder.join("server-key.pem");
    let mut permissions = std::fs::metadata(&key).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
    std::fs::set_permissions(key, permissions).unwrap();
}

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_checked_as_far_as_sslmode_says() {
    let folder =
        Folder(std::env::temp_dir().join(format!("floodway-tls-{}", uuid::Uuid::new_v4().as_simple())));
    std::fs::create_dir(&folder.0).unwrap();
    certificates(&folder.0);
    let path = folder.0.display();
    let database = TestDatabase::create_empty().await;
    let settings = format!(
        "client_tls_sslmode = require\nclient_tls_key_file = {path}/server-key.pem\nclient_tls_cert_file = {path}/server.pem"
    );
    let pooler = TestPooler::start_with(&database, "", &settings).await;
    let url = pooler.url.expose_secret();
    // Another name of the same address, which the certificate does not have.
    let named = url.replace("127.0.0.1", "localhost");
    for (url, query, works) in [
        (url, String::new(), true),
        (url, "sslmode=disable".into(), false),
        (url, "sslmode=prefer".into(), true),
        (url, "sslmode=require".into(), true),
        (url, format!("sslmode=require&sslrootcert={path}/other.pem"), false),
        (url, format!("sslmode=verify-ca&sslrootcert={path}/ca.pem"), true),
        (url, format!("sslmode=verify-ca&sslrootcert={path}/other.pem"), false),
        (url, "sslmode=verify-full&sslrootcert=system".into(), false),
        (url, format!("sslmode=verify-full&sslrootcert={path}/ca.pem"), true),
        (&named, format!("sslmode=verify-ca&sslrootcert={path}/ca.pem"), true),
        (&named, format!("sslmode=verify-full&sslrootcert={path}/ca.pem"), false),
    ] {
        let result = answers(&format!("{url}?{query}")).await;
        assert_eq!(result.is_ok(), works, "{query}: {result:?}");
    }
    drop(pooler);
    // A server without TLS is refused where TLS is asked for, and only there.
    let (before, server, after) = parts(database.url_text());
    assert!(answers(&format!("{before}{server}{after}?sslmode=prefer")).await.is_ok());
    assert!(answers(&format!("{before}{server}{after}?sslmode=require")).await.is_err());
    database.drop().await;
}
