//! The database, for the verbs of its administrator.

use sqlx::{Connection as _, PgConnection};

use crate::failure::Failure;
use crate::settings::Settings;

/// Connects to the database of `DATABASE_URL`.
pub(crate) async fn connect(settings: &Settings) -> Result<PgConnection, Failure> {
    let url = settings.database_url()?;
    PgConnection::connect(url).await.map_err(|error| match error {
        // The message must not repeat the URL: it may hold a password.
        sqlx::Error::Configuration(cause) => {
            Failure::Usage(format!("DATABASE_URL is not a URL of Postgres: {cause}"))
        }
        error => Failure::Connect(error),
    })
}
