//! Sealed texts: what callers hold for us, and can neither read, nor change, nor use elsewhere. Consistency tokens and cursors
//! are such texts, because a position of the log tells how much all tenants write.
//!
//! A sealed text is base64url (no padding) of: version (1 byte), key id (4 bytes), nonce (24 bytes), and what
//! XChaCha20-Poly1305 makes of the content, with its tag (16 bytes). The tag also covers the version, the key id, what the
//! text is for ([`Purpose`]), and what it is bound to (a tenant, the question of a list): those do not travel, so a text that
//! is used elsewhere is no better than a forged one. Whatever cannot be opened is refused in one way.
//!
//! - [`KeyRing::seal`] takes its nonce from the content (HMAC-SHA256 over all that is sealed, under a key of its own). The same
//!   content gives the same text under one key, which a receipt that is sent again needs; two contents would need 2^96 texts
//!   to meet in a nonce.
//! - [`KeyRing::seal_afresh`] draws the nonce at random, so that equal contents cannot be told. Whoever asks again and
//!   again would otherwise count how often the log has moved.
//!
//! Several keys may be known: the first one seals, all of them open. So keys are exchanged without breaking what is in
//! somebody's hands; a text that is sealed again after that reads differently and means the same.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use clap::Args;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::key::SecretKey;

const VERSION: u8 = 1;
const KEY_ID_BYTES: usize = 4;
const NONCE_BYTES: usize = 24;

/// The longest text that is looked at.
const CHARACTERS_MAX: usize = 1_024;

/// Settings of the services that seal and open.
#[derive(Args, Clone, Debug)]
pub struct SealingConfig {
    /// The keys that seal consistency tokens and cursors, 64 hexadecimal digits each, with commas between them. The first one
    /// seals, all of them open. All command and query services need the same. Only in development may it be absent.
    #[arg(
        long,
        env = "DAYBOOK_SEALING_KEYS",
        value_name = "KEYS",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub sealing_keys: Vec<SecretKey>,
}

impl SealingConfig {
    /// The keys as a ring.
    ///
    /// # Errors
    /// Outside of development, when there is none, or one that anybody could know.
    pub fn key_ring(&self, is_development: bool) -> anyhow::Result<KeyRing> {
        let keys = SecretKey::given(&self.sealing_keys, "DAYBOOK_SEALING_KEYS", is_development)?;
        Ok(KeyRing::new(&keys))
    }
}

/// The purpose of a sealed text, which is good for no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// A position that a read has to include.
    ConsistencyToken = 1,
    /// The start of a list's next page.
    Cursor = 2,
    /// How far a stream has come.
    StreamPosition = 3,
    /// Stands for a credential in the address of a stream.
    StreamTicket = 4,
}

/// Seals and opens. Cheap to clone.
#[derive(Clone)]
pub struct KeyRing(Arc<[Key]>);

impl KeyRing {
    /// The first key seals, all of them open. There is at least one.
    #[must_use]
    pub fn new(keys: &[SecretKey]) -> Self {
        assert!(!keys.is_empty(), "a ring has a key");
        Self(keys.iter().map(Key::from).collect())
    }

    /// Seals a content. Under one key this text is always the same.
    #[must_use]
    pub fn seal(&self, purpose: Purpose, bound_to: &[u8], content: &[u8]) -> String {
        let key = self.first();
        key.seal(
            purpose,
            bound_to,
            content,
            key.nonce_of(purpose, bound_to, content),
        )
    }

    /// Seals a content, into another text each time.
    #[must_use]
    pub fn seal_afresh(&self, purpose: Purpose, bound_to: &[u8], content: &[u8]) -> String {
        self.first().seal(purpose, bound_to, content, rand::random())
    }

    /// The content of a text that was sealed for this purpose, bound to this; `None` for any other text.
    #[must_use]
    pub fn open(&self, purpose: Purpose, bound_to: &[u8], text: &str) -> Option<Vec<u8>> {
        if text.len() > CHARACTERS_MAX {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (version, rest) = bytes.split_first()?;
        let (key_id, rest) = rest.split_first_chunk::<KEY_ID_BYTES>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_BYTES>()?;
        let mut keys = self.0.iter();
        let key = keys.find(|key| *version == VERSION && key.id == *key_id)?;
        let aad = &key.associated(purpose, bound_to);
        let payload = Payload { msg: sealed, aad };
        key.cipher.decrypt(&XNonce::from(*nonce), payload).ok()
    }

    fn first(&self) -> &Key {
        self.0.first().expect("a ring has a key")
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyRing(…)")
    }
}

struct Key {
    /// Its public name.
    id: [u8; KEY_ID_BYTES],
    cipher: XChaCha20Poly1305,
    nonces: Hmac<Sha256>,
}

impl From<&SecretKey> for Key {
    fn from(key: &SecretKey) -> Self {
        let part = |name: &str| {
            let part = mac(key.expose()).chain_update("daybook sealing: ");
            <[u8; 32]>::from(part.chain_update(name).finalize().into_bytes())
        };
        let id = part("key id");
        let (id, _) = id.split_first_chunk().expect("a hash is longer");
        Self {
            id: *id,
            cipher: XChaCha20Poly1305::new_from_slice(&part("cipher")).expect("its keys have 32 bytes"),
            nonces: mac(&part("nonces")),
        }
    }
}

impl Key {
    fn seal(&self, purpose: Purpose, bound_to: &[u8], content: &[u8], nonce: [u8; NONCE_BYTES]) -> String {
        let aad = &self.associated(purpose, bound_to);
        let payload = Payload { msg: content, aad };
        let sealed = self.cipher.encrypt(&XNonce::from(nonce), payload);
        let sealed = sealed.expect("what is sealed is small");
        URL_SAFE_NO_PAD.encode([&[VERSION][..], &self.id, &nonce, &sealed].concat())
    }

