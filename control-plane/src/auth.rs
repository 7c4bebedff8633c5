//! The admin key: every route but the interface's own description asks for it.

use crate::error::Refusal;
use axum::{
    extract::{Request, State},
    http::header,
    middleware::Next,
    response::{IntoResponse, Response},
};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// SHA-256 of the admin key. Hashes have one length, so comparing them tells nothing of the key's.
#[derive(Clone)]
pub(crate) struct AdminKey([u8; 32]);

impl AdminKey {
    pub(crate) fn new(key: &SecretString) -> Self {
        Self(Sha256::digest(key.expose_secret().as_bytes()).into())
    }

    fn is(&self, presented: &[u8]) -> bool {
        let presented: [u8; 32] = Sha256::digest(presented).into();
        self.0.ct_eq(&presented).into()
    }
}

/// Lets a request with the admin key through.
pub(crate) async fn require_admin_key(State(key): State<AdminKey>, request: Request, next: Next) -> Response {
    let presented = request.headers().get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
    if presented.is_some_and(|presented| key.is(presented)) {
        next.run(request).await
    } else {
        Refusal::Unauthorized.into_response()
    }
}

/// The credentials of `Bearer <credentials>`; the scheme's case does not matter.
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (scheme, credentials) = header.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| credentials.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_itself_is_accepted() {
        let key = AdminKey::new(&"correct horse battery".into());
        assert!(key.is(b"correct horse battery"));
        for wrong in [&b""[..], b"correct", b"correct horse battery ", b"Correct horse battery"] {
            assert!(!key.is(wrong));
        }
    }

    #[test]
    fn credentials_follow_the_scheme() {
        assert_eq!(bearer(b"Bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"bearer  abc "), Some(&b"abc"[..]));
        assert_eq!(bearer(b"Basic abc"), None);
        assert_eq!(bearer(b"Bear"), None);
    }
}
