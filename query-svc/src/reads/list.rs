//! Lists of orders: filtered, sorted, and paged by the place of the last order of a page.

use daybook_domain::ids::CustomerId;
use daybook_domain::order::Status;
use daybook_postgres::QUERY_TIMEOUT;
use daybook_read_model::order_list::{self, Filter, Keyset, Row, Sort, SortBy};
use daybook_read_model::{OrderList, status};
use daybook_service::{ApiError, identity::Principal};
use time::OffsetDateTime;

use super::{Answer, Page, Reads, page};
use crate::cursor::Question;
use crate::freshness::Demand;

/// The newest orders first, unless the caller asks for something else.
pub(crate) const SORT_DEFAULT: Sort = Sort {
    by: SortBy::PlacedAt,
    descending: true,
};

/// Which page of which list.
#[derive(Clone, Debug)]
pub struct ListOrders {
    /// Which orders.
    pub filter: Filter,
    /// In which order.
    pub sort: Sort,
    /// How many, 1 to [`LIMIT_MAX`](super::LIMIT_MAX).
    pub limit: u32,
    /// Where the page begins: what the page before gave.
    pub cursor: Option<String>,
}

impl Reads {
    /// A page of the caller's orders.
    ///
    /// # Errors
    /// `INVALID_CURSOR` when the cursor is not from this very list, and what demanding freshness can end in.
    pub async fn orders(
        &self,
        caller: &Principal,
        list: ListOrders,
        demand: Option<&Demand>,
    ) -> Result<Answer<Page<Row>>, ApiError> {
        let question = list.question(caller);
        let after = list
            .cursor
            .as_deref()
            .map(|cursor| self.open(&question, cursor))
            .transpose()?;
        let mut staleness = self.freshen::<OrderList>(caller, demand).await?;
        let (
            tenant_id,
            ListOrders {
                filter, sort, limit, ..
            },
        ) = (caller.tenant_id, list);
        let found = self
            .0
            .shared
            .read(tenant_id, QUERY_TIMEOUT, move |connection| {
                let (filter, after) = (filter.clone(), after.clone());
                Box::pin(async move {
                    order_list::list(connection, tenant_id, &filter, sort, after.as_ref(), limit + 1).await
                })
            })
            .await?;
        // Rows and checkpoint commit together, so what made any of the rows is included, and all before it.
        let newest = found.iter().map(|row| row.position).max();
        staleness.position = staleness.position.max(newest.unwrap_or(0));
        let data = page(found, limit, |last| self.seal(&question, &sort.keyset(last)));
        Ok(Answer { data, staleness })
    }

    fn open(&self, question: &Question, cursor: &str) -> Result<Keyset, ApiError> {
        let place = self.0.cursors.open(question, cursor)?;
        serde_json::from_slice(&place).map_err(|_| ApiError::invalid_cursor())
    }

    fn seal(&self, question: &Question, keyset: &Keyset) -> String {
        let place = serde_json::to_vec(keyset).expect("a number and a string can be written as JSON");
        self.0.cursors.seal(question, &place)
    }
}

impl ListOrders {
    /// The question that cursors are bound to: all but the size of a page.
    fn question(&self, caller: &Principal) -> Question {
        let Filter {
            statuses,
            customer_id,
            placed_after,
            placed_before,
        } = &self.filter;
        let mut statuses: Vec<_> = statuses.iter().map(|status| status::name(*status)).collect();
        statuses.sort_unstable();
        statuses.dedup();
        Question::new(caller.tenant_id, "orders")
            .with("status", &statuses.join(","))
            .with("customer_id", customer_id.as_ref().map_or("", CustomerId::as_str))
            .with("placed_after", &moment(*placed_after))
            .with("placed_before", &moment(*placed_before))
            .with("sort", &sort_name(self.sort))
    }
}

fn moment(moment: Option<OffsetDateTime>) -> String {
    moment.map_or_else(String::new, |moment| moment.unix_timestamp_nanos().to_string())
}

/// A sort as the contract writes it: `-placed_at`.
pub(crate) fn sort_name(sort: Sort) -> String {
    let sign = if sort.descending { "-" } else { "" };
    format!("{sign}{}", sort.by.column())
}

/// The sort of this name; none when the list has no index for it.
pub(crate) fn sort_by_name(name: &str) -> Option<Sort> {
    let (column, descending) = match name.strip_prefix('-') {
        Some(column) => (column, true),
        None => (name, false),
    };
    let by = SortBy::ALL.into_iter().find(|by| by.column() == column)?;
    Some(Sort { by, descending })
}

/// What `sort` takes, for messages.
pub(crate) const SORTS: &str = "placed_at, updated_at or total_minor, with a - before it for descending";

/// The names of all statuses, for messages.
pub(crate) fn status_names() -> String {
    Status::ALL.map(status::name).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sort_is_found_by_its_name() {
        for by in SortBy::ALL {
            for descending in [false, true] {
                let sort = Sort { by, descending };
                assert_eq!(sort_by_name(&sort_name(sort)), Some(sort));
            }
        }
        assert_eq!(sort_by_name("-placed_at"), Some(SORT_DEFAULT));
        for unknown in [
            "",
            "-",
            "--placed_at",
            "status",
            "-placed_at,total_minor",
            "PLACED_AT",
        ] {
            assert_eq!(sort_by_name(unknown), None, "{unknown}");
        }
    }
}
