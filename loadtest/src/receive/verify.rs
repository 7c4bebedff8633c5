//! Signatures, checked with the Standard Webhooks project's own library: independent of the code that signs.
//!
//! That library reads the clock itself and allows five minutes of difference. It checks `v1` (HMAC-SHA256) over
//! UTF-8 bodies only, so a binary body counts as [`Refusal::NotText`].

use http::HeaderMap;
use serde::Serialize;
use standardwebhooks::{Webhook, WebhookError};
use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

/// What the check of one request said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// No secret is known for the path.
    NotChecked,
    /// Signed with one of the path's secrets, and recently.
    Valid,
    /// Refused.
    Invalid(Refusal),
}

/// Why a signature was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// A `webhook-*` header is absent or unreadable.
    Header,
    /// The timestamp is more than five minutes away.
    Timestamp,
    /// No signature matches.
    Signature,
    /// The body is not UTF-8.
    NotText,
}

/// The secrets of the receiver's paths; they may change while it serves.
#[derive(Default)]
pub struct Secrets(RwLock<HashMap<String, Arc<[Webhook]>>>);

/// A secret that is not base64, with or without its `whsec_` prefix.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the secret of {path} is not \"whsec_\" and base64")]
pub struct InvalidSecret {
    path: String,
}

impl Secrets {
    /// Requires signatures on a path from now on; any of the secrets may have signed, as during a rotation.
    /// An empty list ends the check.
    pub fn set<S: AsRef<str>>(&self, path: &str, secrets: &[S]) -> Result<(), InvalidSecret> {
        let webhooks = secrets
            .iter()
            .map(|secret| Webhook::new(secret.as_ref()))
            .collect::<Result<Arc<[Webhook]>, _>>()
            .map_err(|_| InvalidSecret { path: path.to_owned() })?;
        let mut by_path = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if webhooks.is_empty() {
            by_path.remove(path);
        } else {
            by_path.insert(path.to_owned(), webhooks);
        }
        Ok(())
    }

    /// Checks one request.
    pub fn verify(&self, path: &str, headers: &HeaderMap, body: &[u8]) -> Verdict {
        let webhooks = {
            let by_path = self.0.read().unwrap_or_else(PoisonError::into_inner);
            let Some(webhooks) = by_path.get(path) else { return Verdict::NotChecked };
            Arc::clone(webhooks)
        };
        let mut refusal = Refusal::Signature;
        for webhook in webhooks.iter() {
            match webhook.verify(body, headers) {
                Ok(()) => return Verdict::Valid,
                Err(error) => refusal = classify(&error),
            }
        }
        Verdict::Invalid(refusal)
    }
}

fn classify(error: &WebhookError) -> Refusal {
    match error {
        WebhookError::InvalidTimestamp
        | WebhookError::TimestampTooOldError
        | WebhookError::FutureTimestampError => Refusal::Timestamp,
        WebhookError::InvalidHeader(_) | WebhookError::MissingHeader(_) => Refusal::Header,
        WebhookError::InvalidPayload => Refusal::NotText,
        WebhookError::InvalidSignature | WebhookError::InvalidSecret(_) => Refusal::Signature,
    }
}
