//! The interface's description, made from the handlers themselves.

use crate::{
    error::Refusal,
    pending_retries::{CommandRequested, PendingCount},
};
use serde::Serialize;
use utoipa::{
    IntoResponses, Modify, OpenApi, ToSchema,
    openapi::{
        self,
        security::{Http, HttpAuthScheme, SecurityScheme},
    },
};

/// What the routes have in common.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Floodway control plane",
        description = "Tenants, keys, subscriptions, history and replays. Every change is answered once it is on the \
                       `config` topic, with its offset there.",
        version = "1",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(ProblemDocument, PendingCount, CommandRequested)),
    modifiers(&AdminKeyScheme),
    security(("admin_key" = [])),
    tags(
        (name = "tenants"),
        (name = "api keys"),
        (name = "subscriptions"),
        (name = "retries"),
        (name = "history"),
        (name = "dead letters"),
    )
)]
pub(crate) struct Description;

struct AdminKeyScheme;

impl Modify for AdminKeyScheme {
    fn modify(&self, description: &mut openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        description.components.get_or_insert_default().add_security_scheme("admin_key", scheme);
    }
}

/// A problem document (RFC 9457), as every error is answered.
#[derive(Serialize, ToSchema)]
pub(crate) struct ProblemDocument {
    /// The kind of problem, for programs: `urn:floodway:problem:<name>`.
    #[serde(rename = "type")]
    kind: String,
    /// Short summary of the kind.
    title: String,
    /// HTTP status.
    status: u16,
    /// What happened this time, for people.
    detail: Option<String>,
}

/// The errors that a route may answer with.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "only describes responses")]
pub(crate) enum Problems {
    /// The request is malformed or out of bounds.
    #[response(status = 400, content_type = "application/problem+json")]
    Invalid(ProblemDocument),
    /// The admin key is missing or wrong.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthorized(ProblemDocument),
    /// There is no such thing.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(ProblemDocument),
    /// The path has no such method: the answer to any that is not described here.
    #[response(status = 405, content_type = "application/problem+json")]
    NoMethod(ProblemDocument),
    /// The present state does not allow this.
    #[response(status = 409, content_type = "application/problem+json")]
    Conflict(ProblemDocument),
    /// The body is too large.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(ProblemDocument),
    /// The body is not JSON by its content type.
    #[response(status = 415, content_type = "application/problem+json")]
    NotJson(ProblemDocument),
    /// A bug: the reason is in the control plane's log.
    #[response(status = 500, content_type = "application/problem+json")]
    Internal(ProblemDocument),
    /// The database or Kafka does not answer: try again.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(ProblemDocument),
}

/// The description as JSON text, with a final newline: what is served, and what `docs/openapi.json` holds.
pub(crate) fn to_json(description: &openapi::OpenApi) -> Result<String, Refusal> {
    let mut text = description.to_pretty_json().map_err(|_| Refusal::Internal)?;
    text.push('\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use std::path::Path;

    /// Set this variable to write the file anew: `FLOODWAY_UPDATE_OPENAPI=1 cargo test -p floodway-control-plane openapi`.
    const UPDATE: &str = "FLOODWAY_UPDATE_OPENAPI";

    #[test]
    fn every_reference_leads_somewhere_and_every_response_is_described() {
        let description = serde_json::to_value(crate::routes::description()).unwrap();
        check(&description, &description);
        let operations =
            description["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap());
        for (_, operation) in operations {
            for (status, response) in operation["responses"].as_object().unwrap() {
                let told = response["description"].as_str().is_some_and(|text| !text.is_empty());
                assert!(told, "{} {status}", operation["operationId"]);
            }
        }
    }

    fn check(root: &Value, part: &Value) {
        match part {
            Value::Object(members) => {
                if let Some(Value::String(reference)) = members.get("$ref") {
                    let path = reference.strip_prefix('#').unwrap();
                    assert!(root.pointer(path).is_some(), "{reference} leads nowhere");
                }
                members.values().for_each(|member| check(root, member));
            }
            Value::Array(items) => items.iter().for_each(|item| check(root, item)),
            _ => {}
        }
    }

    #[test]
    fn the_checked_in_description_is_the_served_one() {
        let served = super::to_json(&crate::routes::description()).unwrap();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
        if std::env::var_os(UPDATE).is_some() {
            std::fs::write(&path, &served).unwrap();
        }
        let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            served == checked_in,
            "docs/openapi.json differs from the handlers; write it anew with\n  \
             {UPDATE}=1 cargo test -p floodway-control-plane openapi"
        );
    }
}
