//! The routes, and what handlers are given.

use crate::{
    api_keys,
    auth::{AdminKey, require_admin_key},
    changed::Changed,
    dead_letters, deliveries,
    endpoint_url::EndpointRules,
    error::Refusal,
    extract::BODY_DEADLINE,
    history_reads::HistoryReads,
    metrics,
    openapi::{self, Description},
    pending_retries,
    publish::Publication,
    replay::Replays,
    subscription_state, subscriptions, tenants, test_event,
};
use axum::{
    Router,
    extract::{DefaultBodyLimit, MatchedPath, Request},
    http::{HeaderValue, Method, header},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::get,
};
use floodway_runtime::retry_commands::RetryCommands;
use floodway_schemas::seal::SealingKeys;
use floodway_store::{
    Pool,
    outbox::ConfigurationWrite,
    pool::{TRANSACTION_TIMEOUT, WAIT_TIMEOUT},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::Mutex, time::timeout};
use utoipa::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

/// Longest wait for this process's turn to write configuration.
const TURN_DEADLINE: Duration = Duration::from_secs(10);

/// Longest time for one request up to its publication. Above what its parts may take, so that a change that was stored
/// is always answered, for its answer may hold a secret: body, turn, connection, transaction.
const WORK_DEADLINE: Duration = Duration::from_secs(40);
const _: () = assert!(
    WORK_DEADLINE.as_secs()
        > BODY_DEADLINE.as_secs()
            + TURN_DEADLINE.as_secs()
            + WAIT_TIMEOUT.as_secs()
            + TRANSACTION_TIMEOUT.as_secs()
);

/// What handlers work with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) pool: Pool,
    pub(crate) history: HistoryReads,
    pub(crate) publication: Publication,
    pub(crate) replays: Replays,
    pub(crate) retry_commands: RetryCommands,
    pub(crate) sealing: Arc<SealingKeys>,
    pub(crate) endpoints: Arc<EndpointRules>,
    /// Held by the one request of this process that writes configuration. The database's lock makes writers take turns
    /// anyway; waiting here keeps them from occupying all connections meanwhile.
    pub(crate) turn: Arc<Mutex<()>>,
}

impl Api {
    /// Makes a change of configuration: runs `change` in a transaction that holds the lock, commits, and waits for the
    /// publication. When `change` refuses, nothing is changed.
    pub(crate) async fn change<T>(
        &self,
        change: impl AsyncFnOnce(&mut ConfigurationWrite<'_>) -> Result<T, Refusal>,
    ) -> Result<Changed<T>, Refusal> {
        let turn = timeout(TURN_DEADLINE, self.turn.lock())
            .await
            .map_err(|_| Refusal::Unavailable("too many changes at once".into()))?;
        let mut client = self.pool.get().await?;
        let mut write = ConfigurationWrite::begin(&mut client).await?;
        let entity = change(&mut write).await?;
        let change = write.commit().await?;
        // Others need the connection and the turn while this waits.
        drop(client);
        drop(turn);
        Ok(Changed { entity, config_offset: self.publication.settled(change).await })
    }
}

/// The whole interface as a service.
pub(crate) fn router(
    api: Api,
    key: AdminKey,
    max_body_bytes: usize,
    publish_deadline: Duration,
) -> Result<Router, Refusal> {
    let deadline = WORK_DEADLINE + publish_deadline;
    let (router, description) = documented_routes().split_for_parts();
    let description: Arc<str> = openapi::to_json(&description)?.into();
    let serve_description = get(move || serve_description(Arc::clone(&description)));
    Ok(router
        .route_layer(from_fn_with_state(key, require_admin_key))
        .route("/v1/openapi.json", serve_description)
        .fallback(|| async { Refusal::NoRoute })
        .method_not_allowed_fallback(|| async { Refusal::NoMethod })
        .layer(DefaultBodyLimit::max(max_body_bytes))
        .layer(from_fn(move |request, next| bounded_and_measured(deadline, request, next)))
        .with_state(api))
}

/// The interface's description, for the test that compares it with the checked-in file.
#[cfg(test)]
pub(crate) fn description() -> utoipa::openapi::OpenApi {
    documented_routes().into_openapi()
}

fn documented_routes() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(tenants::create_tenant, tenants::list_tenants))
        .routes(routes!(tenants::get_tenant, tenants::change_tenant, tenants::delete_tenant))
        .routes(routes!(api_keys::create_api_key, api_keys::list_api_keys))
        .routes(routes!(api_keys::revoke_api_key))
        .routes(routes!(subscriptions::create_subscription, subscriptions::list_subscriptions))
        .routes(routes!(
            subscriptions::get_subscription,
            subscriptions::change_subscription,
            subscriptions::delete_subscription
        ))
        .routes(routes!(subscription_state::pause_subscription))
        .routes(routes!(subscription_state::resume_subscription))
        .routes(routes!(subscription_state::disable_subscription))
        .routes(routes!(subscription_state::enable_subscription))
        .routes(routes!(subscription_state::rotate_secret))
        .routes(routes!(test_event::send_test_event))
        .routes(routes!(pending_retries::list_pending_retries))
        .routes(routes!(pending_retries::make_retries_now))
        .routes(routes!(pending_retries::cancel_retries))
        .routes(routes!(deliveries::list_deliveries))
        .routes(routes!(deliveries::count_deliveries))
        .routes(routes!(dead_letters::list_dead_letters))
        .routes(routes!(dead_letters::get_dead_letter))
        .routes(routes!(dead_letters::replay_dead_letter))
        .routes(routes!(dead_letters::replay_dead_letters))
        .routes(routes!(dead_letters::count_dead_letters))
        .routes(routes!(dead_letters::replay_matching_dead_letters))
}

async fn serve_description(json: Arc<str>) -> Response {
    let mut response = json.to_string().into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Ends requests that take too long, and counts all of them.
async fn bounded_and_measured(deadline: Duration, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let method = method_label(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let response = match timeout(deadline, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Refusal::Unavailable("the request took too long".into()).into_response(),
    };
    metrics::request(route, method, response.status().as_u16(), started.elapsed());
    response
}

/// A closed set, so that no client can make up label values.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}
