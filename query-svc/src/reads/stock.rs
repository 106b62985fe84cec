//! How much there is of articles.

use daybook_domain::ids::StockItemId;
use daybook_postgres::LOOKUP_TIMEOUT;
use daybook_read_model::StockLevels;
use daybook_read_model::stock_levels::{self, Row};
use daybook_service::{ApiError, identity::Principal};

use super::{Answer, LIST_TIMEOUT, Page, Reads, page};
use crate::cursor::Question;
use crate::freshness::Demand;

/// Which page of the list, which is by article.
#[derive(Clone, Debug)]
pub struct ListStockItems {
    /// How many, 1 to [`LIMIT_MAX`](super::LIMIT_MAX).
    pub limit: u32,
    /// Where the page begins: what the page before gave.
    pub cursor: Option<String>,
}

impl Reads {
    /// How much there is of one article.
    ///
    /// # Errors
    /// `RESOURCE_NOT_FOUND` when the caller's tenant has no such stock item, and what demanding freshness can end in.
    pub async fn stock_item(
        &self,
        caller: &Principal,
        id: &StockItemId,
        demand: Option<&Demand>,
    ) -> Result<Answer<Row>, ApiError> {
        let mut staleness = self.freshen::<StockLevels>(caller, demand).await?;
        let (tenant_id, id) = (caller.tenant_id, id.to_string());
        let wanted = id.clone();
        let found = self
            .0
            .shared
            .read(tenant_id, LOOKUP_TIMEOUT, move |connection| {
                let wanted = wanted.clone();
                Box::pin(async move { stock_levels::find(connection, tenant_id, &wanted).await })
            })
            .await?;
        let Some(row) = found else {
            return Err(ApiError::not_found("stock_item", id));
        };
        staleness.include(row.position);
        Ok(Answer { data: row, staleness })
    }

    /// A page of the caller's stock items.
    ///
    /// # Errors
    /// `INVALID_CURSOR` when the cursor is not from this very list, and what demanding freshness can end in.
    pub async fn stock_items(
        &self,
        caller: &Principal,
        list: ListStockItems,
        demand: Option<&Demand>,
    ) -> Result<Answer<Page<Row>>, ApiError> {
        let question = Question::new(caller.tenant_id, "stock-items");
        let after = match &list.cursor {
            Some(cursor) => String::from_utf8(self.0.cursors.open(&question, cursor)?)
                .map_err(|_| ApiError::invalid_cursor())?,
            None => String::new(),
        };
        let mut staleness = self.freshen::<StockLevels>(caller, demand).await?;
        let (tenant_id, limit) = (caller.tenant_id, list.limit);
        let found = self
            .0
            .shared
            .read(tenant_id, LIST_TIMEOUT, move |connection| {
                let after = after.clone();
                Box::pin(async move { stock_levels::list(connection, tenant_id, &after, limit + 1).await })
            })
            .await?;
        found.iter().for_each(|row| staleness.include(row.position));
        let cursor_after = |last: &Row| self.0.cursors.seal(&question, last.sku.as_str().as_bytes());
        Ok(Answer {
            data: page(found, limit, cursor_after),
            staleness,
        })
    }
}
