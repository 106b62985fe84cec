//! Moments on the wire.

use ::time::OffsetDateTime;
use prost_types::Timestamp;

const NANOS_PER_SECOND: i128 = 1_000_000_000;

/// A moment as a protobuf timestamp.
pub fn to_timestamp(moment: OffsetDateTime) -> Timestamp {
    Timestamp {
        seconds: moment.unix_timestamp(),
        nanos: moment.nanosecond().cast_signed(),
    }
}

/// A protobuf timestamp as a moment in UTC; `None` outside the years 1 to 9999, which RFC 3339 cannot write.
pub fn from_timestamp(timestamp: &Timestamp) -> Option<OffsetDateTime> {
    let nanos = u32::try_from(timestamp.nanos)
        .ok()
        .filter(|nanos| *nanos < 1_000_000_000)?;
    let total = i128::from(timestamp.seconds) * NANOS_PER_SECOND + i128::from(nanos);
    OffsetDateTime::from_unix_timestamp_nanos(total)
        .ok()
        .filter(|moment| (1..=9999).contains(&moment.year()))
}
