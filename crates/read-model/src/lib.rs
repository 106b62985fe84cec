//! The read models: one file each, with its row, its fold, how it is loaded and stored, and its queries.
//!
//! A read model is a pure fold over rows ([`ReadModel`]): the projector loads the rows that a batch of events touches,
//! folds in memory, and stores what changed, whatever the model. Every row carries the position of the event that last
//! changed it, so an event that comes again changes nothing, and a row never goes back.
//!
//! Folds hold no business rules. What follows from what was decided when the event was recorded, and events say it:
//! where the order stands, what it costs, what a customer's totals gain or lose.

pub mod access_path;
pub mod checkpoint;
pub mod customer_totals;
mod event;
pub mod event_index;
#[cfg(test)]
mod laws;
mod model;
pub mod order_details;
pub mod order_list;
mod row;
#[cfg(feature = "openapi")]
pub mod schema;
pub mod status;
pub mod stock_levels;
#[cfg(test)]
mod testing;

pub use checkpoint::Advance;
pub use customer_totals::CustomerTotals;
pub use daybook_domain::aggregates::AnyEvent as Body;
pub use event::{DecodeError, Event};
pub use event_index::EventIndex;
pub use model::{
    Categories, FoldError, Generation, Key, Loaded, ReadModel, RowsQuery, StreamKey, connect_options,
};
pub use order_details::OrderDetails;
pub use order_list::OrderList;
pub use stock_levels::StockLevels;

/// Every read model, listed once: an array with the value of an expression for each of them, in which it has the name
/// that is given. `each_read_model!(M => M::NAME)` is their names.
#[macro_export]
macro_rules! each_read_model {
    ($name:ident => $each:expr) => {
        $crate::each_read_model!(@list $name => $each;
            OrderDetails,
            OrderList,
            CustomerTotals,
            StockLevels,
            EventIndex,
        )
    };
    (@list $name:ident => $each:expr; $($model:ident,)+) => {
        [$({
            type $name = $crate::$model;
            $each
        }),+]
    };
}

/// The migrations of the schema `read_model`, which come after those of `event_store`; run by `daybook migrate`, never
/// by a service.
pub fn migrator() -> sqlx::migrate::Migrator {
    let mut migrator = sqlx::migrate!("../../migrations/read-model");
    migrator.create_schema("read_model");
    migrator.dangerous_set_table_name("read_model.migration");
    migrator
}

/// The newest migration that this build knows; a service refuses to work on an older schema.
pub fn schema_version() -> i64 {
    migrator()
        .iter()
        .map(|migration| migration.version)
        .max()
        .unwrap_or(0)
}

/// Every SQL statement of this crate, by name, for the test that prepares each against the migrated schema. Those that
/// name tables name their first generation.
pub fn statements() -> impl Iterator<Item = (String, sqlx::AssertSqlSafe<String>)> {
    let owned = |&(name, statement): &(&str, &str)| (name.to_owned(), statement.to_owned());
    let models =
        each_read_model!(M => of_trait::<M>().chain(M::STATEMENTS.iter().map(owned)).collect::<Vec<_>>());
    checkpoint::STATEMENTS
        .iter()
        .map(owned)
        .chain(models.into_iter().flatten())
        .map(|(name, statement)| (name, Generation::FIRST.fill(&statement)))
}

fn of_trait<M: ReadModel>() -> impl Iterator<Item = (String, String)> {
    let kinds = [
        ("insert", "", "", false),
        ("insert_and_advance", "", "", true),
        ("store", M::REPLACE, M::OVERWRITE, false),
        ("store_and_advance", M::REPLACE, M::OVERWRITE, true),
    ];
    let writing = kinds.into_iter().map(|(kind, replace, overwrite, advances)| {
        let statement = model::write_statement(replace, M::INSERT, overwrite, advances);
        (format!("{}.{kind}", M::NAME), statement)
    });
    writing.chain([(format!("{}.load", M::NAME), M::LOAD.to_owned())])
}
