//! The answer to a change: the entity, and where on the `config` topic the change is.

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

/// A changed entity.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Changed<T> {
    /// The entity after the change.
    #[serde(flatten)]
    pub(crate) entity: T,
    /// Offset in the `config` topic by which the change is there: a service that has read so far acts on it. Null, with
    /// status 202, when that took longer than the deadline; the change is stored and will be published.
    pub(crate) config_offset: Option<i64>,
}

/// A deleted entity.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Deleted {
    /// Always true.
    pub(crate) deleted: bool,
}

impl<T: Serialize> Changed<T> {
    /// The response: `status`, or 202 while the change is not published yet.
    pub(crate) fn into_response(self, status: StatusCode) -> Response {
        let status = if self.config_offset.is_some() { status } else { StatusCode::ACCEPTED };
        (status, Json(self)).into_response()
    }
}
