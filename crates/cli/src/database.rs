//! The database, for the verbs of its administrator.

use std::str::FromStr as _;

use daybook_postgres::{CONNECT_TIMEOUT, within};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, PgConnection};

use crate::failure::Failure;
use crate::settings::Settings;

/// Where an administrator's session looks for what is named without a schema: where nobody else can put anything.
const SEARCH_PATH: (&str, &str) = ("search_path", "pg_catalog, pg_temp");

/// Connects to the database of `DATABASE_URL`.
pub(crate) async fn connect(settings: &Settings) -> Result<PgConnection, Failure> {
    let url = settings.database_url()?;
    let connecting = async {
        PgConnectOptions::from_str(url)?
            .options([SEARCH_PATH])
            .connect()
            .await
    };
    let connected = within(CONNECT_TIMEOUT, connecting).await;
    connected.map_err(|error| match error {
        // The message must not repeat the URL: it may hold a password.
        sqlx::Error::Configuration(cause) => {
            Failure::Usage(format!("DATABASE_URL is not a URL of Postgres: {cause}"))
        }
        error => Failure::Connect(error),
    })
}
