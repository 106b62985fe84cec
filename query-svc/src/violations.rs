//! What is wrong with a request, collected: every part is checked, and all that is wrong is said at once.
//!
//! The transports read their own forms of a value ([`http`](crate::http) a query string, `grpc` a message) and collect here.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use daybook_domain::text::InvalidText;
use daybook_read_model::access_path::{self, AccessPath, NotServed, Scan, Sort};
use daybook_read_model::event_index::SEARCHABLE_BYTES_MAX;
use daybook_service::ApiError;
use daybook_service::error::{FieldViolation, cut};

use crate::freshness::{Demand, Tokens};
use crate::sparse::Fields;
use crate::streams::{TYPES_MAX, check_type};

/// How much of a value is quoted, in bytes.
const QUOTED_BYTES_MAX: usize = 64;

/// What is wrong with a request.
#[derive(Debug, Default)]
pub(crate) struct Violations(Vec<FieldViolation>);

impl Violations {
    /// Notes that a field is wrong.
    pub(crate) fn refuse(
        &mut self,
        pointer: impl Into<String>,
        code: &'static str,
        message: impl Into<String>,
    ) {
        self.0.push(FieldViolation::new(pointer, code, message));
    }

    /// An id of a kind.
    pub(crate) fn id<T: FromStr<Err: Display>>(&mut self, pointer: &str, text: &str) -> Option<T> {
        text.parse()
            .map_err(|invalid: T::Err| self.refuse(pointer, "INVALID_ID", invalid.to_string()))
            .ok()
    }

    /// A text that was read by the rules of its kind.
    pub(crate) fn text<T>(&mut self, pointer: &str, parsed: Result<T, InvalidText>) -> Option<T> {
        parsed
            .map_err(|invalid| self.refuse(pointer, invalid.code(), invalid.to_string()))
            .ok()
    }

    /// A text that events are found by: what is longer, or has control characters, no event has.
    pub(crate) fn searched(&mut self, pointer: &str, text: &str) -> Option<String> {
        let (code, message) = if text.is_empty() {
            ("EMPTY", "must not be empty".to_owned())
        } else if text.len() > SEARCHABLE_BYTES_MAX {
            (
                "TOO_LONG",
                format!("must have at most {SEARCHABLE_BYTES_MAX} bytes"),
            )
        } else if let Some(control) = text.chars().find(|character| character.is_control()) {
            ("FORBIDDEN_CHARACTER", format!("must not contain {control:?}"))
        } else {
            return Some(text.to_owned());
        };
        self.refuse(pointer, code, message);
        None
    }

    /// What a list is to be sorted by.
    pub(crate) fn sort<R>(&mut self, pointer: &str, text: &str, paths: &[AccessPath<R>]) -> Option<Sort> {
        let sort = Sort::parse(text);
        match sort.unknown(paths) {
            None => Some(sort),
            Some(unknown) => {
                let known = access_path::sort_names(paths).join(", ");
                let unknown = cut(unknown, QUOTED_BYTES_MAX);
                let message = format!(
                    "cannot be sorted by {unknown:?}; there are {known}, each with a - before it for descending"
                );
                self.refuse(pointer, "UNKNOWN_VALUE", message);
                None
            }
        }
    }

    /// The scan that answers a list. Where a part of the question is wrong already, the whole is not judged.
    pub(crate) fn scan<R>(
        &mut self,
        pointer: &str,
        scan: impl FnOnce() -> Result<Scan<R>, NotServed>,
    ) -> Option<Scan<R>> {
        if !self.0.is_empty() {
            return None;
        }
        scan()
            .map_err(|refused| self.refuse(pointer, "NOT_SERVED", refused.to_string()))
            .ok()
    }

    /// The members that the caller wants, out of those that there are.
    pub(crate) fn fields<'a>(
        &mut self,
        pointer: &str,
        names: impl Iterator<Item = &'a str>,
        known: &'static [&'static str],
    ) -> Option<Fields> {
        match Fields::parse(names, known) {
            Ok(fields) => Some(fields),
            Err(unknown) => {
                let unknown = cut(unknown, QUOTED_BYTES_MAX);
                let message = format!("there is no {unknown:?}; there are {}", known.join(", "));
                self.refuse(pointer, "UNKNOWN_VALUE", message);
                None
            }
        }
    }

    /// The types of events that the caller wants.
    pub(crate) fn event_types(&mut self, pointer: &str, types: &BTreeSet<String>) {
        if types.len() > TYPES_MAX {
            let message = format!("must be at most {TYPES_MAX} types");
            self.refuse(pointer, "TOO_MANY", message);
        }
        for wrong in types.iter().filter_map(|name| check_type(name).err()) {
            self.refuse(pointer, "INVALID", wrong);
        }
    }

    /// The freshness that is demanded by a consistency token.
    pub(crate) fn demand(
        &mut self,
        pointer: &'static str,
        token: String,
        tokens: Tokens,
        wait: Option<Duration>,
    ) -> Option<Demand> {
        match Demand::new(token, pointer, tokens, wait) {
            Ok(demand) => Some(demand),
            Err(refused) => {
                self.0.extend_from_slice(refused.violations());
                None
            }
        }
    }

    /// What was asked for, unless anything is wrong with it.
    ///
    /// # Errors
    /// `VALIDATION_FAILED`, with everything that is wrong.
    pub(crate) fn finish<T>(self, asked: Option<T>) -> Result<T, ApiError> {
        match asked {
            Some(asked) if self.0.is_empty() => Ok(asked),
            _ => Err(ApiError::validation(self.0)),
        }
    }
}
