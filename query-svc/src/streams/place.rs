//! How far a stream has come: what its reader resumes with.

use daybook_event_store::{EpochId, Lineage};
use daybook_service::ApiError;
use daybook_service::sealing::{KeyRing, Purpose};
use uuid::Uuid;

use crate::cursor::Question;

/// Everything up to a position of the log was shown, in the history that an epoch names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) epoch: EpochId,
    pub(crate) position: u64,
}

/// What has become of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// The log still has everything up to there.
    Holds,
    /// It is of an epoch that was not seen yet: another replica may have found it first.
    NotYet,
    /// It is of a history that is gone.
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

    /// What has become of it in a log with these epochs.
    pub(super) fn standing(self, lineage: &Lineage) -> Standing {
        let newest = lineage.newest().unwrap_or_default();
        match lineage.valid_up_to(self.epoch.generation) {
            Some(last) if self.position <= last => Standing::Holds,
            None if self.epoch.number > newest.number => Standing::NotYet,
            Some(_) | None => Standing::Gone,
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
    fn a_place_holds_up_to_the_fork_and_is_gone_behind_it() {
        let epochs = [(1, LOG, 1), (2, RESTORED, 6)].map(|(number, generation, from_position)| Epoch {
            number,
            generation,
            from_position,
        });
        let lineage = Lineage::from_iter(epochs);
        for (place, standing) in [
            (place(1, LOG, 5), Standing::Holds),
            (place(1, LOG, 6), Standing::Gone),
            (place(2, RESTORED, 100), Standing::Holds),
            (place(2, Uuid::from_u128(3), 2), Standing::Gone),
            (place(3, Uuid::from_u128(3), 2), Standing::NotYet),
        ] {
            assert_eq!(place.standing(&lineage), standing, "{place:?}");
        }
    }
}
