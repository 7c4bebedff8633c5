//! A client of the control plane's REST API, as far as a demo and tests need it.

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;
use std::time::Duration;
use thiserror::Error;

/// Longest time for one request and its response.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Largest response that is read, in bytes: a page of dead letters with events of ordinary size.
const MAX_RESPONSE_BYTES: usize = 32 * 1024 * 1024;
/// Items of a list asked for at a time: as many as the control plane gives.
const PAGE: u32 = 500;
/// Most of an error's body that is shown, in bytes.
const SHOWN_BYTES: usize = 1000;

/// Why a call failed.
#[derive(Debug, Error)]
pub enum AdminError {
    /// URL or key cannot be used in a request.
    #[error("not usable in a request: {0}")]
    Request(#[from] http::Error),
    /// The key cannot be used in a header.
    #[error("the admin key has characters that a header cannot hold")]
    Key,
    /// No response.
    #[error("no answer from {url}: {reason}")]
    Unreachable {
        /// What was asked.
        url: String,
        /// Why there is none.
        reason: String,
    },
    /// An answer other than 2xx.
    #[error("{method} {url} was answered {status}: {body}")]
    Refused {
        /// Method of the request.
        method: Method,
        /// What was asked.
        url: String,
        /// Status of the answer.
        status: StatusCode,
        /// Start of its body.
        body: String,
    },
    /// A 2xx with something unexpected in it.
    #[error("the answer of {url} is not understood: {reason}")]
    Unexpected {
        /// What was asked.
        url: String,
        /// What is wrong.
        reason: serde_json::Error,
    },
}

/// The client; clones share its connections.
#[derive(Clone)]
pub struct AdminClient {
    base: String,
    authorization: Option<HeaderValue>,
    http: Client<HttpConnector, Full<Bytes>>,
}

/// An API key, as told once.
#[derive(Debug, Clone, Deserialize)]
pub struct ApiKey {
    /// Its id, which is the default `source` of events.
    pub id: String,
    /// The key itself.
    pub key: String,
}

/// What a new subscription is to be.
#[derive(Debug, Clone, Default, Serialize)]
pub struct NewSubscription {
    /// Name for people.
    pub name: String,
    /// Where webhooks go.
    pub url: String,
    /// Patterns of event types.
    pub types: Vec<String>,
    /// Schedule of retries; the server's default if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryPolicy>,
    /// `counters` or `all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history: Option<&'static str>,
    /// Longest time for one attempt, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u32>,
    /// Where webhooks go while the endpoint does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fallback_url: Option<String>,
    /// When an endpoint that does not answer gets no requests; the server's default if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breaker: Option<Breaker>,
}

/// When an endpoint that does not answer gets no requests.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Breaker {
    /// Failures in a row after which it gets none.
    pub failures: u32,
    /// First pause before it is asked again, in milliseconds.
    pub pause_ms: u32,
    /// Longest pause, in milliseconds.
    pub max_pause_ms: u32,
}

/// When failed deliveries are tried again.
#[derive(Debug, Clone, Serialize)]
pub struct RetryPolicy {
    /// Wait before each retry, in seconds.
    pub delays_seconds: Vec<f64>,
    /// Spread of each wait, as a share of it.
    pub jitter: f64,
    /// Age at which a delivery is given up, in seconds.
    pub max_age_seconds: f64,
}

/// A subscription, as told once, with its secret.
#[derive(Debug, Clone, Deserialize)]
pub struct Subscription {
    /// Its id.
    pub id: String,
    /// Its signing secret: `whsec_…`.
    pub secret: String,
}

/// Outcomes of one subscription, counted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// The subscription's id.
    pub subscription: String,
    /// Deliveries that succeeded.
    pub delivered: u64,
    /// Attempts that failed and are tried again.
    pub retry: u64,
    /// Attempts put off because the endpoint was busy or its circuit open.
    pub deferred: u64,
    /// Deliveries that were given up.
    pub dead: u64,
    /// Deliveries given up because the endpoint answered 410.
    pub disable: u64,
}

/// One dead letter of a list.
#[derive(Debug, Clone, Deserialize)]
pub struct DeadLetter {
    /// Its id.
    pub id: String,
    /// Id of the event that was given up.
    pub event_id: String,
}

/// What became of one attempt, as the history has it.
#[derive(Debug, Clone, Deserialize)]
pub struct Delivery {
    /// Id of the event.
    pub event_id: String,
    /// `fallback` when the attempt was made at the endpoint that stands in.
    pub via: Option<String>,
}

#[derive(Deserialize)]
struct Page<T> {
    items: Vec<T>,
    next_cursor: Option<String>,
}

#[derive(Deserialize)]
struct Created {
    id: String,
}

