//! Cursors: opaque, signed, and good only for the question that gave them.
//!
//! A cursor is base64url (no padding) of: version (1 byte), key id (4 bytes), the place where the next page begins, and
//! an HMAC-SHA256 over all of that and the *question*: the tenant, the list, its filters and its order. The question
//! itself does not travel, so a cursor stays short, and one from another tenant or another list simply does not verify.
//!
//! Several keys may be known. The first one signs and all of them verify, so that keys are exchanged without breaking
//! the pages that are open in somebody's hands.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use daybook_service::ApiError;
use daybook_service::key::SecretKey;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

const VERSION: u8 = 1;
const KEY_ID_BYTES: usize = 4;
const HEAD_BYTES: usize = 1 + KEY_ID_BYTES;
const MAC_BYTES: usize = 32;

/// The longest text that is looked at as a cursor.
const CURSOR_CHARACTERS_MAX: usize = 1_024;

/// What a list was asked: everything that has to be the same on the next page.
#[derive(Clone)]
pub struct Question(Sha256);

impl Question {
    /// The question of a tenant to a list, without filters yet.
    pub fn new(tenant_id: Uuid, list: &str) -> Self {
        Self(Sha256::new().chain_update(tenant_id.as_bytes())).with("list", list)
    }

    /// Adds a filter, or the order. Names and values are written with their lengths, so that none can pass for another.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        for text in [name, value] {
            self.0.update((text.len() as u64).to_be_bytes());
            self.0.update(text);
        }
        self
    }

    fn digest(&self) -> [u8; 32] {
        self.0.clone().finalize().into()
    }
}

struct SigningKey {
    id: [u8; KEY_ID_BYTES],
    mac: Hmac<Sha256>,
}

impl From<&SecretKey> for SigningKey {
    fn from(key: &SecretKey) -> Self {
        let mac = Hmac::new_from_slice(key.expose()).expect("HMAC takes keys of any length");
        Self { id: id_of(key), mac }
    }
}

impl SigningKey {
    /// The MAC over a cursor without its own MAC, and the question.
    fn mac(&self, signed: &[u8], question: &Question) -> Hmac<Sha256> {
        self.mac
            .clone()
            .chain_update(question.digest())
            .chain_update(signed)
    }
}

/// The public name of a key, from a hash of it.
fn id_of(key: &SecretKey) -> [u8; KEY_ID_BYTES] {
    let hash = Sha256::new()
        .chain_update(b"daybook cursor key id\0")
        .chain_update(key.expose())
        .finalize();
    let mut id = [0; KEY_ID_BYTES];
    id.copy_from_slice(&hash[..KEY_ID_BYTES]);
    id
}

/// Signs cursors and opens them again.
pub struct Cursors(Vec<SigningKey>);

impl Cursors {
    /// The first key signs, all of them verify.
    pub fn new(first: &SecretKey, others: &[SecretKey]) -> Self {
        Self(
            std::iter::once(first)
                .chain(others)
                .map(SigningKey::from)
                .collect(),
        )
    }

    /// The cursor for a place in the answer to a question.
    pub fn seal(&self, question: &Question, place: &[u8]) -> String {
        let key = &self.0[0];
        let mut cursor = Vec::with_capacity(HEAD_BYTES + place.len() + MAC_BYTES);
        cursor.push(VERSION);
        cursor.extend(key.id);
        cursor.extend(place);
        let mac = key.mac(&cursor, question).finalize().into_bytes();
        cursor.extend(mac);
        URL_SAFE_NO_PAD.encode(cursor)
    }

    /// The place that a cursor was sealed for.
    ///
    /// # Errors
    /// `INVALID_CURSOR` for anything that was not sealed here, by a known key, for this very question.
    pub fn open(&self, question: &Question, cursor: &str) -> Result<Vec<u8>, ApiError> {
        self.place(question, cursor).ok_or_else(ApiError::invalid_cursor)
    }

    fn place(&self, question: &Question, cursor: &str) -> Option<Vec<u8>> {
        if cursor.len() > CURSOR_CHARACTERS_MAX {
            return None;
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
        let (signed, mac) = bytes.split_at_checked(bytes.len().checked_sub(MAC_BYTES)?)?;
        let (version, rest) = signed.split_first()?;
        let (key_id, _) = rest.split_first_chunk::<KEY_ID_BYTES>()?;
        let key = self
            .0
            .iter()
            .find(|key| *version == VERSION && key.id == *key_id)?;
        key.mac(signed, question).verify_slice(mac).ok()?;
        bytes.truncate(bytes.len() - MAC_BYTES);
        bytes.drain(..HEAD_BYTES);
        Some(bytes)
    }
}

impl fmt::Debug for Cursors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursors").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANNE: Uuid = Uuid::from_u128(1);
    const BERT: Uuid = Uuid::from_u128(2);

    fn cursors() -> Cursors {
        Cursors::new(&SecretKey::DEVELOPMENT, &[])
    }

    fn placed_orders_of(tenant_id: Uuid) -> Question {
        Question::new(tenant_id, "orders").with("status", "placed")
    }

    #[test]
    fn a_cursor_opens_for_the_question_that_gave_it() {
        let cursor = cursors().seal(&placed_orders_of(ANNE), b"place");
        let place = cursors()
            .open(&placed_orders_of(ANNE), &cursor)
            .expect("it was sealed here");
        assert_eq!(place, b"place");
    }

    #[test]
    fn a_cursor_opens_for_no_other_tenant_list_filter_or_order() {
        let cursor = cursors().seal(&placed_orders_of(ANNE), b"place");
        let others = [
            placed_orders_of(BERT),
            Question::new(ANNE, "customers").with("status", "placed"),
            Question::new(ANNE, "orders").with("status", "shipped"),
            Question::new(ANNE, "orders").with("statu", "splaced"),
            Question::new(ANNE, "orders"),
            placed_orders_of(ANNE).with("sort", "placed_at"),
        ];
        for other in others {
            assert!(cursors().open(&other, &cursor).is_err());
        }
    }

    #[test]
    fn a_cursor_with_any_bit_changed_is_refused() {
        let question = placed_orders_of(ANNE);
        let cursor = cursors().seal(&question, b"place");
        let bytes = URL_SAFE_NO_PAD.decode(&cursor).expect("a cursor is base64url");
        for bit in 0..bytes.len() * 8 {
            let mut forged = bytes.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(
                cursors()
                    .open(&question, &URL_SAFE_NO_PAD.encode(forged))
                    .is_err(),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn what_is_no_cursor_is_refused() {
        for text in ["", "AQ", "not base64!", &"A".repeat(50), &"A".repeat(5_000)] {
            assert!(cursors().open(&placed_orders_of(ANNE), text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_former_key_still_opens_and_an_unknown_one_does_not() {
        let question = placed_orders_of(ANNE);
        let new: SecretKey = "5a".repeat(32).parse().expect("64 digits");
        let old_cursor = cursors().seal(&question, b"place");
        let after_exchange = Cursors::new(&new, &[SecretKey::DEVELOPMENT]);
        assert!(after_exchange.open(&question, &old_cursor).is_ok());
        let new_cursor = after_exchange.seal(&question, b"place");
        assert!(cursors().open(&question, &new_cursor).is_err());
    }

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
