//! Orders for those who pass them on as they are: the document as text, read without being understood.

use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgExecutor, Row as _};
use uuid::Uuid;

use super::{Row, encode};
use crate::row;

/// An order in full as JSON text, and how new it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// The order's TypeID.
    pub order_id: String,
    /// The number of the order's events so far.
    pub version: u64,
    /// The position of the event that last changed it.
    pub position: u64,
    /// The [`OrderView`](super::OrderView) as JSON.
    pub json: String,
}

pub(super) const FIND: &str = "
    SELECT order_id, version, position, document::text AS document FROM read_model.find_orders($1, $2)
";

/// Finds orders of the tenant as documents, in no particular order; others are left out.
///
/// One round trip; row-level security holds it to the tenant.
pub async fn find_documents(
    database: impl PgExecutor<'_>,
    tenant_id: Uuid,
    order_ids: &[String],
) -> Result<Vec<Document>, sqlx::Error> {
    sqlx::query_as(FIND)
        .bind(tenant_id)
        .bind(order_ids)
        .fetch_all(database)
        .await
}

impl From<&Row> for Document {
    /// The document as the read model would store it.
    fn from(row: &Row) -> Self {
        Self {
            order_id: row.document.order_id.clone(),
            version: row.document.version,
            position: row.position,
            json: encode(&row.document),
        }
    }
}

impl<'r> FromRow<'r, PgRow> for Document {
    fn from_row(record: &'r PgRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            order_id: record.try_get("order_id")?,
            version: row::number(record, "version")?,
            position: row::number(record, "position")?,
            json: record.try_get("document")?,
        })
    }
}
