//! How the read models spell an order's status: as the contract does, in capitals.

use daybook_domain::order::Status;
use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

/// The name of a status in rows, documents and answers ("PARTIALLY_SHIPPED").
pub fn name(status: Status) -> &'static str {
    match status {
        Status::Placed => "PLACED",
        Status::Confirmed => "CONFIRMED",
        Status::Rejected => "REJECTED",
        Status::PartiallyShipped => "PARTIALLY_SHIPPED",
        Status::Shipped => "SHIPPED",
        Status::Delivered => "DELIVERED",
        Status::Cancelled => "CANCELLED",
    }
}

/// The status of this name.
pub fn parse(text: &str) -> Option<Status> {
    Status::ALL.into_iter().find(|status| name(*status) == text)
}

/// For `#[serde(with = "status")]`.
pub(crate) fn serialize<S: Serializer>(status: &Status, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(name(*status))
}

/// For `#[serde(with = "status")]`.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Status, D::Error> {
    let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
    parse(&text).ok_or_else(|| D::Error::custom(format_args!("{text:?} is not the status of an order")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_is_found_by_its_name() {
        for status in Status::ALL {
            assert_eq!(parse(name(status)), Some(status));
        }
        assert_eq!(parse("placed"), None);
    }
}
