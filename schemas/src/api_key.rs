//! API keys: `fw_<env>_<id>_<secret>`, for example `fw_live_01938f2e…_kJ2…`.
//!
//! `env` is a short lower-case label, `id` the key's UUID in plain hex, `secret` 32 random bytes in base64url.
//! Only SHA-256 of the secret is stored: it has full entropy, so a slow hash would only cost the hot path.

use crate::ids::ApiKeyId;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fmt;
use subtle::ConstantTimeEq;
use thiserror::Error;
use uuid::Uuid;
use zeroize::Zeroizing;

/// Bytes of randomness in a key.
pub const SECRET_BYTES: usize = 32;
/// Longest label of an environment.
pub const MAX_ENV_BYTES: usize = 16;

/// SHA-256 of a key's secret part; compared in constant time. Hex on the wire.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SecretHash(pub [u8; 32]);

impl SecretHash {
    /// The hash of a secret.
    pub fn of(secret: &[u8; SECRET_BYTES]) -> Self {
        Self(Sha256::digest(secret).into())
    }
}

impl PartialEq for SecretHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for SecretHash {}

impl fmt::Debug for SecretHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretHash(…)")
    }
}

impl From<SecretHash> for String {
    fn from(hash: SecretHash) -> Self {
        hash.0.iter().fold(Self::with_capacity(64), |mut hex, byte| {
            hex.push(char::from_digit(u32::from(byte >> 4), 16).unwrap_or('0'));
            hex.push(char::from_digit(u32::from(byte & 15), 16).unwrap_or('0'));
            hex
        })
    }
}

impl TryFrom<String> for SecretHash {
    type Error = InvalidApiKey;

    fn try_from(hex: String) -> Result<Self, Self::Error> {
        let digits: Vec<u8> = hex.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
        let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        if hex.len() != 64 {
            return Err(InvalidApiKey);
        }
        bytes.try_into().map(Self).map_err(|_| InvalidApiKey)
    }
}

/// Text that is not an API key. Says nothing of the text, which may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a Floodway API key")]
pub struct InvalidApiKey;

/// What a presented key says: which key it claims to be, and the hash that proves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PresentedKey {
    /// Which key.
    pub id: ApiKeyId,
    /// Hash of the presented secret, to be compared with the stored one.
    pub hash: SecretHash,
}

impl PresentedKey {
    /// Parses a key as a client sent it. Allocates nothing.
    pub fn parse(text: &str) -> Result<Self, InvalidApiKey> {
        let (_env, rest) =
            text.strip_prefix("fw_").and_then(|rest| rest.split_once('_')).ok_or(InvalidApiKey)?;
        let (id, secret) = rest.split_once('_').ok_or(InvalidApiKey)?;
        let id = Uuid::try_parse(id).map_err(|_| InvalidApiKey)?;
        // One byte of slack: the decoder asks for room in whole groups.
        let mut bytes = Zeroizing::new([0u8; SECRET_BYTES + 1]);
        let len = URL_SAFE_NO_PAD.decode_slice(secret, bytes.as_mut()).map_err(|_| InvalidApiKey)?;
        let secret: &[u8; SECRET_BYTES] = bytes[..len].try_into().map_err(|_| InvalidApiKey)?;
        Ok(Self { id: ApiKeyId(id), hash: SecretHash::of(secret) })
    }
}

/// Composes a new key from random bytes: the text to show once, and the hash to store.
///
/// # Errors
/// [`InvalidApiKey`] when `env` is not 1 to [`MAX_ENV_BYTES`] lower-case letters and digits.
pub fn compose(
    env: &str,
    id: ApiKeyId,
    secret: &[u8; SECRET_BYTES],
) -> Result<(SecretString, SecretHash), InvalidApiKey> {
    let valid = (1..=MAX_ENV_BYTES).contains(&env.len())
        && env.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if !valid {
        return Err(InvalidApiKey);
    }
    let text = format!("fw_{env}_{}_{}", id.0.as_simple(), URL_SAFE_NO_PAD.encode(secret));
    Ok((text.into(), SecretHash::of(secret)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use secrecy::ExposeSecret;

    #[test]
    fn malformed_keys_are_refused() {
        for text in [
            "",
            "fw_",
            "fw_live",
            "fw_live_1_2",
            "xx_live_01938f2e000070008000000000000004_AAAA",
            "fw_live_01938f2e000070008000000000000004_AAAA",
        ] {
            assert_eq!(PresentedKey::parse(text), Err(InvalidApiKey), "{text}");
        }
        assert!(compose("Live", ApiKeyId(Uuid::nil()), &[0; 32]).is_err());
        assert!(SecretHash::try_from("zz".repeat(32)).is_err());
    }

    proptest! {
        #[test]
        fn a_composed_key_parses_to_its_id_and_hash(bits in any::<u128>(), secret in any::<[u8; 32]>()) {
            let id = ApiKeyId(Uuid::from_u128(bits));
            let (text, hash) = compose("live", id, &secret).unwrap();
            prop_assert_eq!(PresentedKey::parse(text.expose_secret()), Ok(PresentedKey { id, hash }));
            prop_assert_eq!(SecretHash::try_from(String::from(hash)), Ok(hash));
        }

        #[test]
        fn arbitrary_text_never_panics(text in ".{0,120}") {
            let _ = PresentedKey::parse(&text);
        }
    }
}
