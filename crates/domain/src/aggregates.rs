//! Every aggregate, listed once. Whatever has to do with all of them (decoding any event, rules, histories, samples) asks
//! this list, so that nothing else has to name a new one.

use crate::aggregate::Aggregate;
use crate::event::{DecodeError, Event as _};
use crate::rejection::Rejection as _;

/// A kind of aggregate, as those see it who serve all kinds alike.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// The category of its streams ("order").
    pub category: &'static str,
    /// Many of them, in addresses ("orders").
    pub plural: &'static str,
    /// Every event type with its current schema version.
    pub schemas: &'static [(&'static str, u32)],
    /// Every rule: its code, and what it says.
    pub rules: &'static [(&'static str, &'static str)],
    check_id: fn(&str) -> Result<(), String>,
}

impl Kind {
    const fn of<A: Aggregate>() -> Self {
        Self {
            category: A::CATEGORY,
            plural: A::PLURAL,
            schemas: A::Event::SCHEMAS,
            rules: A::Rejection::RULES,
            check_id: |text| {
                let parsed = text.parse::<A::Id>();
                parsed.map(drop).map_err(|invalid| invalid.to_string())
            },
        }
    }

    /// The kind whose streams have this category; `None` when this program does not know it.
    pub fn by_category(category: &str) -> Option<&'static Self> {
        AGGREGATES.iter().find(|kind| kind.category == category)
    }

    /// The kind that is called this in addresses.
    pub fn by_plural(plural: &str) -> Option<&'static Self> {
        AGGREGATES.iter().find(|kind| kind.plural == plural)
    }

    /// The kind whose ids look like this one.
    pub fn by_id(id: &str) -> Option<&'static Self> {
        AGGREGATES.iter().find(|kind| kind.check_id(id).is_ok())
    }

    /// Checks that this is an id of this kind.
    ///
    /// # Errors
    /// What an id of this kind has to be.
    pub fn check_id(&self, id: &str) -> Result<(), String> {
        (self.check_id)(id)
    }
}

/// The rules of every aggregate: the code of each, and what it says.
pub fn rules() -> impl Iterator<Item = (&'static str, &'static str)> {
    AGGREGATES.iter().flat_map(|kind| kind.rules).copied()
}

/// Declares the list: a variant's name for its events, and its module. It begins with a `$` for the macro that it declares.
macro_rules! aggregates {
    ($dollar:tt $($(#[$meta:meta])* $name:ident = $module:ident;)+) => {
        /// Every kind of aggregate.
        pub const AGGREGATES: &[Kind] = &[$(Kind::of::<crate::$module::State>()),+];

        /// An event of any aggregate, one variant for each kind. Who handles some kinds must let the others pass.
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum AnyEvent {
            $($(#[$meta])* $name(crate::$module::Event),)+
        }

        impl AnyEvent {
            /// Reads a stored event of any kind and version; `None` when this program does not know the category.
            ///
            /// # Errors
            /// When it does not know the type or the version, or the payload is not what they say.
            pub fn decode(
                category: &str,
                event_type: &str,
                schema_version: u32,
                payload: &str,
            ) -> Option<Result<Self, DecodeError>> {
                match category {
                    $(crate::$module::State::CATEGORY => {
                        let decoded = crate::$module::Event::decode(event_type, schema_version, payload);
                        Some(decoded.map(Self::$name))
                    })+
                    _ => None,
                }
            }

            /// The dotted, past-tense name under which the event is stored ("order.placed").
            pub fn event_type(&self) -> &'static str {
                match self {
                    $(Self::$name(event) => event.event_type(),)+
                }
            }

            /// The event as it would be stored now: the version of its schema, and its payload.
            pub fn encode(&self) -> (u32, String) {
                match self {
                    $(Self::$name(event) => (event.schema_version(), event.encode()),)+
                }
            }
        }

        /// An array with the value of an expression for each aggregate, in which its state has the name that is given:
        /// `each_aggregate!(A => A::CATEGORY)`.
        #[macro_export]
        macro_rules! each_aggregate {
            ($dollar state:ident => $dollar each:expr) => {
                [$({
                    type $dollar state = $crate::$module::State;
                    $dollar each
                }),+]
            };
        }
    };
}

aggregates! { $
    /// Something happened to an order.
    Order = order;
    /// Something happened to a stock item.
    Stock = stock;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_aggregates_share_a_category_a_plural_or_an_event_type() {
        let distinct = |names: Vec<&str>| names.len() == names.iter().collect::<BTreeSet<_>>().len();
        assert!(distinct(AGGREGATES.iter().map(|kind| kind.category).collect()));
        assert!(distinct(AGGREGATES.iter().map(|kind| kind.plural).collect()));
        let schemas = AGGREGATES.iter().flat_map(|kind| kind.schemas);
        assert!(distinct(schemas.map(|(event_type, _)| *event_type).collect()));
    }

    #[test]
    fn no_two_rules_share_a_code() {
        let rules = AGGREGATES.iter().flat_map(|kind| kind.rules);
        let codes: Vec<&str> = rules.map(|(code, _)| *code).collect();
        assert_eq!(codes.len(), codes.iter().collect::<BTreeSet<_>>().len());
    }

    /// `GET /problems` and `daybook explain` show what is written above a rule's variant.
    #[test]
    fn what_a_rule_says_is_plain_text_for_callers() {
        let rules = AGGREGATES.iter().flat_map(|kind| kind.rules);
        let marked: Vec<_> = rules.filter(|(_, text)| text.contains(['`', '[', '*'])).collect();
        assert!(marked.is_empty(), "{marked:?}");
    }

    #[test]
    fn event_types_begin_with_their_category() {
        for kind in AGGREGATES {
            let prefix = format!("{}.", kind.category);
            assert!(
                kind.schemas
                    .iter()
                    .all(|(event_type, _)| event_type.starts_with(&prefix))
            );
        }
    }

    #[test]
    fn a_kind_is_found_by_its_category_its_plural_and_its_ids() {
        let category = |kind: Option<&Kind>| kind.map(|kind| kind.category);
        assert_eq!(category(Kind::by_category("order")), Some("order"));
        assert_eq!(category(Kind::by_plural("orders")), Some("order"));
        assert_eq!(
            category(Kind::by_id("ord_01h455vb4pex5vsknk084sn02q")),
            Some("order")
        );
        assert_eq!(category(Kind::by_id("inv_01h455vb4pex5vsknk084sn02q")), None);
        assert_eq!(category(Kind::by_category("weather")), None);
    }
}
