//! The database, for the verbs of its administrator.

use daybook_postgres::{CONNECT_TIMEOUT, within};
use sqlx::{Connection as _, PgConnection};

use crate::failure::Failure;
use crate::settings::Settings;

/// Connects to the database of `DATABASE_URL`.
pub(crate) async fn connect(settings: &Settings) -> Result<PgConnection, Failure> {
    let url = settings.database_url()?;
    let connecting = within(CONNECT_TIMEOUT, PgConnection::connect(url));
    connecting.await.map_err(|error| match error {
        // The message must not repeat the URL: it may hold a password.
        sqlx::Error::Configuration(cause) => {
            Failure::Usage(format!("DATABASE_URL is not a URL of Postgres: {cause}"))
        }
        error => Failure::Connect(error),
    })
}
