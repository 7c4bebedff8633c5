//! Signing secrets: made here, shown once, sealed before they are stored.

use crate::error::Refusal;
use base64::{Engine, engine::general_purpose::STANDARD};
use floodway_schemas::{
    UnixMillis,
    config::{
        ED25519_PUBLIC_PREFIX, ED25519_SECRET_PREFIX, HMAC_SECRET_PREFIX, SignatureScheme, SigningSecret,
    },
    ids::SubscriptionId,
    seal::{NONCE_BYTES, SealingKeys},
};
use ring::signature::{Ed25519KeyPair, KeyPair};
use secrecy::{ExposeSecret, SecretString};
use std::time::Duration;

/// Bytes of randomness in a secret; Standard Webhooks asks for 24 to 64.
const SECRET_BYTES: usize = 32;
/// Most secrets of one subscription: each signs every delivery.
const MAX_SECRETS: usize = 3;
/// Longest time that a replaced secret goes on signing.
pub(crate) const MAX_OVERLAP: Duration = Duration::from_secs(7 * 86_400);

/// A new secret: the text to show once, and its sealed form.
pub(crate) struct NewSecret {
    text: SecretString,
    sealed: SigningSecret,
}

impl NewSecret {
    /// Makes a secret for a subscription from fresh random bytes.
    pub(crate) fn make(
        sealing: &SealingKeys,
        subscription: SubscriptionId,
        scheme: SignatureScheme,
    ) -> Result<Self, Refusal> {
        let random: [u8; SECRET_BYTES] = rand::random();
        let nonce: [u8; NONCE_BYTES] = rand::random();
        let (text, public_key) = match scheme {
            SignatureScheme::V1 => (format!("{HMAC_SECRET_PREFIX}{}", STANDARD.encode(random)), None),
            SignatureScheme::V1a => {
                let pair = Ed25519KeyPair::from_seed_unchecked(&random).map_err(|error| {
                    tracing::error!(%error, "a signing key could not be made");
                    Refusal::Internal
                })?;
                let public = pair.public_key().as_ref();
                let secret = STANDARD.encode([&random, public].concat());
                let public_key = format!("{ED25519_PUBLIC_PREFIX}{}", STANDARD.encode(public));
                (format!("{ED25519_SECRET_PREFIX}{secret}"), Some(public_key))
            }
        };
        let text = SecretString::from(text);
        let sealed = sealing.seal(&text, &subscription.to_string(), nonce).map_err(|error| {
            tracing::error!(%error, "a signing secret could not be sealed");
            Refusal::Internal
        })?;
        Ok(Self { text, sealed: SigningSecret { sealed, public_key, expires_at: None } })
    }

    /// The text to show, which is what verifies, and the sealed form to store. An asymmetric secret is nobody's but Floodway's:
    /// its public key verifies.
    pub(crate) fn into_parts(self) -> (String, SigningSecret) {
        let shown = self.sealed.public_key.clone();
        (shown.unwrap_or_else(|| self.text.expose_secret().to_owned()), self.sealed)
    }
}

/// The secrets after a rotation, newest first. The others sign until `overlap` has passed, or their own end if that is
/// earlier; what has ended or is too many is left out.
pub(crate) fn rotated(
    newest: SigningSecret,
    others: Vec<SigningSecret>,
    now: UnixMillis,
    overlap: Duration,
) -> Vec<SigningSecret> {
    let end = now.plus(overlap);
    let others = others.into_iter().filter_map(|secret| {
        let expires_at = secret.expires_at.map_or(end, |own| own.min(end));
        (expires_at > now).then_some(SigningSecret { expires_at: Some(expires_at), ..secret })
    });
    std::iter::once(newest).chain(others).take(MAX_SECRETS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use floodway_schemas::seal::Sealed;

    fn secret(name: &str, expires_at: Option<i64>) -> SigningSecret {
        SigningSecret {
            sealed: Sealed(name.to_owned()),
            public_key: None,
            expires_at: expires_at.map(UnixMillis),
        }
    }

    fn after(others: Vec<SigningSecret>, overlap_ms: u64) -> Vec<(String, Option<i64>)> {
        rotated(secret("new", None), others, UnixMillis(1_000), Duration::from_millis(overlap_ms))
            .into_iter()
            .map(|secret| (secret.sealed.0, secret.expires_at.map(|at| at.0)))
            .collect()
    }

    #[test]
    fn the_replaced_secret_signs_until_the_overlap_ends() {
        let expected = vec![("new".to_owned(), None), ("old".to_owned(), Some(1_500))];
        assert_eq!(after(vec![secret("old", None)], 500), expected);
    }

    #[test]
    fn without_overlap_only_the_new_secret_is_left() {
        assert_eq!(after(vec![secret("old", None), secret("older", Some(9_000))], 0).len(), 1);
    }

    #[test]
    fn ended_and_surplus_secrets_are_left_out() {
        let others = vec![
            secret("b", None),
            secret("gone", Some(900)),
            secret("c", Some(1_100)),
            secret("d", Some(1_050)),
        ];
        let names: Vec<String> = after(others, 500).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["new", "b", "c"]);
    }

    #[test]
    fn an_asymmetric_secret_is_sealed_and_its_public_key_is_what_is_shown() {
        let keys = SealingKeys::parse(&floodway_runtime::testing::SEALING_KEY.to_owned().into()).unwrap();
        let id = SubscriptionId(uuid::Uuid::nil());
        let (shown, sealed) = NewSecret::make(&keys, id, SignatureScheme::V1a).unwrap().into_parts();
        assert_eq!(sealed.public_key.as_deref(), Some(shown.as_str()));
        let text = keys.open(&sealed.sealed, &id.to_string()).unwrap();
        let secret = STANDARD.decode(text.expose_secret().strip_prefix("whsk_").unwrap()).unwrap();
        assert_eq!(STANDARD.encode(&secret[32..]), shown.strip_prefix("whpk_").unwrap());
        assert!(Ed25519KeyPair::from_seed_and_public_key(&secret[..32], &secret[32..]).is_ok());
    }
}
