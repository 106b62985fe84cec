//! What customers have bought.

use daybook_domain::ids::CustomerId;
use daybook_postgres::LOOKUP_TIMEOUT;
use daybook_read_model::CustomerTotals;
use daybook_read_model::access_path::Scan;
use daybook_read_model::customer_totals::{self, Customer, Filter};
use daybook_service::{ApiError, identity::Principal};

use super::{Answer, LIST_TIMEOUT, Page, Reads, page};
use crate::cursor::Question;
use crate::freshness::Demand;

/// Which page of which list.
#[derive(Clone, Debug)]
pub struct ListCustomers {
    /// Which customers.
    pub filter: Filter,
    /// In which order, and from which index.
    pub scan: Scan<Customer>,
    /// How many, 1 to [`LIMIT_MAX`](super::LIMIT_MAX).
    pub limit: u32,
    /// Where the page begins: what the page before gave.
    pub cursor: Option<String>,
}

impl Reads {
    /// A customer's totals.
    ///
    /// # Errors
    /// `RESOURCE_NOT_FOUND` when nobody of this id has ordered from the caller's tenant, and what demanding freshness can
    /// end in.
    pub async fn customer_totals(
        &self,
        caller: &Principal,
        customer_id: &CustomerId,
        demand: Option<&Demand>,
    ) -> Result<Answer<Customer>, ApiError> {
        let mut staleness = self.freshen::<CustomerTotals>(caller, demand).await?;
        let (tenant_id, wanted) = (caller.tenant_id, [customer_id.clone()]);
        let found = self
            .0
            .shared
            .read(tenant_id, LOOKUP_TIMEOUT, move |connection| {
                let wanted = wanted.clone();
                Box::pin(async move { customer_totals::find(connection, tenant_id, &wanted).await })
            })
            .await?;
        let Some(customer) = found.into_iter().next() else {
            return Err(ApiError::not_found("customer", customer_id.as_str()));
        };
        staleness.include(newest(&customer));
        Ok(Answer {
            data: customer,
            staleness,
        })
    }

    /// A page of the caller's customers.
    ///
    /// # Errors
    /// `INVALID_CURSOR` when the cursor is not from this very list, and what demanding freshness can end in.
    pub async fn customers(
        &self,
        caller: &Principal,
        list: ListCustomers,
        demand: Option<&Demand>,
    ) -> Result<Answer<Page<Customer>>, ApiError> {
        let question = list.question(caller);
        let after = self.open(&question, list.cursor.as_deref())?;
        let mut staleness = self.freshen::<CustomerTotals>(caller, demand).await?;
        let ListCustomers {
            filter, scan, limit, ..
        } = list;
        let tenant_id = caller.tenant_id;
        let found = self
            .0
            .shared
            .read(tenant_id, LIST_TIMEOUT, move |connection| {
                let (filter, after) = (filter.clone(), after.clone());
                Box::pin(async move {
                    customer_totals::list(connection, tenant_id, &filter, scan, after.as_ref(), limit + 1)
                        .await
                })
            })
            .await?;
        found
            .iter()
            .map(newest)
            .for_each(|position| staleness.include(position));
        let data = page(found, limit, |last| self.seal(&question, &scan.keyset(last)));
        Ok(Answer { data, staleness })
    }
}

/// The position of the newest event in a customer's totals.
fn newest(customer: &Customer) -> u64 {
    customer
        .totals
        .iter()
        .map(|total| total.position)
        .max()
        .unwrap_or(0)
}

impl ListCustomers {
    /// The question that cursors are bound to: all but the size of a page.
    fn question(&self, caller: &Principal) -> Question {
        let Filter { currency, search } = &self.filter;
        Question::new(caller.tenant_id, "customers")
            .with(
                "currency",
                currency.as_ref().map_or("", |currency| currency.as_str()),
            )
            .with("q", search.as_deref().unwrap_or_default())
            .with("sort", &self.scan.order().to_string())
    }
}
