//! The contract's JSON, for the OpenAPI description and for serde. What is stored as it is sent describes itself: an order in
//! `daybook_read_model`, an event's metadata in `daybook_event_store`.

use std::sync::LazyLock;

use daybook_domain::money::Money;
use daybook_event_store::EventDocument;
use daybook_read_model::order_details::{LineView, OrderView};
use daybook_read_model::schema::{Money as MoneySchema, OrderStatus};
use daybook_read_model::{customer_totals, status};
use serde::Serialize;
use time::OffsetDateTime;
use time::serde::rfc3339;
use utoipa::openapi::schema::ArrayBuilder;
use utoipa::openapi::{Ref, RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};
use uuid::Uuid;

use super::examples;
use crate::reads::changes::Change;
use crate::reads::correlation;
use crate::reads::history::HistoryEvent;
use crate::reads::orders::ListedOrder;

/// One resource.
#[derive(Debug, Serialize, ToSchema)]
pub struct Envelope<T> {
    /// The resource.
    pub data: T,
}

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct ListEnvelope<T> {
    /// The items of this page.
    pub data: Vec<T>,
    /// The way to the next page.
    pub pagination: Pagination,
}

/// The way to the next page.
#[derive(Debug, Serialize, ToSchema)]
pub struct Pagination {
    /// Asks for the next page, with everything else as it was; null on the last page.
    #[schema(required)]
    pub next_cursor: Option<String>,
    /// Whether there is a next page.
    pub has_more: bool,
}

/// An order in a list.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = examples::order_summary)]
pub struct OrderSummary {
    /// The order's TypeID.
    pub order_id: String,
    /// The number of the order's events so far.
    pub version: u64,
    /// Where it stands.
    #[schema(value_type = OrderStatus)]
    pub status: &'static str,
    /// The caller's own reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub reference: Option<String>,
    /// Who buys.
    pub customer_id: String,
    /// What it costs.
    #[schema(value_type = MoneySchema)]
    pub total: Money,
    /// How many articles it has, over all lines.
    pub item_count: u64,
    /// When it was placed, by the business's time.
    #[serde(with = "rfc3339")]
    pub placed_at: OffsetDateTime,
    /// When it last changed, by the business's time.
    #[serde(with = "rfc3339")]
    pub updated_at: OffsetDateTime,
    /// Its customer; with `expand=customer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub customer: Option<CustomerTotals>,
    /// What is bought; with `expand=lines`, and then perhaps newer than the other members.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub lines: Option<Vec<LineView>>,
}

/// The members of an order, which `fields` chooses from.
pub static ORDER_FIELDS: LazyLock<Vec<&str>> = LazyLock::new(members::<OrderView>);

/// The members of an order in a list, which `fields` chooses from.
pub static ORDER_SUMMARY_FIELDS: LazyLock<Vec<&str>> = LazyLock::new(members::<OrderSummary>);

/// The members of a customer, which `fields` chooses from.
pub static CUSTOMER_FIELDS: LazyLock<Vec<&str>> = LazyLock::new(members::<CustomerTotals>);

/// The names of a document's members, which live as long as the process.
fn members<T: PartialSchema>() -> Vec<&'static str> {
    let RefOr::T(Schema::Object(document)) = T::schema() else {
        unreachable!("a document is described as an object");
    };
    document
        .properties
        .into_keys()
        .map(|name| &*name.leak())
        .collect()
}

impl From<&ListedOrder> for OrderSummary {
    fn from(order: &ListedOrder) -> Self {
        let row = &order.row;
        Self {
            order_id: row.order_id.clone(),
            version: row.version,
            status: status::name(row.status),
            reference: row.reference.as_ref().map(ToString::to_string),
            customer_id: row.customer_id.to_string(),
            total: Money::new(row.total_minor, row.currency),
            item_count: row.item_count,
            placed_at: row.placed_at,
            updated_at: row.updated_at,
            customer: order.customer.as_ref().map(CustomerTotals::from),
            lines: order.lines.clone(),
        }
    }
}

/// What a customer has bought.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = examples::customer_totals)]
pub struct CustomerTotals {
    /// The customer's id.
    pub customer_id: String,
    /// A total for each currency, by its code.
    pub totals: Vec<CustomerTotal>,
}

