//! Cursors: sealed, and good only for the question that gave them.
//!
//! A cursor holds the place where the next page begins. It is bound to the *question*: the tenant, the list, its filters
//! and its order. The question itself does not travel, so a cursor stays short, and one from another tenant or another list
//! simply does not open.

use daybook_service::ApiError;
use daybook_service::sealing::{KeyRing, Purpose};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;

/// What a list was asked: everything that has to be the same on the next page.
#[derive(Clone)]
pub(crate) struct Question(Sha256);

impl Question {
    /// The question of a tenant to a list, without filters yet.
    pub(crate) fn new(tenant_id: Uuid, list: &str) -> Self {
        Self(Sha256::new().chain_update(tenant_id.as_bytes())).with("list", list)
    }

    /// Adds a filter, or the order. Names and values are written with their lengths, so that none can pass for another.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        for text in [name, value] {
            self.0.update((text.len() as u64).to_be_bytes());
            self.0.update(text);
        }
        self
    }

    /// Adds a filter by time.
    pub(crate) fn with_moment(self, name: &str, moment: Option<OffsetDateTime>) -> Self {
        let moment = moment.map(|moment| moment.unix_timestamp_nanos().to_string());
        self.with(name, moment.as_deref().unwrap_or_default())
    }

    /// What texts are bound to that belong to the question.
    pub(crate) fn digest(&self) -> [u8; 32] {
        self.0.clone().finalize().into()
    }
}

/// Seals cursors and opens them again.
#[derive(Clone, Debug)]
pub(crate) struct Cursors(KeyRing);

impl Cursors {
    /// Cursors that are sealed with this ring's first key.
    pub(crate) fn new(ring: KeyRing) -> Self {
        Self(ring)
    }

    /// The cursor for a place in the answer to a question.
    pub(crate) fn seal(&self, question: &Question, place: &[u8]) -> String {
        self.0.seal(Purpose::Cursor, &question.digest(), place)
    }

    /// The place that a cursor was sealed for.
    ///
    /// # Errors
    /// `INVALID_CURSOR` for anything that was not sealed here, by a known key, for this very question.
    pub(crate) fn open(&self, question: &Question, cursor: &str) -> Result<Vec<u8>, ApiError> {
        let place = self.0.open(Purpose::Cursor, &question.digest(), cursor);
        place.ok_or_else(ApiError::invalid_cursor)
    }
}

#[cfg(test)]
mod tests {
    use daybook_service::key::SecretKey;

    use super::*;

    const ANNE: Uuid = Uuid::from_u128(1);
    const BERT: Uuid = Uuid::from_u128(2);

    fn cursors() -> Cursors {
        Cursors::new(KeyRing::new(&[SecretKey::DEVELOPMENT]))
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
}
