//! The names of things: ids that Daybook makes, and opaque ones that come from other systems.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use type_safe_id::{StaticType, TypeSafeId};
use uuid::Uuid;

use crate::text::deserialize_parsed;

/// The most characters in an id that another system made.
pub const FOREIGN_ID_CHARACTERS_MAX: usize = 64;
/// The most bytes in a caller's own reference for an order.
pub const REFERENCE_BYTES_MAX: usize = 64;
/// The most bytes in the name of a carrier.
pub const CARRIER_BYTES_MAX: usize = 64;
/// The most bytes in a carrier's tracking number.
pub const TRACKING_NUMBER_BYTES_MAX: usize = 64;
/// The most bytes in a reason.
pub const REASON_BYTES_MAX: usize = 512;

text!(
    /// A customer, as the customers' system knows them.
    CustomerId, "customer id", Code, Characters(FOREIGN_ID_CHARACTERS_MAX)
);
text!(
    /// An article.
    Sku, "sku", Code, Characters(FOREIGN_ID_CHARACTERS_MAX)
);
text!(
    /// A payment, as the payment system knows it.
    PaymentId, "payment id", Line, Characters(FOREIGN_ID_CHARACTERS_MAX)
);
text!(
    /// A shipment, unique within its order.
    ShipmentId, "shipment id", Line, Characters(FOREIGN_ID_CHARACTERS_MAX)
);
text!(
    /// A return, unique within its order.
    ReturnId, "return id", Line, Characters(FOREIGN_ID_CHARACTERS_MAX)
);
text!(
    /// A refund, as the payment system knows it, unique within its order.
    RefundId, "refund id", Line, Characters(FOREIGN_ID_CHARACTERS_MAX)
);
text!(
    /// The caller's own reference for an order.
    Reference, "reference", Line, Bytes(REFERENCE_BYTES_MAX)
);
text!(
    /// Who carries a shipment.
    Carrier, "carrier", Line, Bytes(CARRIER_BYTES_MAX)
);
text!(
    /// What the carrier calls a shipment.
    TrackingNumber, "tracking number", Line, Bytes(TRACKING_NUMBER_BYTES_MAX)
);
text!(
    /// Why something was done, in words.
    Reason, "reason", Prose, Bytes(REASON_BYTES_MAX)
);

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct OrderKind;

impl StaticType for OrderKind {
    const TYPE: &'static str = "ord";
}

/// An order: a uuid (version 7 when Daybook makes it), written as a TypeID
/// (`ord_01h455vb4pex5vsknk084sn02q`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OrderId(TypeSafeId<OrderKind>);

/// The string is not the TypeID of an order.
#[derive(Debug, thiserror::Error)]
#[error("order id must be a TypeID with the prefix \"ord\"")]
pub struct InvalidOrderId(#[source] type_safe_id::Error);

impl OrderId {
    /// The order with this uuid.
    pub fn from_uuid(uuid: Uuid) -> Self {
        Self(TypeSafeId::from_uuid(uuid))
    }

    /// The uuid inside.
    pub fn uuid(&self) -> Uuid {
        self.0.uuid()
    }
}

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for OrderId {
    type Err = InvalidOrderId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self).map_err(InvalidOrderId)
    }
}

impl Serialize for OrderId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for OrderId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserialize_parsed(deserializer)
    }
}
