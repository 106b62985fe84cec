//! What a customer has bought.

use daybook_domain::ids::CustomerId;
use daybook_postgres::LOOKUP_TIMEOUT;
use daybook_read_model::CustomerTotals;
use daybook_read_model::customer_totals::{self, Row};
use daybook_service::{ApiError, identity::Principal};

use super::{Answer, Reads};
use crate::freshness::Demand;

impl Reads {
    /// A customer's totals, one for each currency.
    ///
    /// # Errors
    /// `RESOURCE_NOT_FOUND` when nobody of this id has ordered from the caller's tenant, and what demanding freshness can
    /// end in.
    pub async fn customer_totals(
        &self,
        caller: &Principal,
        customer_id: &CustomerId,
        demand: Option<&Demand>,
    ) -> Result<Answer<Vec<Row>>, ApiError> {
        let mut staleness = self.freshen::<CustomerTotals>(caller, demand).await?;
        let (tenant_id, wanted) = (caller.tenant_id, customer_id.clone());
        let totals = self
            .0
            .shared
            .read(tenant_id, LOOKUP_TIMEOUT, move |connection| {
                let wanted = wanted.clone();
                Box::pin(async move { customer_totals::find(connection, tenant_id, wanted.as_str()).await })
            })
            .await?;
        let Some(newest) = totals.iter().map(|row| row.position).max() else {
            return Err(ApiError::not_found("customer", customer_id.as_str()));
        };
        // Rows and checkpoint commit together, so what made any of the rows is included, and all before it.
        staleness.position = staleness.position.max(newest);
        Ok(Answer {
            data: totals,
            staleness,
        })
    }
}
