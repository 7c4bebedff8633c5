//! Signatures after Standard Webhooks: `v1,<base64 of HMAC-SHA256 over id.timestamp.body>`.

use base64::{Engine, engine::general_purpose::STANDARD};
use floodway_schemas::{UnixMillis, config::Subscription, seal::SealingKeys};
use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use std::fmt;
use zeroize::Zeroizing;

/// What the text of a secret starts with.
const SECRET_PREFIX: &str = "whsec_";

/// The secrets of a subscription, opened once when its configuration arrives.
#[derive(Debug)]
pub(crate) struct SigningKeys(Vec<Expiring>);

#[derive(Debug)]
struct Expiring {
    /// After this instant the key signs no more.
    until: Option<UnixMillis>,
    /// `None` when the sealed secret did not open.
    key: Option<SigningKey>,
}

/// The bytes of one secret, wiped when dropped.
struct SigningKey(Zeroizing<Vec<u8>>);

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey")
    }
}

impl SigningKeys {
    /// Opens a subscription's secrets. One that does not open is remembered as such.
    pub(crate) fn open(subscription: &Subscription, sealing: &SealingKeys) -> Self {
        let context = subscription.id.to_string();
        let open = |secret: &floodway_schemas::config::SigningSecret| {
            let key = sealing.open(&secret.sealed, &context).ok().and_then(|text| SigningKey::parse(&text));
            if key.is_none() {
                tracing::warn!(subscription = %subscription.id, "a signing secret of this subscription does not open");
            }
            Expiring { until: secret.expires_at, key }
        };
        Self(subscription.secrets.iter().map(open).collect())
    }

    /// The value of `webhook-signature`: a signature per unexpired secret, separated by spaces. `None` when there is no secret
    /// or one does not open: signing with the others alone could satisfy no receiver that knows only that one.
    pub(crate) fn sign(&self, id: &str, timestamp: i64, body: &[u8], now: UnixMillis) -> Option<String> {
        let mut signatures = String::new();
        for secret in self.0.iter().filter(|secret| secret.until.is_none_or(|until| now < until)) {
            if !signatures.is_empty() {
                signatures.push(' ');
            }
            signatures.push_str("v1,");
            STANDARD.encode_string(secret.key.as_ref()?.mac(id, timestamp, body)?, &mut signatures);
        }
        (!signatures.is_empty()).then_some(signatures)
    }
}

impl SigningKey {
    fn parse(text: &SecretString) -> Option<Self> {
        let text = text.expose_secret();
        let encoded = text.strip_prefix(SECRET_PREFIX).unwrap_or(text);
        STANDARD.decode(encoded).ok().map(|bytes| Self(Zeroizing::new(bytes)))
    }

    fn mac(&self, id: &str, timestamp: i64, body: &[u8]) -> Option<[u8; 32]> {
        // HMAC takes keys of any length.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        mac.update(id.as_bytes());
        mac.update(format!(".{timestamp}.").as_bytes());
        mac.update(body);
        Some(mac.finalize().into_bytes().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

    fn keys(secrets: &[(&str, Option<i64>)]) -> SigningKeys {
        let expiring = |&(text, until): &(&str, Option<i64>)| Expiring {
            until: until.map(UnixMillis),
            key: SigningKey::parse(&text.to_owned().into()),
        };
        SigningKeys(secrets.iter().map(expiring).collect())
    }

    fn sign(keys: &SigningKeys, now: i64) -> Option<String> {
        keys.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b"{\"test\": 2432232314}", UnixMillis(now))
    }

    #[test]
    fn the_signature_is_the_one_of_the_published_vector() {
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(sign(&keys(&[(SECRET, None)]), 0).as_deref(), Some(expected));
    }

    #[test]
    fn every_unexpired_secret_signs() {
        let other = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
        let rotating = keys(&[(other, None), (SECRET, Some(1_000))]);
        let both = sign(&rotating, 999).unwrap();
        assert_eq!(both.split(' ').count(), 2);
        assert!(both.ends_with("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="));
        assert_eq!(sign(&rotating, 1_000).unwrap().split(' ').count(), 1);
    }

    #[test]
    fn a_secret_that_does_not_open_signs_nothing() {
        assert_eq!(sign(&keys(&[]), 0), None);
        assert_eq!(sign(&keys(&[(SECRET, None), ("whsec_%%%", None)]), 0), None);
        assert!(sign(&keys(&[(SECRET, None), ("whsec_%%%", Some(10))]), 10).is_some());
    }
}
