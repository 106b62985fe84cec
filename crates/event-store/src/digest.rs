//! Digests of events, for whoever got them some other way than from the log and wants to know whether they are what it
//! holds. The log makes the same with `event_store.digest` (`migrations/event-store/0006_reads.sql`).

use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;
use time::macros::datetime;

use crate::RecordedEvent;

/// A SHA-256.
pub type Digest = [u8; 32];

/// Numbers of Postgres's types, which are the same everywhere.
const INT8: u32 = 20;
const INT4: u32 = 23;
const TEXT: u32 = 25;
const JSON: u32 = 114;
const TIMESTAMPTZ: u32 = 1_184;
const UUID: u32 = 2_950;

/// From where Postgres counts the microseconds of a moment.
const POSTGRES_EPOCH: OffsetDateTime = datetime!(2000-01-01 00:00 UTC);

impl RecordedEvent {
    /// The digest of all that the event is but its place: of a row as Postgres sends it (`record_send`), where each value
    /// comes behind its type and length. So no two events look alike.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let recorded_at = (self.recorded_at - POSTGRES_EPOCH).whole_microseconds() as i64;
        let fields: [(u32, &[u8]); 10] = [
            (UUID, self.event_id.as_bytes()),
            (UUID, self.tenant_id.as_bytes()),
            (TEXT, self.category.as_bytes()),
            (TEXT, self.stream_id.as_bytes()),
            (INT8, &self.stream_version.to_be_bytes()),
            (TEXT, self.event_type.as_bytes()),
            (INT4, &self.schema_version.to_be_bytes()),
            (TIMESTAMPTZ, &recorded_at.to_be_bytes()),
            (JSON, self.metadata.as_bytes()),
            (JSON, self.payload.as_bytes()),
        ];
        let length = |count: usize| u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes();
        let mut row = Sha256::new_with_prefix(length(fields.len()));
        for (kind, value) in fields {
            row.update(kind.to_be_bytes());
            row.update(length(value.len()));
            row.update(value);
        }
        row.finalize().into()
    }
}

/// The digest of a range of events: of their digests, in the order of their positions.
#[must_use]
pub fn digest_of_all<'a>(events: impl IntoIterator<Item = &'a Digest>) -> Digest {
    let digests = events.into_iter();
    let all = digests.fold(Sha256::new(), |all, digest| all.chain_update(digest));
    all.finalize().into()
}
