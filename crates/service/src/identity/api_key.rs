//! The form of API keys: `dbk_live_` + a public prefix of 8 characters + `_` + 256 random bits as 43 characters of
//! base64url. The prefix finds the key, the SHA-256 of the whole text proves it; the database never holds more than these
//! two.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRngCore as _;
use rand::rngs::OsRng;
use sha2::{Digest as _, Sha256};

const KEY_MARK: &str = "dbk_live_";
const PREFIX_CHARS: usize = 8;
const SECRET_BYTES: usize = 32;
const SECRET_CHARS: usize = 43;
const KEY_CHARS: usize = KEY_MARK.len() + PREFIX_CHARS + 1 + SECRET_CHARS;

/// The alphabet of prefixes: no letter looks like a digit, and its 32 characters divide a byte evenly.
const PREFIX_ALPHABET: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// The SHA-256 of an API key's whole text.
pub type KeyHash = [u8; 32];

/// A new API key. The plain text exists here only; show it once and forget it.
pub struct NewApiKey {
    /// The whole text, for the caller's eyes.
    pub plain: String,
    /// The public prefix, unique among keys.
    pub prefix: String,
    /// Its hash, which is all that the database holds.
    pub sha256: KeyHash,
}

/// Makes a new API key from the operating system's random numbers.
///
/// # Panics
/// When the operating system has no random numbers: a guessable key would be worse.
#[must_use]
pub fn generate_api_key() -> NewApiKey {
    let mut random = [0_u8; PREFIX_CHARS + SECRET_BYTES];
    OsRng
        .try_fill_bytes(&mut random)
        .expect("the operating system gives random numbers");
    let (prefix, secret) = random.split_at(PREFIX_CHARS);
    let letter = |byte: &u8| char::from(PREFIX_ALPHABET[usize::from(byte % 32)]);
    let prefix: String = prefix.iter().map(letter).collect();
    let plain = format!("{KEY_MARK}{prefix}_{}", URL_SAFE_NO_PAD.encode(secret));
    let sha256 = hash_api_key(&plain);
    NewApiKey {
        plain,
        prefix,
        sha256,
    }
}

/// The SHA-256 of a key's whole text, as the database holds it.
#[must_use]
pub fn hash_api_key(plain: &str) -> KeyHash {
    Sha256::digest(plain.as_bytes()).into()
}

/// The public prefix of a key, when the text has the form of one.
#[must_use]
pub fn api_key_prefix(plain: &str) -> Option<&str> {
    if plain.len() != KEY_CHARS || !plain.is_ascii() {
        return None;
    }
    let (prefix, secret) = plain.strip_prefix(KEY_MARK)?.split_at(PREFIX_CHARS);
    let is_prefix = prefix.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (is_prefix && secret.starts_with('_')).then_some(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_key_has_the_form_that_is_documented() {
        let key = generate_api_key();
        assert_eq!(key.plain.len(), 61);
        assert_eq!(api_key_prefix(&key.plain), Some(&*key.prefix));
        let secret = key
            .plain
            .strip_prefix(&format!("dbk_live_{}_", key.prefix))
            .expect("mark and prefix");
        assert_eq!(URL_SAFE_NO_PAD.decode(secret).expect("base64url").len(), 32);
        assert_eq!(key.sha256, hash_api_key(&key.plain));
        assert_ne!(key.plain, generate_api_key().plain);
    }

    #[test]
    fn what_has_not_the_form_of_a_key_is_not_looked_up() {
        let key = generate_api_key().plain;
        let wrong = [
            String::new(),
            key[1..].to_owned(),
            format!("{key}x"),
            key.replace("live", "test"),
            key.replacen('_', "-", 3),
            format!("dbk_live_ab'--x{}", &key[15..]),
            format!("dbk_live_äb34567_{}", "x".repeat(43)),
        ];
        for text in wrong {
            assert_eq!(api_key_prefix(&text), None, "{text}");
        }
    }
}
