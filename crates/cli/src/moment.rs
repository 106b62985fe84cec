//! Moments as people write them.

use std::time::Duration;

use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

/// A point in the life of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    /// After this many of its events.
    Version(u64),
    /// With all that had been recorded by then.
    Time(OffsetDateTime),
    /// With all that had been recorded this long ago.
    Ago(Duration),
}

impl Point {
    /// The point as the query service takes it; `None` when it is before all time.
    pub(crate) fn as_of(self, now: OffsetDateTime) -> Option<String> {
        let moment = match self {
            Self::Version(version) => return Some(version.to_string()),
            Self::Time(moment) => moment,
            Self::Ago(ago) => now.checked_sub(ago.try_into().ok()?)?,
        };
        moment.checked_to_offset(UtcOffset::UTC)?.format(&Rfc3339).ok()
    }
}

/// A point: `v17`, `2026-11-01T00:00Z` (seconds may be left out), or how long ago: `2h`.
pub(crate) fn parse_point(text: &str) -> Result<Point, String> {
    let wrong = || {
        format!("`{text}` is not a version (v17), a time (2026-11-01T00:00:00Z) or how long ago (2h, 30m)")
    };
    if let Some(version) = text.strip_prefix('v') {
        let version = version.parse().ok().filter(|version| *version >= 1);
        return version.map(Point::Version).ok_or_else(wrong);
    }
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(Point::Ago(ago));
    }
    parse_time(text).map(Point::Time).ok_or_else(wrong)
}

/// A moment: `2026-11-01T00:00Z` (seconds may be left out), or how long ago: `2h`.
pub(crate) fn parse_moment(text: &str) -> Result<Point, String> {
    let point = parse_point(text).ok();
    let moment = point.filter(|point| !matches!(point, Point::Version(_)));
    moment.ok_or_else(|| format!("`{text}` is not a time (2026-11-01T00:00:00Z) or how long ago (2h, 30m)"))
}

/// RFC 3339, or the same without seconds.
fn parse_time(text: &str) -> Option<OffsetDateTime> {
    let parse = |text: &str| OffsetDateTime::parse(text, &Rfc3339).ok();
    parse(text).or_else(|| {
        let (minutes, offset) = text.split_at_checked("2026-11-01T00:00".len())?;
        parse(&format!("{minutes}:00{offset}"))
    })
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_point_is_a_version_a_time_or_how_long_ago() {
        let midnight = datetime!(2026-11-01 00:00 UTC);
        for (text, point) in [
            ("v17", Point::Version(17)),
            ("2026-11-01T00:00:00Z", Point::Time(midnight)),
            ("2026-11-01T00:00Z", Point::Time(midnight)),
            ("2026-11-01T02:00+02:00", Point::Time(midnight)),
            (
                "2026-11-01T00:00:00.250Z",
                Point::Time(midnight + Duration::from_millis(250)),
            ),
            ("2h", Point::Ago(Duration::from_secs(7_200))),
            ("1h30m", Point::Ago(Duration::from_secs(5_400))),
            ("7d", Point::Ago(Duration::from_secs(604_800))),
        ] {
            assert_eq!(parse_point(text), Ok(point), "{text}");
        }
    }

    #[test]
    fn what_is_no_point_is_refused() {
        for text in [
            "",
            "v",
            "v0",
            "v-1",
            "17",
            "2x",
            "-2h",
            "2026-11-01",
            "2026-11-01T00:00",
            "2026-13-01T00:00Z",
            "yesterday",
        ] {
            assert!(parse_point(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_version_is_no_moment() {
        assert!(parse_moment("v17").is_err());
        assert_eq!(parse_moment("2h"), parse_point("2h"));
    }

    #[test]
    fn how_long_ago_is_counted_from_now() {
        let now = datetime!(2026-11-01 12:00 UTC);
        let two_hours = Point::Ago(Duration::from_secs(7_200));
        assert_eq!(two_hours.as_of(now).as_deref(), Some("2026-11-01T10:00:00Z"));
        assert_eq!(Point::Ago(Duration::MAX).as_of(now), None);
    }

    #[test]
    fn a_point_can_be_part_of_an_address() {
        let now = OffsetDateTime::UNIX_EPOCH;
        let abroad = Point::Time(datetime!(2026-11-01 02:00 +2));
        assert_eq!(abroad.as_of(now).as_deref(), Some("2026-11-01T00:00:00Z"));
        assert_eq!(Point::Version(17).as_of(now).as_deref(), Some("17"));
    }
}