impl From<&customer_totals::Customer> for CustomerTotals {
    fn from(customer: &customer_totals::Customer) -> Self {
        Self {
            customer_id: customer.customer_id.to_string(),
            totals: customer.totals.iter().map(CustomerTotal::from).collect(),
        }
    }
}

/// What a customer has bought, in one currency.
#[derive(Debug, Serialize, ToSchema)]
pub struct CustomerTotal {
    /// The currency of the amounts.
    pub currency: String,
    /// How many orders were placed, cancelled and rejected ones included.
    pub orders_placed: u64,
    /// How many of them were cancelled or rejected.
    pub orders_closed: u64,
    /// How many articles are ordered, cancelled and rejected orders left out.
    pub items_ordered: u64,
    /// What they cost, in minor units, cancelled and rejected orders left out.
    pub ordered_minor: i64,
    /// What was paid, in minor units.
    pub paid_minor: i64,
    /// What was refunded, in minor units.
    pub refunded_minor: i64,
}

impl From<&customer_totals::Row> for CustomerTotal {
    fn from(row: &customer_totals::Row) -> Self {
        Self {
            currency: row.key.currency.to_string(),
            orders_placed: row.orders_placed,
            orders_closed: row.orders_closed,
            items_ordered: row.items_ordered,
            ordered_minor: row.ordered_minor,
            paid_minor: row.paid_minor,
            refunded_minor: row.refunded_minor,
        }
    }
}

/// All events that one request caused.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = examples::correlation)]
pub struct Correlation<'a> {
    /// What ties them together.
    pub correlation_id: &'a str,
    /// The events as a tree, from its top down: each comes before those that it caused. They are not nested, however long a chain is.
    pub nodes: Vec<Node<'a>>,
    /// Whether there are more events than these, which are the oldest.
    pub truncated: bool,
}

/// An event in a tree.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CorrelationNode)]
pub struct Node<'a> {
    /// What happened.
    pub event: Event<'a>,
    /// How many events lead to it from the top of the tree: 0 for what nothing here caused.
    pub depth: u32,
    /// The ids of the events that it caused.
    #[schema(value_type = Vec<String>)]
    pub children: &'a [Uuid],
}

impl<'a> Correlation<'a> {
    /// The tree as it is shown.
    ///
    /// # Errors
    /// When what was recorded is no JSON.
    pub fn show(correlation: &'a correlation::Correlation) -> Result<Self, serde_json::Error> {
        let nodes = correlation.nodes.iter().map(|node| {
            Ok(Node {
                event: Event::show(&node.event)?,
                depth: node.depth,
                children: &node.children,
            })
        });
        Ok(Self {
            correlation_id: &correlation.correlation_id,
            nodes: nodes.collect::<Result<_, _>>()?,
            truncated: correlation.is_truncated,
        })
    }
}

/// An event of a history.
#[derive(Debug, Serialize)]
pub struct Event<'a> {
    /// As it was recorded.
    #[serde(flatten)]
    pub recorded: EventDocument<'a>,
    /// What it changed in the document of the aggregate; only with `diff=true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes: Option<&'a [Change]>,
}

impl ToSchema for Event<'_> {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        EventDocument::schemas(schemas);
        Change::schemas(schemas);
        schemas.push((Change::name().into_owned(), Change::schema()));
    }
}

/// One object: what is flattened would be described as two.
impl PartialSchema for Event<'_> {
    fn schema() -> RefOr<Schema> {
        let mut event = EventDocument::schema();
        let RefOr::T(Schema::Object(object)) = &mut event else {
            unreachable!("an event is described as an object");
        };
        let changes = ArrayBuilder::new()
            .items(Ref::from_schema_name(Change::name()))
            .description(Some(
                "What it changed in the document of the aggregate; only with `diff=true`.",
            ));
        object
            .properties
            .insert("changes".to_owned(), Schema::Array(changes.build()).into());
        object.example = Some(examples::event());
        event
    }
}

impl<'a> Event<'a> {
    /// The event as it is shown. Payload and metadata are only checked to be JSON.
    ///
    /// # Errors
    /// When they are not.
    pub fn show(event: &'a HistoryEvent) -> Result<Self, serde_json::Error> {
        Ok(Self {
            recorded: EventDocument::of(&event.recorded)?,
            changes: event.changes.as_deref(),
        })
    }
}
