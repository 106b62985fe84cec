//! Waiting for a level: look, and look again, until it is reached or the deadline is over.

use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;

/// How long a level may take to be reached on a loaded machine.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// Looks until it is true.
///
/// # Errors
/// When a look fails, or the deadline is over; `what` is named then.
pub async fn until(what: &str, mut is_true: impl AsyncFnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    value(what, async || Ok(is_true().await?.then_some(()))).await
}

/// Looks until `look` gives a value.
///
/// # Errors
/// When a look fails, or the deadline is over; `what` is named then.
pub async fn value<T>(
    what: &str,
    mut look: impl AsyncFnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look().await? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            bail!("still not true after {DEADLINE:?}: {what}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}
