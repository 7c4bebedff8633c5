//! Signatures after Standard Webhooks over `id.timestamp.body`: `v1,<base64 of HMAC-SHA256>` and `v1a,<base64 of Ed25519>`.

use base64::{Engine, engine::general_purpose::STANDARD};
use floodway_schemas::{
    UnixMillis,
    config::{ED25519_SECRET_PREFIX, HMAC_SECRET_PREFIX, Subscription},
    seal::SealingKeys,
};
use hmac::{Hmac, KeyInit, Mac};
use ring::signature::{ED25519_PUBLIC_KEY_LEN, Ed25519KeyPair};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use std::fmt;
use zeroize::Zeroizing;

/// Bytes of the seed of an Ed25519 key; its public key follows in a secret's text.
const SEED_BYTES: usize = 32;

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

/// One secret.
enum SigningKey {
    /// Its bytes, wiped when dropped.
    Hmac(Zeroizing<Vec<u8>>),
    /// The library keeps it; as it has no way to be wiped, it is not copied either.
    Ed25519(Box<Ed25519KeyPair>),
}

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
            secret.key.as_ref()?.sign(id, timestamp, body, &mut signatures)?;
        }
        (!signatures.is_empty()).then_some(signatures)
    }
}

impl SigningKey {
    /// Reads the text of a secret. One without a known prefix is taken for an HMAC secret.
    fn parse(text: &SecretString) -> Option<Self> {
        let text = text.expose_secret();
        if let Some(encoded) = text.strip_prefix(ED25519_SECRET_PREFIX) {
            let bytes = Zeroizing::new(STANDARD.decode(encoded).ok()?);
            let (seed, public) = bytes.split_at_checked(SEED_BYTES)?;
            if public.len() != ED25519_PUBLIC_KEY_LEN {
                return None;
            }
            let pair = Ed25519KeyPair::from_seed_and_public_key(seed, public).ok()?;
            return Some(Self::Ed25519(Box::new(pair)));
        }
        let encoded = text.strip_prefix(HMAC_SECRET_PREFIX).unwrap_or(text);
        STANDARD.decode(encoded).ok().map(|bytes| Self::Hmac(Zeroizing::new(bytes)))
    }

    /// Appends the signature with its scheme.
    fn sign(&self, id: &str, timestamp: i64, body: &[u8], out: &mut String) -> Option<()> {
        match self {
            Self::Hmac(key) => {
                // HMAC takes keys of any length.
                let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
                mac.update(id.as_bytes());
                mac.update(format!(".{timestamp}.").as_bytes());
                mac.update(body);
                out.push_str("v1,");
                STANDARD.encode_string(mac.finalize().into_bytes(), out);
            }
            Self::Ed25519(pair) => {
                // The scheme reads the message twice, so it has to be in one piece.
                let mut message = format!("{id}.{timestamp}.").into_bytes();
                message.extend_from_slice(body);
                out.push_str("v1a,");
                STANDARD.encode_string(pair.sign(&message), out);
            }
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const ED25519: &str =
        "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg==";

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
    fn the_asymmetric_signature_is_the_one_of_the_published_vector() {
        let expected =
            "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg==";
        assert_eq!(sign(&keys(&[(ED25519, None)]), 0).as_deref(), Some(expected));
        let changing = keys(&[(ED25519, None), (SECRET, Some(1_000))]);
        let both = format!("{expected} v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert_eq!(sign(&changing, 999), Some(both));
        assert_eq!(sign(&changing, 1_000).as_deref(), Some(expected));
    }

    #[test]
    fn an_asymmetric_secret_must_be_a_seed_and_its_public_key() {
        let mismatched = format!("{}A{}", &ED25519[..60], &ED25519[61..]);
        for text in ["whsk_", "whsk_AAAA", "whsk_%", &ED25519[..50], &mismatched] {
            assert_eq!(sign(&keys(&[(text, None)]), 0), None, "{text}");
        }
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
