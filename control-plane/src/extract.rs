//! What handlers take from a request, refused with problem documents.

use crate::error::Refusal;
use axum::{
    Json,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{header, request::Parts},
};
use floodway_schemas::UnixMillis;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use std::time::Duration;
use tokio::time::timeout;

/// Longest wait for a body.
pub(crate) const BODY_DEADLINE: Duration = Duration::from_secs(10);

/// A JSON body. Unknown fields are the type's to refuse.
pub(crate) struct Body<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let body = timeout(BODY_DEADLINE, Json::from_request(request, state)).await;
        let Json(body) =
            body.map_err(|_| Refusal::Invalid("the body did not arrive in time".to_owned()))??;
        Ok(Self(body))
    }
}

/// A JSON body that may be left out, together with its content type: the default then.
pub(crate) struct OptionalBody<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Default> FromRequest<S> for OptionalBody<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let headers = request.headers();
        let has_type = headers.contains_key(header::CONTENT_TYPE);
        let has_body = headers.contains_key(header::TRANSFER_ENCODING)
            || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0");
        if !has_type && !has_body {
            return Ok(Self(T::default()));
        }
        Body::from_request(request, state).await.map(|Body(body)| Self(body))
    }
}

/// Ids in the path. Text that is no id names nothing that exists, hence 404.
pub(crate) struct Ids<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Ids<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(ids)) => Ok(Self(ids)),
            Err(_) => Err(Refusal::NotFound("id".into())),
        }
    }
}

/// The query string. Unknown parameters are the type's to refuse.
pub(crate) struct Parameters<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Parameters<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(parameters)) => Ok(Self(parameters)),
            Err(rejection) => Err(Refusal::Invalid(
                std::error::Error::source(&rejection)
                    .map_or_else(|| rejection.body_text(), ToString::to_string),
            )),
        }
    }
}

/// An instant as clients write and read it: RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timestamp(pub(crate) UnixMillis);

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0.to_rfc3339())
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        UnixMillis::parse_rfc3339(&text).map(Self).ok_or_else(|| {
            serde::de::Error::custom("expected an RFC 3339 timestamp such as 2026-11-21T15:34:00Z")
        })
    }
}

/// Longest name of anything, in characters.
const MAX_NAME_CHARS: usize = 200;

/// A name for people: 1 to 200 characters, none of them a control character.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Name(pub(crate) String);

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let sized = (1..=MAX_NAME_CHARS).contains(&text.chars().count());
        if sized && !text.chars().any(char::is_control) && !text.trim().is_empty() {
            Ok(Self(text))
        } else {
            Err(format!("a name is 1 to {MAX_NAME_CHARS} characters without control characters"))
        }
    }
}

/// For fields of a change where `null` means something: absent is `None`, `null` is `Some(None)`.
pub(crate) fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bounded_and_printable() {
        for good in ["a", "Zürich & Söhne", &"x".repeat(200)] {
            assert!(Name::try_from(good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["", "  ", "a\nb", "a\u{7f}", &"x".repeat(201)] {
            assert!(Name::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn absent_and_null_differ() {
        #[derive(Deserialize)]
        struct Change {
            #[serde(default, deserialize_with = "present")]
            rate: Option<Option<u32>>,
        }
        let rate = |json: &str| serde_json::from_str::<Change>(json).unwrap().rate;
        assert_eq!(
            (rate("{}"), rate(r#"{"rate":null}"#), rate(r#"{"rate":1}"#)),
            (None, Some(None), Some(Some(1)))
        );
    }
}
