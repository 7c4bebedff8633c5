//! What all routes have in common.

use crate::world::{ADMIN_KEY, World, settings};
use floodway_control_plane::Settings;
use http_body_util::Full;
use hyper::{Request, body::Bytes, header};

#[tokio::test]
async fn every_route_but_the_description_asks_for_the_admin_key() {
    let world = World::start().await;
    let description = Request::get(world.plane.url("/v1/openapi.json")).body(Full::default()).unwrap();
    let description = world.plane.send(description).await;
    assert_eq!((description.status, description.content_type.as_str()), (200, "application/json"));
    let none = "01938f2e-0000-7000-8000-000000000001";
    let mut routes = 0;
    for (path, operations) in description.json["paths"].as_object().unwrap() {
        let path = path.replace("{tenant}", none).replace("{id}", none);
        for method in operations.as_object().unwrap().keys() {
            for authorization in [None, Some("Bearer wrong".to_owned()), Some(format!("Basic {ADMIN_KEY}"))] {
                let mut request =
                    Request::builder().method(method.to_uppercase().as_str()).uri(world.plane.url(&path));
                if let Some(authorization) = authorization {
                    request = request.header(header::AUTHORIZATION, authorization);
                }
                world.plane.send(request.body(Full::default()).unwrap()).await.is_problem(401, "Bearer");
            }
            routes += 1;
        }
    }
    assert!(routes >= 24, "{routes}");
    world.end().await;
}

#[tokio::test]
async fn malformed_requests_are_answered_with_problem_documents() {
    let world = World::start_with(Settings { max_body_bytes: 2_048, ..settings() }).await;
    let plane = &world.plane;
    plane.get("/v1/nothing").await.is_problem(404, "no such route");
    plane.get("/").await.is_problem(404, "no such route");
    plane.call("PUT", "/v1/tenants", None).await.is_problem(405, "");
    plane.post("/v1/tenants", "{\"name\":").await.is_problem(400, "EOF");
    plane.post("/v1/tenants", "[]").await.is_problem(400, "");
    plane.post("/v1/tenants", r#"{"name":"a","colour":"red"}"#).await.is_problem(400, "colour");
    plane.post("/v1/tenants", r#"{"name":7}"#).await.is_problem(400, "name");
    plane.post("/v1/tenants", &format!("{{\"name\":\"{}\"}}", "a".repeat(4_096))).await.is_problem(413, "");
    plane.get("/v1/tenants?colour=red").await.is_problem(400, "colour");
    let untyped = Request::post(plane.url("/v1/tenants"))
        .header(header::AUTHORIZATION, format!("Bearer {ADMIN_KEY}"))
        .header(header::CONTENT_TYPE, "text/plain")
        .body(Full::new(Bytes::from_static(b"{}")))
        .unwrap();
    plane.send(untyped).await.is_problem(415, "application/json");
    world.end().await;
}

#[tokio::test]
async fn a_request_in_progress_is_answered_before_the_end() {
    let mut world = World::start().await;
    let shutdown = world.plane.context.shutdown.clone();
    // The lock holds the request back until the shutdown has begun.
    let holder = world.pool.get().await.unwrap();
    let lock = floodway_store::advisory::CONFIGURATION;
    holder.execute("SELECT pg_advisory_lock($1)", &[&lock]).await.unwrap();
    let request = world.plane.post("/v1/tenants", r#"{"name":"late"}"#);
    let release = async {
        crate::world::eventually("the request waits", || async {
            let waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
            holder.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 1
        })
        .await;
        shutdown.cancel();
        crate::world::eventually("the listener is closed", || async {
            tokio::net::TcpStream::connect(world.plane.address).await.is_err()
        })
        .await;
        holder.execute("SELECT pg_advisory_unlock($1)", &[&lock]).await.unwrap();
    };
    let (answer, ()) = tokio::join!(request, release);
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.offset();
    drop(holder);
    world.plane.stop().await;
    world.end().await;
}
