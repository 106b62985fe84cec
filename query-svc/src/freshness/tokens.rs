//! The consistency tokens of one caller.

use daybook_event_store::EpochId;
use daybook_service::ApiError;
use daybook_service::consistency::ConsistencyToken;
use daybook_service::identity::{Principal, Scope};
use daybook_service::sealing::KeyRing;
use uuid::Uuid;

use super::Progress;

/// Opens the tokens that a caller sends, and seals those that it gets. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Tokens {
    ring: KeyRing,
    tenant_id: Uuid,
    partition: i32,
    sees_positions: bool,
}

impl Tokens {
    /// The tokens of this caller.
    pub fn new(ring: &KeyRing, caller: &Principal) -> Self {
        Self {
            ring: ring.clone(),
            tenant_id: caller.tenant_id,
            partition: caller.tenant_partition,
            sees_positions: caller.scopes.contains(Scope::EventsRead),
        }
    }

    /// Opens the token that came in `field`.
    ///
    /// # Errors
    /// `VALIDATION_FAILED` for what is none of the caller's tenant.
    pub(crate) fn open(&self, text: &str, field: &'static str) -> Result<ConsistencyToken, ApiError> {
        let token = ConsistencyToken::open(&self.ring, self.tenant_id, text);
        let token = token.filter(|token| token.partition == self.partition);
        let message = "must be the consistency token of a receipt or an answer of yours";
        token.ok_or_else(|| ApiError::invalid_field(field, "INVALID_TOKEN", message))
    }

    /// The token for a position in an epoch. Whoever asks again and again must not see by it whether the log has moved.
    pub(super) fn seal(&self, position: u64, epoch: EpochId) -> String {
        let token = ConsistencyToken {
            partition: self.partition,
            position,
            epoch: epoch.number,
            generation: epoch.generation,
        };
        token.seal_afresh(&self.ring, self.tenant_id)
    }
}

#[cfg(test)]
impl Tokens {
    /// The tokens of somebody of this tenant and partition who has these scopes.
    pub(crate) fn of(tenant: u128, partition: i32, scopes: &[&str]) -> Self {
        let ring = KeyRing::new(&[daybook_service::key::SecretKey::DEVELOPMENT]);
        let caller = Principal {
            tenant_id: Uuid::from_u128(tenant),
            tenant_partition: partition,
            key_prefix: String::new(),
            name: String::new(),
            scopes: daybook_service::identity::ScopeSet::from_names(scopes.iter().copied()),
        };
        Self::new(&ring, &caller)
    }
}

/// How fresh an answer is, as its caller may know it.
#[derive(Clone, Debug)]
pub struct Staleness {
    /// A position that the answer includes, and everything before it.
    pub position: u64,
    /// How long ago, at the most, the oldest event was recorded that the answer may lack; 0 when it lacked none as of the
    /// last look at the log, a quarter of a second ago.
    pub lag_ms: u64,
    is_of_lost_history: bool,
    epoch: Option<EpochId>,
    tokens: Tokens,
}

impl Staleness {
    /// That of an answer that is read when so much is there.
    pub(crate) fn new(progress: Progress, tokens: Tokens) -> Self {
        let Progress {
            position,
            is_of_lost_history,
            lag_ms,
            epoch,
        } = progress;
        Self {
            position,
            lag_ms,
            is_of_lost_history,
            epoch,
            tokens,
        }
    }

    /// Notes the position of the event that last changed a row of the answer. Rows and checkpoint commit together, so what made
    /// the row is included, and all before it; but for rows of a history that is gone, whose positions are of other events.
    pub(crate) fn include(&mut self, row: u64) {
        if !self.is_of_lost_history {
            self.position = self.position.max(row);
        }
    }

    /// How fresh an answer is that has a part as fresh as this and another one as fresh as that.
    #[must_use]
    pub fn or_older(self, other: &Self) -> Self {
        Self {
            position: self.position.min(other.position),
            lag_ms: self.lag_ms.max(other.lag_ms),
            ..self
        }
    }

    /// The position, sealed; `None` before the first look at the log.
    pub fn token(&self) -> Option<String> {
        self.epoch.map(|epoch| self.tokens.seal(self.position, epoch))
    }

    /// The position, for a caller who may see it: it counts what all tenants write.
    pub fn plain_position(&self) -> Option<u64> {
        self.tokens.sees_positions.then_some(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_newer_than_the_last_look_unless_their_history_is_gone() {
        for (is_of_lost_history, position) in [(false, 120), (true, 0)] {
            let progress = Progress {
                is_of_lost_history,
                ..Progress::default()
            };
            let mut staleness = Staleness::new(progress, Tokens::of(7, 0, &[]));
            staleness.include(120);
            staleness.include(100);
            assert_eq!(staleness.position, position);
        }
    }
}
