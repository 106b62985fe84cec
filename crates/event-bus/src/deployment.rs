//! The name of a deployment, which keeps two of them apart in one NATS account.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;

/// The longest name, in characters.
const LENGTH_MAX: usize = 32;

/// The name of a deployment, with which its streams and subjects begin. It has only characters that both may hold, and
/// none that separates their parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deployment(Arc<str>);

/// The text cannot be a deployment's name.
#[derive(Debug, Error)]
#[error("a deployment's name is a lower-case letter and up to {} more letters and digits", LENGTH_MAX - 1)]
pub struct InvalidDeployment;

impl Default for Deployment {
    /// The name of a deployment that has the account for itself.
    fn default() -> Self {
        Self("daybook".into())
    }
}

impl FromStr for Deployment {
    type Err = InvalidDeployment;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let begins = text.starts_with(|c: char| c.is_ascii_lowercase());
        if begins && text.len() <= LENGTH_MAX && text.chars().all(is_plain) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidDeployment)
        }
    }
}

impl fmt::Display for Deployment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_token_of_lower_case_letters_and_digits() {
        let longest = "a".repeat(LENGTH_MAX);
        for name in ["daybook", "a", "eu2", &longest] {
            assert_eq!(name.parse::<Deployment>().expect(name).to_string(), name);
        }
        let too_long = "a".repeat(LENGTH_MAX + 1);
        for text in [
            "", "2eu", "Daybook", "day.book", "day_book", "*", ">", "a b", "ä", &too_long,
        ] {
            assert!(text.parse::<Deployment>().is_err(), "{text:?}");
        }
    }
}
