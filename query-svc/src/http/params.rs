//! The query string: every parameter is checked, and all that is wrong is said at once.
//!
//! Parameters that are not known are ignored, as unknown fields are everywhere in the contract.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use axum::extract::{FromRequestParts, Query};
use daybook_domain::aggregates::Kind;
use daybook_domain::ids::{CustomerId, Reference};
use daybook_domain::money::Currency;
use daybook_domain::order::Status;
use daybook_event_store::Direction;
use daybook_read_model::event_index::{self, Period};
use daybook_read_model::order_list::Search;
use daybook_read_model::{customer_totals, order_list, status};
use daybook_service::ApiError;
use daybook_service::tickets::LAST_EVENT_ID;
use http::request::Parts;
use http::{HeaderMap, Uri};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::freshness::{Demand, Tokens};
use crate::reads::customers::ListCustomers;
use crate::reads::feed::ListFeed;
use crate::reads::history::{ListEvents, Stream};
use crate::reads::order::AsOf;
use crate::reads::orders::{Expand, LIMIT_WITH_LINES_MAX, ListOrders, status_names};
use crate::reads::stock::ListStockItems;
use crate::reads::{LIMIT_DEFAULT, LIMIT_MAX};
use crate::sparse::Fields;
use crate::streams::Start;
use crate::violations::Violations;

/// The header that carries a consistency token.
pub(super) const DAYBOOK_CONSISTENCY: &str = "daybook-consistency";

/// The parameter that carries one, for those who cannot set headers.
pub(super) const CONSISTENCY: &str = "consistency";

/// The parameter that says where a stream begins that resumes nothing.
const AFTER_POSITION: &str = "after_position";

/// The parameters of a request, and what is wrong with those that were asked for.
#[derive(Debug, Default)]
pub struct Params {
    pairs: Vec<(String, String)>,
    violations: Violations,
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = Infallible;

    /// Refuses nothing: who may ask at all is found out first.
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.uri))
    }
}

impl Params {
    /// The parameters of an address.
    pub fn of(address: &Uri) -> Self {
        if address.query().is_none() {
            return Self::default();
        }
        match Query::try_from_uri(address) {
            Ok(Query(pairs)) => Self {
                pairs,
                violations: Violations::default(),
            },
            Err(rejection) => {
                let mut params = Self::default();
                params
                    .violations
                    .refuse("query", "INVALID", rejection.body_text());
                params
            }
        }
    }

    /// `type`: the types of events that the caller wants.
    pub fn types(&mut self) -> BTreeSet<String> {
        let lists = self.all("type").flat_map(|list| list.split(','));
        let types: BTreeSet<String> = lists.map(str::to_owned).collect();
        self.violations.event_types("type", &types);
        types
    }

    /// Where a stream begins: `Last-Event-ID`, or else `last_event_id`, or else `after_position`.
    pub(crate) fn start(&mut self, headers: &HeaderMap) -> Start {
        let message = "must be a position, from 0";
        let after = self.parsed(AFTER_POSITION, "OUT_OF_RANGE", message, |text| text.parse().ok());
        let parameter = self.one(LAST_EVENT_ID);
        // A browser that has received nothing yet sends an empty one.
        let header = headers
            .get("last-event-id")
            .map(|value| value.to_str().unwrap_or("?").to_owned());
        let last = [header, parameter].into_iter().flatten();
        match (last.into_iter().find(|id| !id.is_empty()), after) {
            (Some(last), _) => Start::Resume(last),
            (None, Some(position)) => Start::Behind(position),
            (None, None) => Start::Now,
        }
    }

    /// `limit`: how many items a page has.
    pub fn limit(&mut self) -> u32 {
        let message = format!("must be a number from 1 to {LIMIT_MAX}");
        let parse = |text: &str| text.parse().ok().filter(|limit| (1..=LIMIT_MAX).contains(limit));
        self.parsed("limit", "OUT_OF_RANGE", message, parse)
            .unwrap_or(LIMIT_DEFAULT)
    }

