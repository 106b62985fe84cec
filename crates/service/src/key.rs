//! Keys that services are given: 32 secret bytes, written as 64 hexadecimal digits.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context as _, ensure};
use thiserror::Error;

/// Bytes in a key.
const KEY_BYTES: usize = 32;

/// A secret key that all replicas of a service share.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretKey([u8; KEY_BYTES]);

/// The text is not 64 hexadecimal digits. It is not repeated here: it may be a secret with a typing error.
#[derive(Debug, Error)]
#[error("a key must be 64 hexadecimal digits")]
pub struct InvalidKey;

impl SecretKey {
    /// The key of development stacks. Everybody knows it, so production refuses it.
    pub const DEVELOPMENT: Self = Self(*b"daybook development: not secret!");

    /// A key of these bytes.
    #[must_use]
    pub const fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes, for the one place that needs them.
    #[must_use]
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Whether anybody could know the key: the development key, or one byte over and over.
    #[must_use]
    pub fn is_guessable(&self) -> bool {
        *self == Self::DEVELOPMENT || self.0.iter().all(|byte| *byte == self.0[0])
    }

    /// The keys that were given in the setting `name`, or, in development, the one that everybody knows.
    ///
    /// # Errors
    /// Outside of development, when there is none, or one that anybody could know.
    pub fn given(keys: &[Self], name: &str, is_development: bool) -> anyhow::Result<Vec<Self>> {
        if is_development && keys.is_empty() {
            return Ok(vec![Self::DEVELOPMENT]);
        }
        keys.first().with_context(|| format!("{name} is not set"))?;
        ensure!(
            is_development || !keys.iter().any(Self::is_guessable),
            "{name} is a key that everybody knows; make one with `openssl rand -hex 32`"
        );
        Ok(keys.to_vec())
    }
}

impl FromStr for SecretKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let mut key = [0; KEY_BYTES];
        hex::decode_to_slice(text, &mut key).map_err(|_| InvalidKey)?;
        Ok(Self(key))
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_64_hexadecimal_digits() {
        assert!("0f".repeat(32).parse::<SecretKey>().is_ok());
        for text in [
            "",
            "0f",
            &"+1".repeat(32),
            &"0g".repeat(32),
            &"0f".repeat(33),
            &"é".repeat(32),
        ] {
            assert!(text.parse::<SecretKey>().is_err(), "{text}");
        }
    }

    #[test]
    fn keys_that_everybody_knows_are_told_apart() {
        let zero: SecretKey = "00".repeat(32).parse().expect("64 digits");
        let good: SecretKey = "0123456789abcdef".repeat(4).parse().expect("64 digits");
        assert!(zero.is_guessable() && SecretKey::DEVELOPMENT.is_guessable());
        assert!(!good.is_guessable());
    }
}
