//! Columns of a row as the types that the folds use.

use sqlx::postgres::PgRow;
use sqlx::{Error, Row as _};

/// Numbers that count are not negative; Postgres has no unsigned type for them.
pub(crate) fn number(row: &PgRow, column: &str) -> Result<u64, Error> {
    row.try_get::<i64, _>(column).map(i64::cast_unsigned)
}

/// A column that holds a status by its name.
pub(crate) fn status(row: &PgRow, column: &str) -> Result<daybook_domain::order::Status, Error> {
    let text: &str = row.try_get(column)?;
    crate::status::parse(text)
        .ok_or_else(|| malformed(column, format!("{text:?} is not the status of an order").into()))
}

/// A column that holds a validated value.
pub(crate) fn parse<T, E>(
    row: &PgRow,
    column: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, Error>
where
    E: std::error::Error + Send + Sync + 'static,
{
    parse(row.try_get(column)?).map_err(|error| malformed(column, error.into()))
}

/// A column that holds a validated value or nothing.
pub(crate) fn parse_optional<T, E>(
    row: &PgRow,
    column: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<Option<T>, Error>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let text: Option<&str> = row.try_get(column)?;
    text.map(parse)
        .transpose()
        .map_err(|error| malformed(column, error.into()))
}

fn malformed(column: &str, source: Box<dyn std::error::Error + Send + Sync>) -> Error {
    Error::ColumnDecode {
        index: column.to_owned(),
        source,
    }
}