    /// Which page of which list of orders.
    pub fn list_orders(&mut self) -> Option<ListOrders> {
        let filter = order_list::Filter {
            statuses: self.statuses(),
            customer_id: self.customer_id(),
            currency: self.currency(),
            placed_after: self.time("placed_after"),
            placed_before: self.time("placed_before"),
            search: self.one("q").and_then(|text| {
                self.violations.text("q", Reference::parse(&text))?;
                Some(Search::parse(&text))
            }),
        };
        let sort = self.one("sort");
        let sort = sort.map(|text| self.violations.sort("sort", &text, &order_list::ACCESS_PATHS));
        let (expand, limit, cursor) = (self.expand(), self.limit(), self.one("cursor"));
        if expand.lines && limit > LIMIT_WITH_LINES_MAX {
            let message = format!("must be at most {LIMIT_WITH_LINES_MAX} with expand=lines");
            self.violations.refuse("limit", "OUT_OF_RANGE", message);
        }
        let sort = sort.flatten();
        let scan = self.violations.scan("sort", || filter.scan(sort.as_ref()))?;
        Some(ListOrders {
            filter,
            scan,
            limit,
            cursor,
            expand,
        })
    }

    /// Which page of which list of customers.
    pub fn list_customers(&mut self) -> Option<ListCustomers> {
        let filter = customer_totals::Filter {
            currency: self.currency(),
            search: self.one("q").and_then(|text| {
                self.violations.text("q", CustomerId::parse(&text))?;
                Some(text)
            }),
        };
        let sort = self.one("sort");
        let sort = sort.map(|text| {
            self.violations
                .sort("sort", &text, &customer_totals::ACCESS_PATHS)
        });
        let (limit, cursor) = (self.limit(), self.one("cursor"));
        let sort = sort.flatten();
        let scan = self.violations.scan("sort", || filter.scan(sort.as_ref()))?;
        Some(ListCustomers {
            filter,
            scan,
            limit,
            cursor,
        })
    }

    /// Which page of the history of an aggregate.
    pub fn list_events(&mut self, stream: Stream) -> ListEvents {
        let from = self.version("from_version").unwrap_or(1);
        let to = self.version("to_version").unwrap_or(u64::MAX);
        if from > to {
            self.violations
                .refuse("to_version", "OUT_OF_RANGE", "must not be less than from_version");
        }
        ListEvents {
            stream,
            versions: from..=to,
            direction: self.direction(),
            limit: self.limit(),
            cursor: self.one("cursor"),
            diff: self.flag("diff"),
        }
    }

    /// Which page of the tenant's event feed.
    pub fn list_feed(&mut self) -> Option<ListFeed> {
        let filter = event_index::Filter {
            event_type: self.searched("event_type"),
            stream_id: self.searched("stream_id"),
            actor: self.searched("actor"),
            correlation_id: self.searched("correlation_id"),
        };
        let period = Period {
            after: self.time("recorded_after"),
            before: self.time("recorded_before"),
        };
        let sort = self.one("sort");
        let sort = sort.map(|text| self.violations.sort("sort", &text, &event_index::ACCESS_PATHS));
        let (limit, cursor) = (self.limit(), self.one("cursor"));
        let sort = sort.flatten();
        let scan = self.violations.scan("sort", || filter.scan(sort.as_ref()))?;
        Some(ListFeed {
            filter,
            period,
            scan,
            limit,
            cursor,
        })
    }

    fn searched(&mut self, name: &'static str) -> Option<String> {
        let text = self.one(name)?;
        self.violations.searched(name, &text)
    }

    /// A correlation id, from the path.
    pub fn correlation_id_in_path(&mut self, text: &str) -> Option<String> {
        self.violations.searched("/correlation_id", text)
    }

    /// `true` or `false`, which is what it is when it is absent.
    fn flag(&mut self, name: &'static str) -> bool {
        let parsed = self.parsed(name, "INVALID", "must be true or false", |text| text.parse().ok());
        parsed.unwrap_or(false)
    }

    /// Which page of the list of stock items.
    pub fn list_stock_items(&mut self) -> ListStockItems {
        ListStockItems {
            limit: self.limit(),
            cursor: self.one("cursor"),
        }
    }

    /// `as_of`: a version or a moment.
    pub fn as_of(&mut self) -> Option<AsOf> {
        let message = "must be a version, from 1, or a time in RFC 3339";
        self.parsed("as_of", "INVALID", message, |text| match text.parse() {
            Ok(version) => (version >= 1).then_some(AsOf::Version(version)),
            Err(_) => parse_time(text).map(AsOf::Time),
        })
    }

