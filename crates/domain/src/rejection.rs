//! What the rejections of every aggregate have in common: one declaration gives the enum, its codes and its
//! details, so that none of the three can forget a variant or a value.

/// Declares an aggregate's `Rejection`: each variant with its message, its code and its dynamic values.
///
/// The serialised form is `{"code": "…", …values}`; it is remembered with idempotency keys, so a variant that
/// was ever released keeps its code and its fields.
macro_rules! rejections {
    (
        $(#[$meta:meta])*
        pub enum Rejection {
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

        impl Rejection {
            /// Every rule: its code, and what it says.
            pub const RULES: &'static [(&'static str, &'static str)] =
                &[$( ($code, concat!($($doc),+).trim_ascii()), )+];

            /// The stable code of the rule that refused, as callers see it.
            pub fn code(&self) -> &'static str {
                match self {
                    $( Self::$variant { .. } => $code, )+
                }
            }

            /// Every dynamic value of the message, by name.
            pub fn details(&self) -> Vec<(&'static str, String)> {
                match self {
                    $(
                        Self::$variant $({ $( $field, )+ })? => {
                            vec![$( $( (stringify!($field), $field.to_string()), )+ )?]
                        }
                    )+
                }
            }
        }
    };
}
