//! The fields of messages.

use daybook_domain::ids::{CustomerId, Reference};
use daybook_domain::money::Currency;
use daybook_domain::order::Status;
use daybook_proto::common::v1::Freshness;
use daybook_proto::convert::from_timestamp;
use daybook_proto::orders::v1::get_order_request::AsOf as WireAsOf;
use daybook_proto::orders::v1::{OrderExpansion, OrderStatus};
use daybook_read_model::order_list::Search;
use prost_types::{FieldMask, Timestamp};
use time::OffsetDateTime;

use super::wire;
use crate::freshness::{Demand, Tokens};
use crate::reads::order::AsOf;
use crate::reads::orders::{Expand, LIMIT_WITH_LINES_MAX};
use crate::reads::{LIMIT_DEFAULT, LIMIT_MAX};
use crate::sparse::Fields;
use crate::violations::Violations;

impl Violations {
    pub(super) fn customer_id(&mut self, text: &str) -> Option<CustomerId> {
        self.text("/customer_id", CustomerId::parse(text))
    }

    /// A customer's id that may be left empty.
    pub(super) fn customer_filter(&mut self, text: &str) -> Option<CustomerId> {
        self.customer_id(given(text)?)
    }

    /// A currency that may be left empty.
    pub(super) fn currency_filter(&mut self, text: &str) -> Option<Currency> {
        self.text("/currency", Currency::parse(given(text)?))
    }

    /// What orders are searched for; it may be left empty.
    pub(super) fn order_search(&mut self, text: &str) -> Option<Search> {
        let text = given(text)?;
        self.text("/q", Reference::parse(text))?;
        Some(Search::parse(text))
    }

    /// What customers are searched for; it may be left empty.
    pub(super) fn customer_search(&mut self, text: &str) -> Option<String> {
        let text = given(text)?;
        self.text("/q", CustomerId::parse(text))?;
        Some(text.to_owned())
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

    /// The size of a page of orders that show this as well.
    pub(super) fn page_size_with(&mut self, size: u32, expand: Expand) -> u32 {
        let size = self.page_size(size);
        if expand.lines && size > LIMIT_WITH_LINES_MAX {
            self.refuse(
                "/page_size",
                "OUT_OF_RANGE",
                format!("must be at most {LIMIT_WITH_LINES_MAX} with lines"),
            );
        }
        size
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

    pub(super) fn expand(&mut self, numbers: &[i32]) -> Expand {
        let mut expand = Expand::default();
        for (index, number) in numbers.iter().enumerate() {
            match OrderExpansion::try_from(*number) {
                Ok(OrderExpansion::Customer) => expand.customer = true,
                Ok(OrderExpansion::Lines) => expand.lines = true,
                Ok(OrderExpansion::Unspecified) | Err(_) => self.refuse(
                    format!("/expand/{index}"),
                    "UNKNOWN_VALUE",
                    "is not what an order can show",
                ),
            }
        }
        expand
    }

    /// The members that the caller wants; all of them without a mask.
    pub(super) fn read_mask(
        &mut self,
        mask: Option<&FieldMask>,
        known: &'static [&'static str],
    ) -> Option<Fields> {
        let mask = mask.filter(|mask| !mask.paths.is_empty())?;
        self.fields("/read_mask", mask.paths.iter().map(String::as_str), known)
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
    pub(super) fn freshness(&mut self, freshness: Option<&Freshness>, tokens: Tokens) -> Option<Demand> {
        let token = given(&freshness?.consistency_token)?;
        self.demand("/freshness/consistency_token", token.to_owned(), tokens, None)
    }
}

/// A text that may be left empty.
pub(super) fn given(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

/// A token that may be left empty.
pub(super) fn page_token(token: String) -> Option<String> {
    Some(token).filter(|token| !token.is_empty())
}
