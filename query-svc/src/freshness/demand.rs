//! What a caller demands: a consistency token, and how long it wants to wait for it.

use std::time::Duration;

use daybook_service::ApiError;
use daybook_service::consistency::ConsistencyToken;
use daybook_service::request;
use tokio::time::Instant;

/// How long is waited when the caller does not say.
pub(crate) const WAIT_DEFAULT: Duration = Duration::from_secs(2);

/// How long is waited at the most.
pub(crate) const WAIT_MAX: Duration = Duration::from_secs(10);

/// A position that the answer has to include, and until when it is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    token: ConsistencyToken,
    field: &'static str,
    until: Instant,
}

impl Demand {
    /// Reads the token that came in `field` from a caller whose tenant lives in `partition`. `asked` is how long the
    /// caller wants to wait, where it says so; its deadline holds in any case.
    ///
    /// # Errors
    /// `VALIDATION_FAILED` for what is no token, or one for the partition of other tenants.
    pub fn new(
        text: &str,
        field: &'static str,
        partition: i32,
        asked: Option<Duration>,
    ) -> Result<Self, ApiError> {
        let token = ConsistencyToken::decode(text)
            .filter(|token| token.partition == partition)
            .ok_or_else(|| {
                ApiError::invalid_field(
                    field,
                    "INVALID_TOKEN",
                    "must be the consistency token of a receipt of yours",
                )
            })?;
        let now = Instant::now();
        let left = request::deadline().map(|deadline| deadline.duration_since(now));
        Ok(Self {
            token,
            field,
            until: now + wait(asked, left),
        })
    }

    pub(super) fn token(&self) -> &ConsistencyToken {
        &self.token
    }

    pub(super) fn until(&self) -> Instant {
        self.until
    }

    /// The log was set back, and what the token stands for is not in it.
    pub(super) fn for_another_log(&self) -> ApiError {
        let message = "stands for what the log no longer has: it was set back since; read without it, then decide again";
        ApiError::invalid_field(self.field, "STALE_GENERATION", message)
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
    use uuid::Uuid;

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
    fn a_token_for_another_partition_or_none_at_all_is_refused() {
        let token = ConsistencyToken {
            partition: 1,
            position: 7,
            generation: Uuid::nil(),
        }
        .encode();
        assert!(Demand::new(&token, "consistency", 1, None).is_ok());
        for (text, partition) in [(token.as_str(), 0), ("", 1), ("nonsense", 1)] {
            let refused = Demand::new(text, "consistency", partition, None).expect_err("it is not valid");
            assert_eq!(refused.violations()[0].pointer, "consistency");
        }
    }
}
