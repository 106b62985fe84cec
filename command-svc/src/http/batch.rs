//! Batches over HTTP: `POST /v1/orders/batch`. The answer is 200, with what became of each item.

use axum::extract::{Request, State};
use axum::response::Response;
use daybook_proto::common::v1 as common;
use daybook_proto::convert::{CommandRequest, JsonBatch};
use daybook_service::error::ApiError;
use daybook_service::openapi::Problem;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::head::Head;
use super::{Endpoint, Receipt, json, read_body, read_json};
use crate::batch::{self, Batch, Unreadable};
use crate::handler::Served;
use crate::mailbox::Together;

/// What a batch says besides its items.
#[derive(Debug, ToSchema)]
pub struct BatchBody {
    /// How a refused item affects the batch: `ATOMIC`, nothing of it is done; `PARTIAL`, all others are done.
    #[schema(example = "ATOMIC")]
    pub mode: String,
}

/// What became of a batch, as it is answered. The same `Idempotency-Key` and content gives the same answer, byte for byte, once
/// something of it is recorded, a refusal by a rule included; another batch under that key is then refused.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchAnswer {
    /// The outcome.
    pub data: BatchData,
}

/// What became of a batch.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchData {
    /// What became of each item, in their order.
    pub results: Vec<BatchResult>,
    /// How many items there are of each outcome.
    pub summary: BatchSummary,
}

/// What became of one item: its receipt, or why there is none.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchResult {
    /// Which item, from 0.
    pub index: u32,
    /// What was recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub receipt: Option<Receipt>,
    /// Why nothing was. Pointers begin at the item. An item of an atomic batch that another one keeps from being done has the
    /// code `BATCH_REFUSED`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = Problem)]
    pub error: Option<Value>,
}

/// How many items of a batch there are of each outcome.
#[derive(Debug, Serialize, ToSchema)]
pub struct BatchSummary {
    /// All of them.
    pub total: u32,
    /// Those that were done.
    pub succeeded: u32,
    /// Those that were not.
    pub failed: u32,
}

/// Handles a batch of commands that begin aggregates.
pub(super) async fn handle<R>(
    State(endpoint): State<Endpoint<R::Aggregate>>,
    request: Request,
) -> Result<Response, ApiError>
where
    R: CommandRequest<Aggregate: Served> + DeserializeOwned,
{
    let (parts, body) = request.into_parts();
    let key = Head::read_key(&parts.headers)?;
    let JsonBatch { mode, items } = read_body(&parts.headers, body).await?;
    let batch = Batch {
        key,
        mode: together(&mode)?,
        items: items.into_iter().map(|item| read_item::<R>(&item)).collect(),
    };
    let answer = endpoint.handler.handle_batch(batch, &parts.extensions).await?;
    response(answer)
}

/// The meaning of a mode; `None` where none is given.
fn together(mode: &str) -> Result<Option<Together>, ApiError> {
    if mode.is_empty() {
        return Ok(None);
    }
    let known = [
        ("ATOMIC", Together::AllOrNothing),
        ("PARTIAL", Together::EachByItself),
    ];
    let known = known
        .into_iter()
        .find(|(name, _)| mode.eq_ignore_ascii_case(name));
    match known {
        Some((_, together)) => Ok(Some(together)),
        None => Err(ApiError::invalid_field(
            "/mode",
            "UNKNOWN_VALUE",
            "must be ATOMIC or PARTIAL",
        )),
    }
}

fn read_item<R: DeserializeOwned>(item: &RawValue) -> Result<R, Unreadable> {
    let bytes = item.get().as_bytes();
    read_json(bytes).map_err(|error| Unreadable {
        bytes: bytes.to_vec(),
        error,
    })
}

fn response(answer: batch::BatchAnswer) -> Result<Response, ApiError> {
    let (summary, is_replay) = (answer.summary(), answer.is_replay);
    let receipts = answer.results.iter().flatten();
    // They were recorded in the order of the items.
    let token = receipts.last().map(|receipt| receipt.consistency_token.clone());
    let results = (0..)
        .zip(answer.results)
        .map(|(index, result)| of_item(index, result));
    let data = BatchData {
        results: results.collect::<Result<_, _>>()?,
        summary: BatchSummary {
            total: summary.total,
            succeeded: summary.succeeded,
            failed: summary.failed,
        },
    };
    json(&BatchAnswer { data }, &token.unwrap_or_default(), is_replay)
}

fn of_item(index: u32, result: Result<common::Receipt, ApiError>) -> Result<BatchResult, ApiError> {
    let (receipt, error) = match result {
        Ok(receipt) => (Some(receipt.try_into()?), None),
        Err(error) => (None, Some(error.to_item_problem())),
    };
    Ok(BatchResult {
        index,
        receipt,
        error,
    })
}
