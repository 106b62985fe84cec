//! What a caller demands: a consistency token, and how long it wants to wait for it.

use std::time::Duration;

use daybook_event_store::EpochId;
use daybook_service::ApiError;
use daybook_service::consistency::ConsistencyToken;
use daybook_service::request;
use tokio::time::Instant;

use super::Tokens;

/// How long is waited when the caller does not say.
pub(crate) const WAIT_DEFAULT: Duration = Duration::from_secs(2);

/// How long is waited at the most.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(10);

/// A position that the answer has to include, and until when it is waited for.
#[derive(Clone, Debug)]
pub struct Demand {
    token: ConsistencyToken,
    /// As it came.
    text: String,
    made_at: Instant,
    until: Instant,
    tokens: Tokens,
}

impl Demand {
    /// Reads the token that came in `field`. `asked` is how long the caller wants to wait, where it says so; its deadline
    /// holds in any case.
    ///
    /// # Errors
    /// `VALIDATION_FAILED` for what is no token of the caller's tenant.
    pub fn new(
        text: String,
        field: &'static str,
        tokens: Tokens,
        asked: Option<Duration>,
    ) -> Result<Self, ApiError> {
        let token = tokens.open(&text, field)?;
        let now = Instant::now();
        let left = request::deadline().map(|deadline| deadline.duration_since(now));
        Ok(Self {
            token,
            text,
            made_at: now,
            until: now + wait(asked, left),
            tokens,
        })
    }

    pub(super) fn token(&self) -> &ConsistencyToken {
        &self.token
    }

    /// What is read later is read after the token was given out.
    pub(super) fn made_at(&self) -> Instant {
        self.made_at
    }

    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// The read model stands at `position` of this epoch, and the time is up.
    pub(super) fn is_behind(&self, position: u64, epoch: EpochId) -> ApiError {
        ApiError::read_model_behind(self.tokens.seal(position, epoch), self.text.clone())
    }
}

/// A tenth of what is left before the deadline is kept, so that the caller is told the position of the read
/// model instead of giving up on us.
fn wait(asked: Option<Duration>, left: Option<Duration>) -> Duration {
    let usable = left.map(|left| left - left / 10);
    let wished = asked.or(usable).unwrap_or(WAIT_DEFAULT);
    wished.min(usable.unwrap_or(WAIT_MAX)).min(WAIT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn waits_are_as_long_as_asked_within_the_limit_and_the_deadline() {
        assert_eq!(wait(None, None), WAIT_DEFAULT);
        assert_eq!(wait(Some(5 * SECOND), None), 5 * SECOND);
        assert_eq!(wait(Some(60 * SECOND), None), WAIT_MAX);
        assert_eq!(wait(Some(60 * SECOND), Some(60 * SECOND)), WAIT_MAX);
        assert_eq!(wait(None, Some(SECOND)), SECOND * 9 / 10);
        assert_eq!(wait(Some(5 * SECOND), Some(SECOND)), SECOND * 9 / 10);
        assert_eq!(wait(Some(SECOND / 2), Some(SECOND)), SECOND / 2);
        assert_eq!(wait(None, Some(Duration::ZERO)), Duration::ZERO);
    }

    #[test]
    fn a_token_of_another_tenant_or_partition_or_none_at_all_is_refused_in_the_same_words() {
        let demand = |text: &str, tenant, partition| {
            Demand::new(
                text.to_owned(),
                "consistency",
                Tokens::of(tenant, partition, &[]),
                None,
            )
        };
        let token = Tokens::of(7, 1, &[]).seal(7, EpochId::default());
        assert!(demand(&token, 7, 1).is_ok());
        let foreign = "AQAAAAAAAAAAAAAABw";
        for (text, tenant, partition) in [
            (token.as_str(), 8, 1),
            (&token, 7, 0),
            ("", 7, 1),
            (foreign, 7, 1),
        ] {
            let refused = demand(text, tenant, partition).expect_err("it is not valid");
            let violations = refused.violations();
            assert_eq!(
                (violations[0].pointer.as_str(), violations[0].code),
                ("consistency", "INVALID_TOKEN")
            );
        }
    }
}