    /// The data that the tag covers beside the content.
    fn associated(&self, purpose: Purpose, bound_to: &[u8]) -> Vec<u8> {
        [&[VERSION][..], &self.id, &[purpose as u8], bound_to].concat()
    }

    fn nonce_of(&self, purpose: Purpose, bound_to: &[u8], content: &[u8]) -> [u8; NONCE_BYTES] {
        let mac = self.nonces.clone().chain_update([purpose as u8]);
        let mac = mac.chain_update((bound_to.len() as u64).to_be_bytes());
        let bytes = mac
            .chain_update(bound_to)
            .chain_update(content)
            .finalize()
            .into_bytes();
        let (nonce, _) = bytes.split_first_chunk().expect("a hash is longer");
        *nonce
    }
}

fn mac(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW_KEY: SecretKey = SecretKey::new(*b"0123456789abcdef0123456789abcdef");
    const PLACE: &[u8] = b"ord_01h455vb4pex5vsknk084sn02q";

    fn ring() -> KeyRing {
        KeyRing::new(&[SecretKey::DEVELOPMENT])
    }

    fn open(text: &str) -> Option<Vec<u8>> {
        ring().open(Purpose::Cursor, b"Anne's orders", text)
    }

    /// Sealed in both ways.
    fn sealed() -> [String; 2] {
        let (purpose, bound_to) = (Purpose::Cursor, b"Anne's orders");
        [
            ring().seal(purpose, bound_to, PLACE),
            ring().seal_afresh(purpose, bound_to, PLACE),
        ]
    }

    #[test]
    fn what_was_sealed_opens_and_shows_nothing_before() {
        for text in sealed() {
            assert_eq!(open(&text).as_deref(), Some(PLACE));
            let bytes = URL_SAFE_NO_PAD.decode(&text).expect("it is base64url");
            for window in [3, 8] {
                let shown = |part: &[u8]| bytes.windows(window).any(|bytes| bytes == part);
                assert!(!PLACE.windows(window).any(shown), "a part of it can be read");
            }
        }
    }

    /// Frozen, and made by another implementation: a receipt that is sent again meets a newer program.
    const FROZEN: &str = "ARKBoTFFOBWnkD6I-LY2RF_Sjk3qmXMdviKWqsy9zcYmxokun2X2DNVunD5jAQ";

    #[test]
    fn the_same_content_is_the_same_text_under_one_key_unless_it_is_sealed_afresh() {
        let [always, afresh] = sealed();
        assert_eq!(always, sealed()[0]);
        assert_ne!(afresh, sealed()[1]);
        assert_eq!(ring().seal(Purpose::ConsistencyToken, b"Anne", b"7"), FROZEN);
    }

    #[test]
    fn a_text_is_good_for_nothing_else() {
        let [text, afresh] = sealed();
        for text in [text, afresh] {
            for (purpose, bound_to) in [
                (Purpose::ConsistencyToken, &b"Anne's orders"[..]),
                (Purpose::Cursor, b"Bert's orders"),
                (Purpose::Cursor, b"Anne's orders, placed"),
                (Purpose::Cursor, b""),
            ] {
                assert_eq!(ring().open(purpose, bound_to, &text), None);
            }
        }
    }

    #[test]
    fn a_text_with_any_bit_changed_is_refused() {
        for text in sealed() {
            let bytes = URL_SAFE_NO_PAD.decode(&text).expect("it is base64url");
            for bit in 0..bytes.len() * 8 {
                let mut forged = bytes.clone();
                forged[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(open(&URL_SAFE_NO_PAD.encode(forged)), None, "bit {bit}");
            }
            for length in 0..text.len() {
                assert_eq!(open(&text[..length]), None, "{length} characters of it");
            }
        }
    }

    #[test]
    fn what_is_no_sealed_text_is_refused() {
        for text in ["", "AQ", "not base64!", &"A".repeat(80), &"A".repeat(5_000)] {
            assert_eq!(open(text), None, "{text}");
        }
    }

    #[test]
    fn a_former_key_still_opens_and_an_unknown_one_does_not() {
        let exchanged = KeyRing::new(&[NEW_KEY, SecretKey::DEVELOPMENT]);
        let [old, _] = sealed();
        let (purpose, bound_to) = (Purpose::Cursor, b"Anne's orders");
        assert_eq!(exchanged.open(purpose, bound_to, &old).as_deref(), Some(PLACE));
        let new = exchanged.seal(purpose, bound_to, PLACE);
        assert_eq!(open(&new), None);
        assert_ne!(new, old, "the first key seals");
        assert_eq!(exchanged.open(purpose, bound_to, &new).as_deref(), Some(PLACE));
    }

    fn configured(keys: &[SecretKey]) -> SealingConfig {
        SealingConfig {
            sealing_keys: keys.to_vec(),
        }
    }

    #[test]
    fn only_development_does_without_a_key_or_with_one_that_everybody_knows() {
        let zero = SecretKey::new([0; 32]);
        for guessable in [&[][..], &[SecretKey::DEVELOPMENT], &[NEW_KEY, zero]] {
            configured(guessable).key_ring(true).expect("it is development");
            configured(guessable)
                .key_ring(false)
                .expect_err("anybody knows it");
        }
        configured(&[NEW_KEY]).key_ring(false).expect("nobody knows it");
    }
}