impl AdminClient {
    /// A client of the server at `base` (`http://host:port`); without a key for what needs none.
    pub fn new(base: &str, key: Option<&str>) -> Result<Self, AdminError> {
        let bearer = |key| HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| AdminError::Key);
        let mut authorization = key.map(bearer).transpose()?;
        if let Some(header) = &mut authorization {
            header.set_sensitive(true);
        }
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let http = Client::builder(TokioExecutor::new()).build(connector);
        Ok(Self { base: base.trim_end_matches('/').to_owned(), authorization, http })
    }

    /// Creates a tenant; returns its id.
    pub async fn create_tenant(&self, name: &str) -> Result<String, AdminError> {
        let tenant: Created = self.post("/v1/tenants", &json!({ "name": name })).await?;
        Ok(tenant.id)
    }

    /// Creates an API key of a tenant.
    pub async fn create_api_key(&self, tenant: &str, name: &str) -> Result<ApiKey, AdminError> {
        self.post(&format!("/v1/tenants/{tenant}/api-keys"), &json!({ "name": name })).await
    }

    /// Creates a subscription of a tenant.
    pub async fn create_subscription(
        &self,
        tenant: &str,
        subscription: &NewSubscription,
    ) -> Result<Subscription, AdminError> {
        self.post(&format!("/v1/tenants/{tenant}/subscriptions"), subscription).await
    }

    /// Deletes a subscription of a tenant.
    pub async fn delete_subscription(&self, tenant: &str, subscription: &str) -> Result<(), AdminError> {
        let path = format!("/v1/tenants/{tenant}/subscriptions/{subscription}");
        self.call(Method::DELETE, &path, Bytes::new()).await.map(drop)
    }

    /// Outcomes of a tenant's subscriptions.
    pub async fn counts(&self, tenant: &str) -> Result<Vec<Counts>, AdminError> {
        #[derive(Deserialize)]
        struct Items {
            items: Vec<Counts>,
        }
        let answer: Items = self.get(&format!("/v1/tenants/{tenant}/counts")).await?;
        Ok(answer.items)
    }

    /// Dead letters of a subscription, all pages, at most `limit`.
    pub async fn dead_letters(
        &self,
        tenant: &str,
        subscription: &str,
        limit: usize,
    ) -> Result<Vec<DeadLetter>, AdminError> {
        let filter = format!("/v1/tenants/{tenant}/dead-letters?subscription={subscription}");
        self.all_pages(&filter, limit).await
    }

    /// Deliveries to a subscription that the endpoint took, all pages, at most `limit`.
    pub async fn delivered(
        &self,
        tenant: &str,
        subscription: &str,
        limit: usize,
    ) -> Result<Vec<Delivery>, AdminError> {
        let filter = format!("/v1/tenants/{tenant}/deliveries?subscription={subscription}&status=delivered");
        self.all_pages(&filter, limit).await
    }

    /// A list, page by page, until there are no more or `limit` is reached.
    async fn all_pages<T: DeserializeOwned>(&self, filter: &str, limit: usize) -> Result<Vec<T>, AdminError> {
        let first = format!("{filter}&limit={PAGE}");
        let (mut items, mut path) = (Vec::new(), first.clone());
        loop {
            let page: Page<T> = self.get(&path).await?;
            items.extend(page.items);
            match page.next_cursor {
                Some(cursor) if items.len() < limit => path = format!("{first}&cursor={}", in_query(&cursor)),
                _ => return Ok(items),
            }
        }
    }

    /// GET of any path, for what has no method here.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AdminError> {
        let body = self.call(Method::GET, path, Bytes::new()).await?;
        self.parse(path, &body)
    }

    /// POST of any path, for what has no method here.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        value: &impl Serialize,
    ) -> Result<T, AdminError> {
        let json = serde_json::to_vec(value).map_err(|reason| self.unexpected(path, reason))?;
        let body = self.call(Method::POST, path, json.into()).await?;
        self.parse(path, &body)
    }

    /// One request; its response's body if the status is 2xx.
    pub async fn call(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, AdminError> {
        let url = format!("{}{path}", self.base);
        let mut request = Request::builder().method(method.clone()).uri(&url);
        if let Some(authorization) = &self.authorization {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request.body(Full::new(body))?;
        let exchange = tokio::time::timeout(TIMEOUT, self.exchange(request)).await;
        let exchange = exchange.unwrap_or_else(|_| Err(format!("none within {} s", TIMEOUT.as_secs())));
        let (status, body) =
            exchange.map_err(|reason| AdminError::Unreachable { url: url.clone(), reason })?;
        if status.is_success() {
            return Ok(body);
        }
        let shown = String::from_utf8_lossy(&body[..body.len().min(SHOWN_BYTES)]).into_owned();
        Err(AdminError::Refused { method, url, status, body: shown })
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), String> {
        let response = self.http.request(request).await.map_err(|error| with_sources(&error))?;
        let (head, body) = response.into_parts();
        let body =
            Limited::new(body, MAX_RESPONSE_BYTES).collect().await.map_err(|error| error.to_string())?;
        Ok((head.status, body.to_bytes()))
    }

    fn parse<T: DeserializeOwned>(&self, path: &str, body: &[u8]) -> Result<T, AdminError> {
        serde_json::from_slice(body).map_err(|reason| self.unexpected(path, reason))
    }

    fn unexpected(&self, path: &str, reason: serde_json::Error) -> AdminError {
        AdminError::Unexpected { url: format!("{}{path}", self.base), reason }
    }
}

/// The legacy client's own message is only "client error (Connect)"; the reason is in its sources.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    text
}

/// A value of a query, percent-encoded.
fn in_query(value: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    value
        .bytes()
        .map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
