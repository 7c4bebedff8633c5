//! Secrets sealed at rest: AES-256-GCM with a key id, so that sealing keys can rotate.
//!
//! Text form: `fws1.<key id>.<base64url of nonce (12 bytes), ciphertext and tag (16 bytes)>`. The context (an entity's id) is
//! authenticated with it: a sealed secret copied to another entity does not open.

use aes_gcm::{
    Aes256Gcm, KeyInit,
    aead::{Aead, Payload},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use std::fmt;
use thiserror::Error;
use zeroize::Zeroizing;

const PREFIX: &str = "fws1";
/// Bytes of randomness that sealing needs.
pub const NONCE_BYTES: usize = 12;
const KEY_BYTES: usize = 32;

/// A sealed secret. Safe to store and to publish; useless without the sealing key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sealed(pub String);

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.0.split('.').nth(1).unwrap_or("?");
        write!(f, "Sealed({key})")
    }
}

/// Why a secret could not be sealed or opened.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SealError {
    /// The configured keys are not `<id>:<base64 of 32 bytes>`, separated by commas.
    #[error("sealing keys must be <id>:<base64 of 32 bytes>, separated by commas; the first one seals")]
    InvalidKeys,
    /// Not a sealed secret of this format.
    #[error("not a sealed secret")]
    Malformed,
    /// Sealed with a key that is not configured.
    #[error("sealed with key {0:?}, which is not configured")]
    UnknownKey(String),
    /// Changed, sealed for another entity, or sealed with another key of the same id.
    #[error("the sealed secret does not open with its key")]
    Rejected,
}

/// The sealing keys: the first seals, all of them open.
pub struct SealingKeys(Vec<SealingKey>);

struct SealingKey {
    id: String,
    cipher: Aes256Gcm,
}

impl fmt::Debug for SealingKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| &key.id)).finish()
    }
}

impl SealingKeys {
    /// No keys: for roles that neither seal nor open.
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// Parses `<id>:<base64 of 32 bytes>[,…]`.
    pub fn parse(text: &SecretString) -> Result<Self, SealError> {
        let keys: Vec<SealingKey> = text
            .expose_secret()
            .split(',')
            .map(|part| SealingKey::parse(part.trim()))
            .collect::<Result<_, _>>()?;
        Ok(Self(keys))
    }

    /// Seals `secret` for the entity named by `context`, with 12 fresh random bytes.
    pub fn seal(
        &self,
        secret: &SecretString,
        context: &str,
        nonce: [u8; NONCE_BYTES],
    ) -> Result<Sealed, SealError> {
        let key = self.0.first().ok_or(SealError::InvalidKeys)?;
        let payload = Payload { msg: secret.expose_secret().as_bytes(), aad: context.as_bytes() };
        let ciphertext = key.cipher.encrypt(&nonce.into(), payload).map_err(|_| SealError::Rejected)?;
        let bytes = [&nonce[..], &ciphertext].concat();
        Ok(Sealed(format!("{PREFIX}.{}.{}", key.id, URL_SAFE_NO_PAD.encode(bytes))))
    }

    /// Opens a secret sealed for the entity named by `context`.
    pub fn open(&self, sealed: &Sealed, context: &str) -> Result<SecretString, SealError> {
        let mut parts = sealed.0.splitn(3, '.');
        let (Some(PREFIX), Some(id), Some(body)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(SealError::Malformed);
        };
        let key =
            self.0.iter().find(|key| key.id == id).ok_or_else(|| SealError::UnknownKey(id.to_owned()))?;
        let bytes = URL_SAFE_NO_PAD.decode(body).map_err(|_| SealError::Malformed)?;
        let (nonce, ciphertext) = bytes.split_first_chunk::<NONCE_BYTES>().ok_or(SealError::Malformed)?;
        let payload = Payload { msg: ciphertext, aad: context.as_bytes() };
        let plain = key
            .cipher
            .decrypt(&(*nonce).into(), payload)
            .map(Zeroizing::new)
            .map_err(|_| SealError::Rejected)?;
        std::str::from_utf8(&plain).map(SecretString::from).map_err(|_| SealError::Malformed)
    }
}

impl SealingKey {
    fn parse(text: &str) -> Result<Self, SealError> {
        let (id, key) = text.split_once(':').ok_or(SealError::InvalidKeys)?;
        let named =
            (1..=32).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let key = Zeroizing::new(STANDARD.decode(key).map_err(|_| SealError::InvalidKeys)?);
        let key: &[u8; KEY_BYTES] = key.as_slice().try_into().map_err(|_| SealError::InvalidKeys)?;
        if !named {
            return Err(SealError::InvalidKeys);
        }
        Ok(Self { id: id.to_owned(), cipher: Aes256Gcm::new(key.into()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(text: &str) -> SealingKeys {
        SealingKeys::parse(&text.to_owned().into()).unwrap()
    }

    fn key(id: &str, byte: u8) -> String {
        format!("{id}:{}", STANDARD.encode([byte; 32]))
    }

    #[test]
    fn malformed_keys_are_refused() {
        for text in ["", "k1", "k1:short", ":AAAA", "k 1:AAAA", &format!("{},", key("a", 1))] {
            assert_eq!(
                SealingKeys::parse(&text.to_owned().into()).unwrap_err(),
                SealError::InvalidKeys,
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_sealed_secret_opens_only_with_its_key_and_context() {
        let old = keys(&key("a", 1));
        let sealed = old.seal(&"whsec_x".to_owned().into(), "sub-1", [7; 12]).unwrap();
        assert!(sealed.0.starts_with("fws1.a."));
        let rotated = keys(&format!("{},{}", key("b", 2), key("a", 1)));
        assert_eq!(rotated.open(&sealed, "sub-1").unwrap().expose_secret(), "whsec_x");
        assert_eq!(rotated.open(&sealed, "sub-2").unwrap_err(), SealError::Rejected);
        assert_eq!(keys(&key("b", 2)).open(&sealed, "sub-1").unwrap_err(), SealError::UnknownKey("a".into()));
        assert_eq!(keys(&key("a", 3)).open(&sealed, "sub-1").unwrap_err(), SealError::Rejected);
        assert_eq!(old.open(&Sealed("fws1.a".into()), "sub-1").unwrap_err(), SealError::Malformed);
    }

    proptest! {
        #[test]
        fn sealing_round_trips_and_hides_the_secret(secret in "[!-~]{8,60}", nonce in any::<[u8; 12]>()) {
            let keys = keys(&key("a", 9));
            let sealed = keys.seal(&secret.clone().into(), "c", nonce).unwrap();
            prop_assert!(!sealed.0.contains(&secret));
            let opened = keys.open(&sealed, "c").unwrap();
            prop_assert_eq!(opened.expose_secret(), secret.as_str());
        }
    }
}
