//! Lists of orders: filtered, sorted, paged by the place of the last order of a page, and with what belongs to the orders.

use std::collections::HashMap;

use daybook_domain::ids::CustomerId;
use daybook_domain::order::Status;
use daybook_read_model::access_path::Scan;
use daybook_read_model::order_details::{self, LineView};
use daybook_read_model::order_list::{self, Filter, Row, Search};
use daybook_read_model::{CustomerTotals, OrderDetails, OrderList, customer_totals, status};
use daybook_service::{ApiError, identity::Principal};
use serde::Deserialize;

use super::{Answer, LIST_TIMEOUT, Page, Reads, page};
use crate::cursor::Question;
use crate::freshness::{Demand, Staleness};

/// How many orders a page has at the most that has their lines as well: an order may have 500 of them.
pub(crate) const LIMIT_WITH_LINES_MAX: u32 = 20;

/// Which page of which list.
#[derive(Clone, Debug)]
pub struct ListOrders {
    /// Which orders.
    pub filter: Filter,
    /// In which order, and from which index.
    pub scan: Scan<Row>,
    /// How many, 1 to [`LIMIT_MAX`](super::LIMIT_MAX).
    pub limit: u32,
    /// Where the page begins: what the page before gave.
    pub cursor: Option<String>,
    /// What else each order shows.
    pub expand: Expand,
}

/// What an order in a list shows beside its own row: read for all orders of the page together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expand {
    /// What its customer has bought in all.
    pub customer: bool,
    /// What is bought.
    pub lines: bool,
}

impl Expand {
    /// The name of the member that shows the customer.
    pub(crate) const CUSTOMER: &'static str = "customer";

    /// The name of the member that shows the lines.
    pub(crate) const LINES: &'static str = "lines";

    /// The members that are asked for.
    pub(crate) fn names(self) -> impl Iterator<Item = &'static str> {
        let members = [(self.customer, Self::CUSTOMER), (self.lines, Self::LINES)];
        members
            .into_iter()
            .filter_map(|(is_wanted, name)| is_wanted.then_some(name))
    }
}

/// An order in a list, with what was asked for beside it.
#[derive(Clone, Debug)]
pub struct ListedOrder {
    /// The order.
    pub row: Row,
    /// What its customer has bought.
    pub customer: Option<customer_totals::Customer>,
    /// What is bought.
    pub lines: Option<Vec<LineView>>,
}

impl Reads {
    /// A page of the caller's orders. What it shows beside them is as fresh as demanded, too; the answer is as fresh as
    /// the oldest part of it.
    ///
    /// # Errors
    /// `INVALID_CURSOR` when the cursor is not from this very list, and what demanding freshness can end in.
    pub async fn orders(
        &self,
        caller: &Principal,
        list: ListOrders,
        demand: Option<&Demand>,
    ) -> Result<Answer<Page<ListedOrder>>, ApiError> {
        let question = list.question(caller);
        let after = self.open(&question, list.cursor.as_deref())?;
        let mut staleness = self.freshen::<OrderList>(caller, demand).await?;
        let ListOrders {
            filter,
            scan,
            limit,
            expand,
            ..
        } = list;
        let tenant_id = caller.tenant_id;
        let found = self
            .0
            .shared
            .read(tenant_id, LIST_TIMEOUT, move |connection| {
                let (filter, after) = (filter.clone(), after.clone());
                Box::pin(async move {
                    order_list::list(connection, tenant_id, &filter, scan, after.as_ref(), limit + 1).await
                })
            })
            .await?;
        found.iter().for_each(|row| staleness.include(row.position));
        let Page { items, next_cursor } = page(found, limit, |last| self.seal(&question, &scan.keyset(last)));
        let mut items: Vec<_> = items.into_iter().map(ListedOrder::from).collect();
        if expand.customer {
            staleness = staleness.or_older(&self.show_customers(caller, demand, &mut items).await?);
        }
        if expand.lines {
            staleness = staleness.or_older(&self.show_lines(caller, demand, &mut items).await?);
        }
        let data = Page { items, next_cursor };
        Ok(Answer { data, staleness })
    }

    async fn show_customers(
        &self,
        caller: &Principal,
        demand: Option<&Demand>,
        orders: &mut [ListedOrder],
    ) -> Result<Staleness, ApiError> {
        let staleness = self.freshen::<CustomerTotals>(caller, demand).await?;
        let tenant_id = caller.tenant_id;
        let mut ids: Vec<CustomerId> = orders.iter().map(|order| order.row.customer_id.clone()).collect();
        ids.sort_unstable();
        ids.dedup();
        let found = self
            .0
            .shared
            .read(tenant_id, LIST_TIMEOUT, move |connection| {
                let ids = ids.clone();
                Box::pin(async move { customer_totals::find(connection, tenant_id, &ids).await })
            })
            .await?;
        let found: HashMap<_, _> = found
            .into_iter()
            .map(|customer| (customer.customer_id.clone(), customer))
            .collect();
        for order in orders {
            order.customer = found.get(&order.row.customer_id).cloned();
        }
        Ok(staleness)
    }

    async fn show_lines(
        &self,
        caller: &Principal,
        demand: Option<&Demand>,
        orders: &mut [ListedOrder],
    ) -> Result<Staleness, ApiError> {
        /// The part of an order's document that is shown.
        #[derive(Deserialize)]
        struct Lines {
            lines: Vec<LineView>,
        }

        let staleness = self.freshen::<OrderDetails>(caller, demand).await?;
        let tenant_id = caller.tenant_id;
        let ids: Vec<String> = orders.iter().map(|order| order.row.order_id.clone()).collect();
        let found = self
            .0
            .shared
            .read(tenant_id, LIST_TIMEOUT, move |connection| {
                let ids = ids.clone();
                Box::pin(async move { order_details::find_documents(connection, tenant_id, &ids).await })
            })
            .await?;
        let mut found: HashMap<_, _> = found
            .into_iter()
            .map(|document| (document.order_id, document.json))
            .collect();
        for order in orders {
            if let Some(json) = found.remove(&order.row.order_id) {
                let document: Lines = serde_json::from_str(&json).map_err(ApiError::internal)?;
                order.lines = Some(document.lines);
            }
        }
        Ok(staleness)
    }
}

impl From<Row> for ListedOrder {
    fn from(row: Row) -> Self {
        Self {
            row,
            customer: None,
            lines: None,
        }
    }
}

impl ListOrders {
    /// The question that cursors are bound to: all but the size of a page and what each order shows.
    fn question(&self, caller: &Principal) -> Question {
        let Filter {
            statuses,
            customer_id,
            currency,
            placed_after,
            placed_before,
            search,
        } = &self.filter;
        let mut statuses: Vec<_> = statuses.iter().map(|status| status::name(*status)).collect();
        statuses.sort_unstable();
        statuses.dedup();
        Question::new(caller.tenant_id, "orders")
            .with("status", &statuses.join(","))
            .with("customer_id", customer_id.as_ref().map_or("", CustomerId::as_str))
            .with(
                "currency",
                currency.as_ref().map_or("", |currency| currency.as_str()),
            )
            .with_moment("placed_after", *placed_after)
            .with_moment("placed_before", *placed_before)
            .with("q", search.as_ref().map_or("", Search::text))
            .with("sort", &self.scan.order().to_string())
    }
}

/// The names of all statuses, for messages.
pub(crate) fn status_names() -> String {
    Status::ALL.map(status::name).join(", ")
}
