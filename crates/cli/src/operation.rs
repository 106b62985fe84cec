//! Operations of the command service, watched to their end.

use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::sleep;

use crate::client::{self, Authorized};
use crate::failure::Failure;

/// How often an operation is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// How long the service may be away while an operation is watched, or what it needs is handed over: it survives a restart.
pub(crate) const ABSENCE_MAX: Duration = Duration::from_secs(60);

/// An answer with one thing in it.
#[derive(Deserialize)]
pub(crate) struct Answer<T> {
    /// The thing.
    pub(crate) data: T,
}

/// An operation as its verb needs it.
pub(crate) trait Operation: DeserializeOwned {
    /// Its id.
    fn id(&self) -> &str;

    /// Whether it has ended.
    fn has_ended(&self) -> bool;
}

/// Watches an operation to its end, and shows each look at it.
pub(crate) async fn watch<T: Operation>(
    connection: &Authorized,
    started: T,
    show: impl Fn(&T),
) -> Result<T, Failure> {
    let path = format!("/v1/operations/{}", started.id());
    let mut last_seen = Instant::now();
    let mut operation = started;
    while !operation.has_ended() {
        show(&operation);
        sleep(POLL_INTERVAL).await;
        match client::get::<Answer<T>>(connection.clone(), &path).await {
            Ok(answer) => {
                operation = answer.data;
                last_seen = Instant::now();
            }
            // The service may be restarting.
            Err(Failure::Refused(refusal)) if refusal.is_transient() && last_seen.elapsed() < ABSENCE_MAX => {
            }
            Err(failure) => return Err(failure),
        }
    }
    Ok(operation)
}
