//! How far a stream has come: what its reader resumes with.

use daybook_event_store::{EpochId, Lineage};
use daybook_service::ApiError;
use daybook_service::sealing::{KeyRing, Purpose};
use uuid::Uuid;

use crate::cursor::Question;

/// Everything up to a position of the log was shown, in the history that an epoch names. The default is a place of no history: no
/// log has it. The greater of two is the later one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) epoch: EpochId,
    pub(crate) position: u64,
}

/// Whether a place is one of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Validity {
    /// The log still has everything up to there.
    Valid,
    /// It is of an epoch that was not seen yet: another replica may have found it first.
    Unknown,
    /// It is of a history that is gone, or of none.
    Gone,
}

impl Place {
    /// The place as its reader holds it, another text each time: places move with what other tenants write.
    pub(super) fn seal(self, ring: &KeyRing, question: &Question) -> String {
        let content = [
            &self.position.to_be_bytes()[..],
            &self.epoch.number.to_be_bytes(),
            self.epoch.generation.as_bytes(),
        ];
        ring.seal_afresh(Purpose::StreamPosition, &question.digest(), &content.concat())
    }

    /// The place that a reader holds.
    ///
    /// # Errors
    /// `INVALID_CURSOR` for anything that was not sealed for this very stream.
    pub(super) fn open(ring: &KeyRing, question: &Question, text: &str) -> Result<Self, ApiError> {
        let content = ring.open(Purpose::StreamPosition, &question.digest(), text);
        let place = content.as_deref().and_then(Self::decode);
        place.ok_or_else(ApiError::invalid_cursor)
    }

    fn decode(content: &[u8]) -> Option<Self> {
        let (position, rest) = content.split_first_chunk()?;
        let (number, generation) = rest.split_first_chunk()?;
        Some(Self {
            position: u64::from_be_bytes(*position),
            epoch: EpochId {
                number: i32::from_be_bytes(*number),
                generation: Uuid::from_slice(generation).ok()?,
            },
        })
    }

    /// Whether it is one of a log with these epochs.
    pub(super) fn validity(self, lineage: &Lineage) -> Validity {
        let newest = lineage.newest().unwrap_or_default();
        match lineage.valid_up_to(self.epoch.generation) {
            Some(last) if self.position <= last => Validity::Valid,
            None if self.epoch.number > newest.number => Validity::Unknown,
            Some(_) | None => Validity::Gone,
        }
    }
}

#[cfg(test)]
mod tests {
    use daybook_event_store::Epoch;
    use daybook_service::key::SecretKey;

    use super::*;

    const LOG: Uuid = Uuid::from_u128(1);
    const RESTORED: Uuid = Uuid::from_u128(2);

    fn place(number: i32, generation: Uuid, position: u64) -> Place {
        Place {
            epoch: EpochId { number, generation },
            position,
        }
    }

    #[test]
    fn a_place_opens_for_its_own_stream_alone() {
        let ring = KeyRing::new(&[SecretKey::DEVELOPMENT]);
        let question = |tenant| Question::new(Uuid::from_u128(tenant), "stream").with("feed", "events");
        let sealed = place(3, LOG, u64::MAX).seal(&ring, &question(7));
        let opened = Place::open(&ring, &question(7), &sealed).expect("it was sealed for this");
        assert_eq!(opened, place(3, LOG, u64::MAX));
        for other in [question(8), question(7).with("type", "order.placed")] {
            assert!(Place::open(&ring, &other, &sealed).is_err());
        }
    }

    #[test]
    fn a_place_is_valid_up_to_the_fork_and_gone_behind_it() {
        let epochs = [(1, LOG, 1), (2, RESTORED, 6)].map(|(number, generation, from_position)| Epoch {
            number,
            generation,
            from_position,
        });
        let lineage = Lineage::from_iter(epochs);
        for (place, validity) in [
            (place(1, LOG, 5), Validity::Valid),
            (place(1, LOG, 6), Validity::Gone),
            (place(2, RESTORED, 100), Validity::Valid),
            (place(2, Uuid::from_u128(3), 2), Validity::Gone),
            (place(3, Uuid::from_u128(3), 2), Validity::Unknown),
            (Place::default(), Validity::Gone),
        ] {
            assert_eq!(place.validity(&lineage), validity, "{place:?}");
        }
    }
}
