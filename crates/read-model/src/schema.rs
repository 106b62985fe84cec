//! How the contract shows what the domain keeps in types of its own, for the OpenAPI description.

use utoipa::ToSchema;

/// Where an order stands. May grow.
#[derive(Debug, ToSchema)]
#[schema(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OrderStatus {
    /// Placed, its lines can still change.
    Placed,
    /// Confirmed, its lines are fixed.
    Confirmed,
    /// Refused by the seller.
    Rejected,
    /// Some of it has been shipped.
    PartiallyShipped,
    /// All of it has been shipped.
    Shipped,
    /// All of it has arrived.
    Delivered,
    /// Called off before anything was shipped.
    Cancelled,
}

/// An amount in a currency.
#[derive(Debug, ToSchema)]
pub struct Money {
    /// The amount in minor units (cents for USD, yen for JPY).
    pub minor: i64,
    /// The ISO 4217 code of the currency.
    #[schema(example = "EUR")]
    pub currency: String,
}

/// A part of a line.
#[derive(Debug, ToSchema)]
pub struct LineQuantity {
    /// The line's number.
    pub line_number: u32,
    /// How many of it.
    pub quantity: u32,
}

/// A postal address.
#[derive(Debug, ToSchema)]
pub struct Address {
    /// Who receives it.
    pub name: String,
    /// Street and number, 1 to 3 lines.
    pub lines: Vec<String>,
    /// The town.
    pub city: String,
    /// The postal code, where there is one.
    #[schema(nullable = false)]
    pub postal_code: Option<String>,
    /// The ISO 3166-1 alpha-2 code of the country.
    pub country: String,
}