    /// `fields`: the members that the caller wants, out of those that there are.
    pub fn fields(&mut self, known: &'static [&'static str]) -> Option<Fields> {
        let text = self.one("fields")?;
        self.violations.fields("fields", text.split(','), known)
    }

    /// The freshness that is demanded: a token in the header, or else in the parameter, and `Prefer: wait`.
    pub fn demand(&mut self, headers: &HeaderMap, tokens: Tokens) -> Option<Demand> {
        let parameter = self.one(CONSISTENCY);
        let (field, text) = match (headers.get(DAYBOOK_CONSISTENCY), parameter) {
            (Some(header), _) => (
                DAYBOOK_CONSISTENCY,
                header.to_str().unwrap_or_default().to_owned(),
            ),
            (None, Some(text)) => (CONSISTENCY, text),
            (None, None) => return None,
        };
        self.violations
            .demand(field, text, tokens, preferred_wait(headers))
    }

    /// The id of an aggregate of a known kind, from the path.
    pub fn id<T: FromStr<Err: Display>>(&mut self, pointer: &str, text: &str) -> Option<T> {
        self.violations.id(pointer, text)
    }

    /// An aggregate of a kind, from the path.
    pub fn stream(&mut self, kind: &'static Kind, text: &str) -> Option<Stream> {
        let stream = Stream::of_kind(kind, text);
        stream
            .map_err(|invalid| self.violations.refuse("/id", "INVALID_ID", invalid))
            .ok()
    }

    /// A customer's id, from the path.
    pub fn customer_id_in_path(&mut self, text: &str) -> Option<CustomerId> {
        self.violations.text("/customer_id", CustomerId::parse(text))
    }

    /// What was asked for, unless anything is wrong with it.
    ///
    /// # Errors
    /// `VALIDATION_FAILED`, with everything that is wrong.
    pub fn finish<T>(self, asked: Option<T>) -> Result<T, ApiError> {
        self.violations.finish(asked)
    }

    fn statuses(&mut self) -> Vec<Status> {
        let texts: Vec<String> = self
            .all("status")
            .flat_map(|list| list.split(','))
            .map(str::to_owned)
            .collect();
        let mut statuses = Vec::with_capacity(texts.len());
        for text in texts {
            match status::parse(&text) {
                Some(known) if statuses.contains(&known) => {}
                Some(known) => statuses.push(known),
                None => {
                    let message = format!("there is no status {text:?}; there are {}", status_names());
                    self.violations.refuse("status", "UNKNOWN_VALUE", message);
                }
            }
        }
        statuses
    }

    fn customer_id(&mut self) -> Option<CustomerId> {
        let text = self.one("customer_id")?;
        self.violations.text("customer_id", CustomerId::parse(&text))
    }

    fn currency(&mut self) -> Option<Currency> {
        let text = self.one("currency")?;
        self.violations.text("currency", Currency::parse(&text))
    }

    fn expand(&mut self) -> Expand {
        let mut expand = Expand::default();
        for name in self.one("expand").iter().flat_map(|names| names.split(',')) {
            match name {
                Expand::CUSTOMER => expand.customer = true,
                Expand::LINES => expand.lines = true,
                unknown => {
                    let message = format!("there is no {unknown:?}; there are customer, lines");
                    self.violations.refuse("expand", "UNKNOWN_VALUE", message);
                }
            }
        }
        expand
    }

    fn time(&mut self, name: &'static str) -> Option<OffsetDateTime> {
        self.parsed(name, "INVALID_TIME", "must be a time in RFC 3339", parse_time)
    }

    fn version(&mut self, name: &'static str) -> Option<u64> {
        let parse = |text: &str| text.parse().ok().filter(|version| *version >= 1);
        self.parsed(name, "OUT_OF_RANGE", "must be a number from 1", parse)
    }

    fn direction(&mut self) -> Direction {
        let parsed = self.parsed(
            "order",
            "UNKNOWN_VALUE",
            "must be asc or desc",
            |text| match text {
                "asc" => Some(Direction::Forward),
                "desc" => Some(Direction::Backward),
                _ => None,
            },
        );
        parsed.unwrap_or(Direction::Forward)
    }

    /// A parameter that may be given once.
    fn parsed<T>(
        &mut self,
        name: &'static str,
        code: &'static str,
        message: impl Into<String>,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.one(name)?;
        let parsed = parse(&text);
        if parsed.is_none() {
            self.violations.refuse(name, code, message);
        }
        parsed
    }

    fn one(&mut self, name: &'static str) -> Option<String> {
        let mut values = self.all(name).map(str::to_owned);
        let (first, second) = (values.next(), values.next());
        drop(values);
        if second.is_some() {
            self.violations
                .refuse(name, "REPEATED", "must not be given more than once");
        }
        first
    }

    fn all(&self, name: &'static str) -> impl Iterator<Item = &str> {
        self.pairs
            .iter()
            .filter(move |(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// A "+" that was not escaped arrives as a space, and no time has one.
fn parse_time(text: &str) -> Option<OffsetDateTime> {
    let moment = OffsetDateTime::parse(&text.replace(' ', "+"), &Rfc3339).ok()?;
    moment
        .checked_to_offset(time::UtcOffset::UTC)
        .filter(|utc| (1..=9999).contains(&utc.year()))
}

/// `Prefer: wait=2` (RFC 7240), among other preferences. One that cannot be understood is ignored, as the RFC wants it.
fn preferred_wait(headers: &HeaderMap) -> Option<Duration> {
    let preferences = headers
        .get_all("prefer")
        .iter()
        .filter_map(|value| value.to_str().ok());
    preferences
        .flat_map(|list| list.split([',', ';']))
        .find_map(|preference| {
            let (name, seconds) = preference.split_once('=')?;
            let seconds = seconds.trim().trim_matches('"').parse().ok()?;
            name.trim()
                .eq_ignore_ascii_case("wait")
                .then(|| Duration::from_secs(seconds))
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    fn params(pairs: &[(&str, &str)]) -> Params {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Params {
            pairs: pairs.iter().map(own).collect(),
            violations: Violations::default(),
        }
    }

    fn violations(mut params: Params) -> Vec<(String, &'static str)> {
        let _ = params.list_orders();
        let _ = params.as_of();
        let refused = params.finish(Some(())).expect_err("something is wrong with it");
        refused
            .violations()
            .iter()
            .map(|violation| (violation.pointer.clone(), violation.code))
            .collect()
    }

    fn listed(pairs: &[(&str, &str)]) -> ListOrders {
        params(pairs).list_orders().expect("nothing is wrong with it")
    }

    #[test]
    fn without_parameters_a_list_begins_with_the_newest_orders() {
        let list = listed(&[]);
        assert_eq!((list.limit, list.cursor), (LIMIT_DEFAULT, None));
        assert_eq!(list.scan.order().to_string(), "-placed_at,-order_id");
        assert_eq!(list.filter, order_list::Filter::default());
    }

    #[test]
    fn statuses_are_repeated_or_listed() {
        let list = listed(&[
            ("status", "PLACED,SHIPPED"),
            ("status", "PLACED"),
            ("status", "CANCELLED"),
        ]);
        assert_eq!(
            list.filter.statuses,
            [Status::Placed, Status::Shipped, Status::Cancelled]
        );
    }

    #[test]
    fn times_keep_their_offset_even_with_an_unescaped_plus() {
        let list = listed(&[
            ("placed_after", "2024-05-01T00:00:00Z"),
            ("placed_before", "2024-05-02T02:00:00 02:00"),
        ]);
        assert_eq!(list.filter.placed_after, Some(datetime!(2024-05-01 00:00 UTC)));
        assert_eq!(list.filter.placed_before, Some(datetime!(2024-05-02 00:00 UTC)));
    }

    #[test]
    fn a_list_is_sorted_by_one_or_several_columns() {
        for (sort, order) in [
            ("placed_at", "placed_at,order_id"),
            ("-placed_at,total_minor", "-placed_at,total_minor,-order_id"),
            ("-placed_at,-order_id", "-placed_at,-order_id"),
        ] {
            assert_eq!(listed(&[("sort", sort)]).scan.order().to_string(), order);
        }
    }

    #[test]
    fn what_no_index_serves_is_refused_once_everything_else_is_right() {
        for (name, value) in [("sort", "total_minor"), ("q", "web-1"), ("currency", "EUR")] {
            let mut params = params(&[("customer_id", "c-4711"), (name, value)]);
            let list = params.list_orders();
            let refused = params.finish(list.map(drop)).expect_err("no index serves it");
            let [violation] = refused.violations() else {
                panic!("{refused:?}");
            };
            assert_eq!(
                (violation.pointer.as_str(), violation.code),
                ("sort", "NOT_SERVED")
            );
            assert!(
                violation
                    .message
                    .contains("placed_at or -placed_at with customer_id")
            );
        }
    }

    #[test]
    fn orders_with_their_lines_come_on_shorter_pages() {
        assert!(
            listed(&[("expand", "lines,customer"), ("limit", "20")])
                .expand
                .customer
        );
        for (limit, expand) in [("21", "lines"), ("5", "line"), ("5", "")] {
            let mut params = params(&[("limit", limit), ("expand", expand)]);
            assert!(params.list_orders().is_none(), "{limit} {expand}");
        }
    }

    #[test]
    fn as_of_is_a_version_or_a_time() {
        assert_eq!(params(&[("as_of", "7")]).as_of(), Some(AsOf::Version(7)));
        let moment = datetime!(2024-05-01 12:00 UTC);
        assert_eq!(
            params(&[("as_of", "2024-05-01T12:00:00Z")]).as_of(),
            Some(AsOf::Time(moment))
        );
    }

    #[test]
    fn all_that_is_wrong_is_said_at_once() {
        let wrong = params(&[
            ("status", "placed"),
            ("customer_id", ""),
            ("placed_after", "yesterday"),
            ("placed_before", "0000-01-01T00:00:00Z"),
            ("currency", "EURO"),
            ("q", ""),
            ("sort", "-placed_at,colour"),
            ("expand", "everything"),
            ("limit", "101"),
            ("cursor", "a"),
            ("cursor", "b"),
            ("as_of", "0"),
        ]);
        let expected = [
            ("status", "UNKNOWN_VALUE"),
            ("customer_id", "EMPTY"),
            ("currency", "UNKNOWN_CODE"),
            ("placed_after", "INVALID_TIME"),
            ("placed_before", "INVALID_TIME"),
            ("q", "EMPTY"),
            ("sort", "UNKNOWN_VALUE"),
            ("expand", "UNKNOWN_VALUE"),
            ("limit", "OUT_OF_RANGE"),
            ("cursor", "REPEATED"),
            ("as_of", "INVALID"),
        ];
        assert_eq!(
            violations(wrong),
            expected.map(|(pointer, code)| (pointer.to_owned(), code))
        );
    }

    #[test]
    fn limits_that_are_no_limits_are_refused() {
        for limit in ["0", "-1", "1e2", "", "99999999999", "+5 ", "ten"] {
            let mut params = params(&[("limit", limit)]);
            params.limit();
            assert!(params.finish(Some(())).is_err(), "{limit:?}");
        }
    }

    #[test]
    fn versions_have_to_be_in_order() {
        let stream = Stream::of_any_kind("ord_01h455vb4pex5vsknk084sn02q").expect("an order's id");
        let mut params = params(&[("from_version", "3"), ("to_version", "2")]);
        params.list_events(stream);
        assert!(params.finish(Some(())).is_err());
    }

    #[test]
    fn a_wait_is_found_among_other_preferences() {
        let wait = |preference: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("prefer", http::HeaderValue::from_static(preference));
            preferred_wait(&headers)
        };
        assert_eq!(wait("wait=3"), Some(Duration::from_secs(3)));
        assert_eq!(wait("respond-async, Wait = \"4\""), Some(Duration::from_secs(4)));
        assert_eq!(wait("wait=soon"), None);
        assert_eq!(wait("return=minimal"), None);
    }

    #[test]
    fn the_token_in_the_header_goes_before_the_parameter() {
        let mut params = params(&[("consistency", "nonsense")]);
        let mut headers = HeaderMap::new();
        headers.insert(
            DAYBOOK_CONSISTENCY,
            http::HeaderValue::from_static("nonsense, too"),
        );
        assert!(params.demand(&headers, Tokens::of(7, 0, &[])).is_none());
        let refused = params.finish(Some(())).expect_err("it is no token");
        assert_eq!(refused.violations()[0].pointer, DAYBOOK_CONSISTENCY);
    }
}
