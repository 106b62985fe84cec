//! The declaration of an aggregate's rejections: it gives the enum, its codes and its details, so that none of the
//! three can forget a variant or a value.

use std::fmt::Display;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a command was refused, with every value that the rule looked at. Declared with `rejections!`.
///
/// Its serialised form is remembered with idempotency keys.
pub trait Rejection: Display + Serialize + DeserializeOwned {
    /// Every rule: its code, and what it says.
    const RULES: &'static [(&'static str, &'static str)];

    /// The stable code of the rule that refused, as callers see it.
    fn code(&self) -> &'static str;

    /// Every dynamic value of the message, by name.
    fn details(&self) -> Vec<(&'static str, String)>;

    /// Whether it says that there is no such aggregate, which is not a rule: it may be true no longer when the
    /// same command comes again, so it is not remembered.
    fn is_not_found(&self) -> bool;

    /// Whether it says that the aggregate that the command would have begun is there already.
    fn is_already_there(&self) -> bool;
}

/// Declares an aggregate's `Rejection`: each variant with its message, its code and its dynamic values. The two
/// variants that every aggregate has are named first: there is none yet, and there is one already.
///
/// The serialised form is `{"code": "…", …values}`; it is remembered with idempotency keys, so a variant that
/// was ever released keeps its code and its fields.
macro_rules! rejections {
    (
        $(#[$meta:meta])*
        pub enum Rejection absent as $absent:ident, existing as $existing:ident {
            $(
                $(#[doc = $doc:literal])+
                #[error($($message:tt)+)]
                $variant:ident = $code:literal $({
                    $( $(#[$field_meta:meta])* $field:ident: $type:ty, )+
                })?,
            )+
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
        #[serde(tag = "code")]
        pub enum Rejection {
            $(
                $(#[doc = $doc])+
                #[error($($message)+)]
                #[serde(rename = $code)]
                $variant $({ $( $(#[$field_meta])* $field: $type, )+ })?,
            )+
        }

        impl $crate::rejection::Rejection for Rejection {
            const RULES: &'static [(&'static str, &'static str)] =
                &[$( ($code, concat!($($doc),+).trim_ascii()), )+];

            fn code(&self) -> &'static str {
                match self {
                    $( Self::$variant { .. } => $code, )+
                }
            }

            fn details(&self) -> Vec<(&'static str, String)> {
                match self {
                    $(
                        Self::$variant $({ $( $field, )+ })? => {
                            vec![$( $( (stringify!($field), $field.to_string()), )+ )?]
                        }
                    )+
                }
            }

            fn is_not_found(&self) -> bool {
                matches!(self, Self::$absent { .. })
            }

            fn is_already_there(&self) -> bool {
                matches!(self, Self::$existing { .. })
            }
        }
    };
}
