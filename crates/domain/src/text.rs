//! Validated text: short strings that cannot be empty, too long or made of characters that do not belong in
//! them.
//!
//! Each kind is a type of its own (see [`crate::ids`] and [`crate::address`]), so that a SKU is never taken
//! for a customer, and holding one means that it has been checked.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::{self, Deserializer, Visitor};

/// Why a string is not a valid text of its kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {problem}")]
pub struct InvalidText {
    /// The kind of text, in words ("payment id").
    pub kind: &'static str,
    /// The rule that it breaks.
    pub problem: TextProblem,
}

/// A rule that a text breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextProblem {
    /// There is nothing in it.
    #[error("must not be empty")]
    Empty,
    /// It is longer than its kind allows.
    #[error("must have at most {max} {unit}")]
    TooLong {
        /// The most that is allowed.
        max: usize,
        /// The unit of the count: "characters" or "bytes".
        unit: &'static str,
    },
    /// It has a character that its kind does not allow.
    #[error("must not contain {0:?}")]
    ForbiddenCharacter(char),
    /// It has the form of a code, but is not one of the standard's.
    #[error("is not a code of {0}")]
    NotInStandard(&'static str),
}

impl InvalidText {
    /// The stable code of the problem, for field violations.
    pub fn code(&self) -> &'static str {
        match self.problem {
            TextProblem::Empty => "EMPTY",
            TextProblem::TooLong { .. } => "TOO_LONG",
            TextProblem::ForbiddenCharacter(_) => "FORBIDDEN_CHARACTER",
            TextProblem::NotInStandard(_) => "UNKNOWN_CODE",
        }
    }
}

/// How long a text may be, and in which unit that is counted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Limit {
    /// Unicode scalar values.
    Characters(usize),
    /// Bytes of UTF-8.
    Bytes(usize),
}

impl Limit {
    fn check(self, text: &str) -> Result<(), TextProblem> {
        let (length, max, unit) = match self {
            Self::Characters(max) => (text.chars().count(), max, "characters"),
            Self::Bytes(max) => (text.len(), max, "bytes"),
        };
        if length > max {
            Err(TextProblem::TooLong { max, unit })
        } else {
            Ok(())
        }
    }
}

/// Which characters a text may be made of.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Alphabet {
    /// A–Z a–z 0–9 . _ : - : safe in a URL, a subject and a file name.
    Code,
    /// Anything but control characters.
    Line,
    /// Anything but control characters; line breaks and tabs are allowed.
    Prose,
}

impl Alphabet {
    fn allows(self, character: char) -> bool {
        match self {
            Self::Code => character.is_ascii_alphanumeric() || matches!(character, '.' | '_' | ':' | '-'),
            Self::Line => !character.is_control(),
            Self::Prose => !character.is_control() || matches!(character, '\n' | '\r' | '\t'),
        }
    }
}

/// Checks a text against the rules of its kind.
pub(crate) fn check(
    kind: &'static str,
    alphabet: Alphabet,
    limit: Limit,
    text: &str,
) -> Result<(), InvalidText> {
    check_rules(alphabet, limit, text).map_err(|problem| InvalidText { kind, problem })
}

fn check_rules(alphabet: Alphabet, limit: Limit, text: &str) -> Result<(), TextProblem> {
    if text.is_empty() {
        return Err(TextProblem::Empty);
    }
    limit.check(text)?;
    match text.chars().find(|character| !alphabet.allows(*character)) {
        Some(forbidden) => Err(TextProblem::ForbiddenCharacter(forbidden)),
        None => Ok(()),
    }
}

/// Reads a value from its text form without copying the text first.
pub(crate) fn deserialize_parsed<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: fmt::Display>,
{
    struct Parse<T>(PhantomData<T>);

    impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for Parse<T> {
        type Value = T;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a string")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
            text.parse().map_err(E::custom)
        }
    }

    deserializer.deserialize_str(Parse(PhantomData))
}

/// Declares a kind of validated text.
macro_rules! text {
    ($(#[$meta:meta])* $name:ident, $kind:literal, $alphabet:ident, $unit:ident($max:expr)) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Deserialize)]
        #[serde(try_from = "Box<str>")]
        pub struct $name(Box<str>);

        impl $name {
            /// Takes a string that obeys the rules of its kind.
            pub fn parse(text: &str) -> Result<Self, $crate::text::InvalidText> {
                text.to_owned().into_boxed_str().try_into()
            }

            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<Box<str>> for $name {
            type Error = $crate::text::InvalidText;

            fn try_from(text: Box<str>) -> Result<Self, Self::Error> {
                use $crate::text::{Alphabet, Limit, check};
                check($kind, Alphabet::$alphabet, Limit::$unit($max), &text)?;
                Ok(Self(text))
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::text::InvalidText;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::parse(text)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Debug::fmt(&self.0, f)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
    };
}
