//! Violations of a request, field by field.

use std::fmt::Display;
use std::str::FromStr;

use daybook_domain::text::InvalidText;

/// One thing that is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The JSON pointer of the field (`/lines/0/quantity`).
    pub pointer: String,
    /// A stable code ("TOO_LONG").
    pub code: &'static str,
    /// What is wrong, in words.
    pub message: String,
}

/// All that is wrong with a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Violations(Vec<Violation>);

impl Violations {
    /// What was found, in the order of the fields.
    pub fn into_vec(self) -> Vec<Violation> {
        self.0
    }

    /// Notes a violation.
    pub fn add(&mut self, pointer: impl Into<String>, code: &'static str, message: impl Display) {
        self.0.push(Violation {
            pointer: pointer.into(),
            code,
            message: message.to_string(),
        });
    }

    /// Puts what was found before in front of another result's violations; refuses when either found something.
    pub fn join<T>(mut self, result: Result<T, Self>) -> Result<T, Self> {
        match result {
            Ok(value) => self.finish(Some(value)),
            Err(found) => {
                self.0.extend(found.0);
                Err(self)
            }
        }
    }

    /// Passes a good value on and notes a bad one.
    pub(crate) fn text<T>(
        &mut self,
        pointer: impl Into<String>,
        parsed: Result<T, InvalidText>,
    ) -> Option<T> {
        parsed
            .map_err(|invalid| self.add(pointer, invalid.code(), &invalid))
            .ok()
    }

    /// Reads an id of an aggregate.
    pub(crate) fn id<T: FromStr<Err: Display>>(&mut self, pointer: &str, text: &str) -> Option<T> {
        let parsed = text.parse();
        parsed
            .map_err(|invalid| self.add(pointer, "INVALID_ID", invalid))
            .ok()
    }

    /// Reads a quantity, which is from 1 to `max`.
    pub(crate) fn quantity(&mut self, pointer: &str, quantity: u32, max: u32) -> Option<u32> {
        if (1..=max).contains(&quantity) {
            return Some(quantity);
        }
        let message = format_args!("a quantity must be 1 to {max}, not {quantity}");
        self.add(pointer, "OUT_OF_RANGE", message);
        None
    }

    /// Like [`Self::text`] for a field that may be left empty.
    pub(crate) fn optional_text<T>(
        &mut self,
        pointer: impl Into<String>,
        text: &str,
        parse: fn(&str) -> Result<T, InvalidText>,
    ) -> Option<T> {
        if text.is_empty() {
            return None;
        }
        self.text(pointer, parse(text))
    }

    /// Refuses when anything was noted; else every value that was asked for is there.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, Self> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(self),
        }
    }
}
