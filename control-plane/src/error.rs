//! What can go wrong: at start, and while a request is answered. The one place that turns errors into problem documents.

use axum::{
    Json,
    extract::rejection::JsonRejection,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use floodway_schemas::problem::{PROBLEM_JSON, Problem};
use std::{borrow::Cow, io, net::SocketAddr};
use thiserror::Error;

/// Why the control plane could not be started or had to end.
#[derive(Debug, Error)]
pub enum Error {
    /// A setting is missing or out of bounds. Names it.
    #[error("setting {0}")]
    Setting(String),
    /// The address is taken or not this machine's.
    #[error(
        "setting control_plane.listen (FLOODWAY_CONTROL_PLANE__LISTEN): cannot listen on {address}: {reason}"
    )]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// The system's reason.
        reason: io::Error,
    },
    /// The topics are missing or would break a promise.
    #[error(transparent)]
    Topics(#[from] floodway_runtime::topics::TopicsError),
    /// A Kafka client refused its settings.
    #[error(transparent)]
    Kafka(#[from] floodway_runtime::kafka::KafkaError),
    /// The database's schema does not fit.
    #[error(transparent)]
    Store(#[from] floodway_store::Error),
}

/// Why a request was not answered as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The request is malformed or out of bounds: change it.
    Invalid(String),
    /// The admin key is missing or wrong.
    Unauthorized,
    /// There is no such thing.
    NotFound(Cow<'static, str>),
    /// There is no such route.
    NoRoute,
    /// The route has no such method.
    NoMethod,
    /// The thing is in a state that does not allow this.
    Conflict(String),
    /// There are as many as may be: use those that there are, or wait.
    TooMany(String),
    /// The body is larger than allowed.
    TooLarge,
    /// The body is not JSON by its content type.
    NotJson,
    /// Something that this depends on is down or slow: try again.
    Unavailable(Cow<'static, str>),
    /// A bug. The reason is in the log.
    Internal,
    /// Part of the request was done before this happened: what was done.
    Interrupted(Box<Self>, String),
}

impl Refusal {
    fn problem(self) -> Problem {
        match self {
            Self::Invalid(detail) => {
                Problem::new("urn:floodway:problem:invalid-request", "The request is invalid", 400)
                    .with_detail(detail)
            }
            Self::Unauthorized => {
                Problem::new("urn:floodway:problem:unauthorized", "The admin key is missing or wrong", 401)
                    .with_detail("send the header Authorization: Bearer <admin key>")
            }
            Self::NotFound(what) => {
                Problem::new("urn:floodway:problem:not-found", "There is no such thing", 404)
                    .with_detail(format!("there is no such {what}"))
            }
            Self::NoRoute => Problem::new("urn:floodway:problem:not-found", "There is no such thing", 404)
                .with_detail("there is no such route, see /v1/openapi.json"),
            Self::NoMethod => {
                Problem::new("urn:floodway:problem:method-not-allowed", "The route has no such method", 405)
                    .with_detail("see /v1/openapi.json")
            }
            Self::Conflict(detail) => {
                Problem::new("urn:floodway:problem:conflict", "The present state does not allow this", 409)
                    .with_detail(detail)
            }
            Self::TooMany(detail) => {
                Problem::new("urn:floodway:problem:too-many", "There are as many as may be", 429)
                    .with_detail(detail)
            }
            Self::TooLarge => {
                Problem::new("urn:floodway:problem:body-too-large", "The body is too large", 413)
            }
            Self::NotJson => Problem::new(
                "urn:floodway:problem:unsupported-media-type",
                "The body is not of a known type",
                415,
            )
            .with_detail("send JSON with the header Content-Type: application/json"),
            Self::Unavailable(detail) => {
                Problem::new("urn:floodway:problem:unavailable", "Not available now", 503).with_detail(detail)
            }
            Self::Internal => Problem::new("urn:floodway:problem:internal", "Internal error", 500)
                .with_detail("the reason is in the control plane's log"),
            Self::Interrupted(refusal, done) => {
                let problem = refusal.problem();
                let detail = match &problem.detail {
                    Some(detail) => format!("{detail}; {done}"),
                    None => done,
                };
                problem.with_detail(detail)
            }
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let problem = self.problem();
        let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(problem)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        match status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            _ => {}
        }
        response
    }
}

impl From<floodway_store::Error> for Refusal {
    fn from(error: floodway_store::Error) -> Self {
        use floodway_store::Error as Store;
        match error {
            Store::NotFound(what) => Self::NotFound(what.into()),
            Store::Conflict(detail) => Self::Conflict(detail),
            Store::Busy(reason) => {
                tracing::warn!(%reason, "the database is busy");
                Self::Unavailable("too many requests read or write at the same time".into())
            }
            Store::Unavailable(reason) => {
                tracing::warn!(%reason, "the database is unavailable");
                Self::Unavailable("the database does not answer".into())
            }
            Store::Schema(reason) => {
                tracing::error!(%reason, "the database schema does not fit");
                Self::Unavailable("the database has another schema than this version needs".into())
            }
            Store::Other(reason) => {
                tracing::error!(%reason, "database error");
                Self::Internal
            }
        }
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        match rejection {
            JsonRejection::MissingJsonContentType(_) => Self::NotJson,
            JsonRejection::BytesRejection(bytes) if bytes.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Self::TooLarge
            }
            other => {
                // What serde says, without axum's preamble: it names the field.
                let text =
                    std::error::Error::source(&other).map_or_else(|| other.body_text(), ToString::to_string);
                Self::Invalid(text)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_a_client_or_server_error_status_and_a_name() {
        let all = [
            Refusal::Invalid(String::new()),
            Refusal::Unauthorized,
            Refusal::NotFound("tenant".into()),
            Refusal::NoRoute,
            Refusal::NoMethod,
            Refusal::Conflict(String::new()),
            Refusal::TooLarge,
            Refusal::NotJson,
            Refusal::Unavailable("".into()),
            Refusal::Internal,
            Refusal::Interrupted(Box::new(Refusal::Internal), String::new()),
        ];
        for refusal in all {
            let problem = refusal.clone().problem();
            assert!(problem.kind.starts_with("urn:floodway:problem:"));
            assert_eq!(refusal.into_response().status().as_u16(), problem.status);
            assert!((400..600).contains(&problem.status));
        }
    }
}
