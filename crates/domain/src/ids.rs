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
    /// The carrier of a shipment.
    Carrier, "carrier", Line, Bytes(CARRIER_BYTES_MAX)
);
text!(
    /// The carrier's number of a shipment.
    TrackingNumber, "tracking number", Line, Bytes(TRACKING_NUMBER_BYTES_MAX)
);
text!(
    /// Why something was done, in words.
    Reason, "reason", Prose, Bytes(REASON_BYTES_MAX)
);

/// Declares the id of a kind of aggregate: a uuid (version 7 when Daybook makes it), written as a TypeID.
macro_rules! type_id {
    ($(#[$meta:meta])* $name:ident, $tag:ident, $what:literal, $prefix:literal) => {
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        struct $tag;

        impl StaticType for $tag {
            const TYPE: &'static str = $prefix;
        }

        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(TypeSafeId<$tag>);

        impl $name {
            /// The one with this uuid.
            pub fn from_uuid(uuid: Uuid) -> Self {
                Self(TypeSafeId::from_uuid(uuid))
            }

            /// The uuid inside.
            pub fn uuid(&self) -> Uuid {
                self.0.uuid()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self).map_err(|source| InvalidId {
                    what: $what,
                    prefix: $prefix,
                    source,
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserialize_parsed(deserializer)
            }
        }
    };
}

/// The string is not the TypeID of such an aggregate.
#[derive(Debug, thiserror::Error)]
#[error("{what} id must be a TypeID with the prefix {prefix:?}")]
pub struct InvalidId {
    what: &'static str,
    prefix: &'static str,
    source: type_safe_id::Error,
}

type_id!(
    /// An order (`ord_01h455vb4pex5vsknk084sn02q`).
    OrderId, OrderKind, "order", "ord"
);
type_id!(
    /// A stock item (`stk_4dnhev0qs29t2b6nk3xhh5c1nq`). It follows from the article: see [`StockItemId::of`].
    StockItemId, StockItemKind, "stock item", "stk"
);

/// The namespace of the stock item ids that follow from articles. It never changes, or articles would have second items.
const STOCK_ITEM_NAMESPACE: Uuid = Uuid::from_u128(0x7d1e_6c1a_52b4_4e0e_9d3a_8c5f_0b7a_2e64);

impl StockItemId {
    /// The stock item of an article, always the same: so no article has two, and whoever knows the article finds its item
    /// without looking it up.
    pub fn of(sku: &Sku) -> Self {
        Self::from_uuid(Uuid::new_v5(&STOCK_ITEM_NAMESPACE, sku.as_str().as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{InvalidText, TextProblem};

    const TYPE_ID: &str = "ord_01h455vb4pex5vsknk084sn02q";

    fn problem<T>(parsed: Result<T, InvalidText>) -> Option<TextProblem> {
        parsed.err().map(|error| error.problem)
    }

    #[test]
    fn an_order_id_is_written_as_its_type_id_everywhere() {
        let id: OrderId = TYPE_ID.parse().expect("a valid TypeID");
        assert_eq!(OrderId::from_uuid(id.uuid()), id);
        assert_eq!(id.to_string(), TYPE_ID);
        assert_eq!(
            serde_json::to_string(&id).expect("plain data"),
            format!("\"{TYPE_ID}\"")
        );
        assert_eq!(
            serde_json::from_str::<OrderId>(&format!("\"{TYPE_ID}\"")).expect("plain data"),
            id
        );
    }

    #[test]
    fn what_is_not_the_type_id_of_an_order_is_refused() {
        for text in [
            "",
            "ord",
            "ord_",
            "01h455vb4pex5vsknk084sn02q",
            "inv_01h455vb4pex5vsknk084sn02q",
            "ORD_01h455vb4pex5vsknk084sn02q",
            "ord_01h455vb4pex5vsknk084sn02",
            "ord_01h455vb4pex5vsknk084sn02qq",
            "ord_01H455VB4PEX5VSKNK084SN02Q",
            "ord_81h455vb4pex5vsknk084sn02q",
            "ord_0000000000000000000000000é",
        ] {
            assert!(text.parse::<OrderId>().is_err(), "{text}");
        }
    }

    #[test]
    fn codes_take_only_what_is_safe_everywhere() {
        assert!(CustomerId::parse("AZaz09._:-").is_ok());
        for (text, character) in [
            ("a b", ' '),
            ("a/b", '/'),
            ("ä", 'ä'),
            ("a\n", '\n'),
            ("a\0", '\0'),
        ] {
            assert_eq!(
                problem(Sku::parse(text)),
                Some(TextProblem::ForbiddenCharacter(character))
            );
        }
    }

    #[test]
    fn texts_take_any_script_but_no_control_characters() {
        assert!(PaymentId::parse("Überweisung 支払い/7").is_ok());
        assert_eq!(
            problem(Reference::parse("a\nb")),
            Some(TextProblem::ForbiddenCharacter('\n'))
        );
        assert!(Reason::parse("two\r\n\tlines").is_ok());
        assert_eq!(
            problem(Reason::parse("a\0b")),
            Some(TextProblem::ForbiddenCharacter('\0'))
        );
    }

    #[test]
    fn no_text_is_empty() {
        assert_eq!(problem(CustomerId::parse("")), Some(TextProblem::Empty));
        assert_eq!(problem(Reason::parse("")), Some(TextProblem::Empty));
    }

    #[test]
    fn ids_are_limited_in_characters_and_texts_in_bytes() {
        assert!(PaymentId::parse(&"é".repeat(64)).is_ok());
        let too_long = TextProblem::TooLong {
            max: 64,
            unit: "characters",
        };
        assert_eq!(problem(PaymentId::parse(&"é".repeat(65))), Some(too_long));
        assert!(Reason::parse(&"é".repeat(256)).is_ok());
        let too_long = TextProblem::TooLong {
            max: 512,
            unit: "bytes",
        };
        assert_eq!(problem(Reason::parse(&"é".repeat(257))), Some(too_long));
    }

    #[test]
    fn an_invalid_text_says_what_it_was_meant_to_be() {
        let error = CustomerId::parse("a b").expect_err("a space is not allowed");
        assert_eq!(error.to_string(), "customer id must not contain ' '");
        assert_eq!(error.code(), "FORBIDDEN_CHARACTER");
    }
}
