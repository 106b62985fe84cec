//! The fields of requests: every one is checked, and all that is wrong is said at once.

use std::fmt::Display;
use std::str::FromStr;

use daybook_domain::ids::CustomerId;
use daybook_domain::order::Status;
use daybook_domain::text::InvalidText;
use daybook_proto::common::v1::Freshness;
use daybook_proto::convert::from_timestamp;
use daybook_proto::orders::v1::OrderStatus;
use daybook_proto::orders::v1::get_order_request::AsOf as WireAsOf;
use daybook_read_model::order_list::Sort;
use daybook_service::ApiError;
use daybook_service::error::FieldViolation;
use prost_types::Timestamp;
use time::OffsetDateTime;

use super::wire;
use crate::freshness::{Demand, Tokens};
use crate::reads::list::{SORT_DEFAULT, SORTS, sort_by_name};
use crate::reads::order::AsOf;
use crate::reads::{LIMIT_DEFAULT, LIMIT_MAX};

/// What is wrong with a request.
#[derive(Debug, Default)]
pub(super) struct Fields(Vec<FieldViolation>);

impl Fields {
    pub(super) fn id<T: FromStr<Err: Display>>(&mut self, pointer: &'static str, text: &str) -> Option<T> {
        let parsed = text.parse();
        parsed
            .map_err(|invalid: T::Err| self.refuse(pointer, "INVALID_ID", invalid.to_string()))
            .ok()
    }

    pub(super) fn customer_id(&mut self, text: &str) -> Option<CustomerId> {
        self.text("/customer_id", CustomerId::parse(text))
    }

    /// A customer's id that may be left empty.
    pub(super) fn customer_filter(&mut self, text: &str) -> Option<CustomerId> {
        if text.is_empty() {
            None
        } else {
            self.customer_id(text)
        }
    }

    pub(super) fn page_size(&mut self, size: u32) -> u32 {
        match size {
            0 => LIMIT_DEFAULT,
            1..=LIMIT_MAX => size,
            _ => {
                self.refuse(
                    "/page_size",
                    "OUT_OF_RANGE",
                    format!("must be at most {LIMIT_MAX}"),
                );
                LIMIT_MAX
            }
        }
    }

    pub(super) fn statuses(&mut self, numbers: &[i32]) -> Vec<Status> {
        let mut statuses = Vec::with_capacity(numbers.len());
        for (index, number) in numbers.iter().enumerate() {
            match OrderStatus::try_from(*number).ok().and_then(wire::from_status) {
                Some(known) if statuses.contains(&known) => {}
                Some(known) => statuses.push(known),
                None => self.refuse(
                    format!("/statuses/{index}"),
                    "UNKNOWN_VALUE",
                    "is not the status of an order",
                ),
            }
        }
        statuses
    }

    pub(super) fn time(
        &mut self,
        pointer: &'static str,
        timestamp: Option<&Timestamp>,
    ) -> Option<OffsetDateTime> {
        let timestamp = timestamp?;
        let moment = from_timestamp(timestamp);
        if moment.is_none() {
            self.refuse(pointer, "INVALID_TIME", "must be a time in the years 1 to 9999");
        }
        moment
    }

    pub(super) fn order_by(&mut self, name: &str) -> Sort {
        if name.is_empty() {
            return SORT_DEFAULT;
        }
        sort_by_name(name).unwrap_or_else(|| {
            self.refuse("/order_by", "UNKNOWN_VALUE", format!("must be {SORTS}"));
            SORT_DEFAULT
        })
    }

    pub(super) fn as_of(&mut self, as_of: Option<&WireAsOf>) -> Option<AsOf> {
        match as_of? {
            WireAsOf::AsOfVersion(0) => {
                self.refuse("/as_of_version", "OUT_OF_RANGE", "must be at least 1");
                None
            }
            WireAsOf::AsOfVersion(version) => Some(AsOf::Version(*version)),
            WireAsOf::AsOfTime(timestamp) => self.time("/as_of_time", Some(timestamp)).map(AsOf::Time),
        }
    }

    /// The freshness that is demanded. How long is waited follows from the caller's deadline.
    pub(super) fn demand(&mut self, freshness: Option<&Freshness>, tokens: Tokens) -> Option<Demand> {
        let token = freshness
            .map(|freshness| &freshness.consistency_token)
            .filter(|token| !token.is_empty())?;
        match Demand::new(token.clone(), "/freshness/consistency_token", tokens, None) {
            Ok(demand) => Some(demand),
            Err(refused) => {
                self.0.extend_from_slice(refused.violations());
                None
            }
        }
    }

    pub(super) fn refuse(
        &mut self,
        pointer: impl Into<String>,
        code: &'static str,
        message: impl Into<String>,
    ) {
        self.0.push(FieldViolation::new(pointer, code, message));
    }

    /// What was asked for, unless anything is wrong with it.
    pub(super) fn finish<T>(self, asked: Option<T>) -> Result<T, ApiError> {
        match asked {
            Some(asked) if self.0.is_empty() => Ok(asked),
            _ => Err(ApiError::validation(self.0)),
        }
    }

    fn text<T>(&mut self, pointer: &'static str, parsed: Result<T, InvalidText>) -> Option<T> {
        parsed
            .map_err(|invalid| self.refuse(pointer, invalid.code(), invalid.to_string()))
            .ok()
    }
}

/// A token that may be left empty.
pub(super) fn page_token(token: String) -> Option<String> {
    Some(token).filter(|token| !token.is_empty())
}
