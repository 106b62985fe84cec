//! The statements of the read models on a real Postgres with the real schema: what is stored is loaded, lists are paged
//! without hole or repetition from indexes, and no tenant sees another's rows.

mod history;
mod lists;
mod plans;
mod queries;
mod rows;

use std::collections::HashMap;

use daybook_read_model::{Event, Generation, ReadModel, connect_options};
use daybook_tests::{check, database};
use sqlx::postgres::PgPoolOptions;
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, PgPool};

/// A migrated database. The server goes when this goes.
struct Database {
    query: PgPool,
    projector: PgConnection,
    database: database::Database,
}

impl Database {
    async fn create() -> Self {
        let database = database::Database::create().await.expect("a database");
        let url = database.url("daybook_projector");
        let options = connect_options(url.parse().expect("an address"));
        // One connection, so that what it has read can be asked of the session.
        let query = PgPoolOptions::new().max_connections(1);
        Self {
            query: query
                .connect(&database.url("daybook_query"))
                .await
                .expect("it lets us in"),
            projector: options.connect().await.expect("it lets us in"),
            database,
        }
    }

    async fn superuser(&self) -> PgConnection {
        PgConnection::connect(&self.database.superuser_url())
            .await
            .expect("it lets us in")
    }

    /// Folds events from nothing and stores the rows in the live tables.
    async fn project<M: ReadModel>(&mut self, events: &[Event]) -> Vec<M::Row> {
        let rows = fold_all::<M>(events);
        M::store(&mut self.projector, Generation::FIRST, &refs(&rows), None)
            .await
            .expect("rows can be stored");
        rows
    }
}

fn refs<R>(rows: &[R]) -> Vec<&R> {
    rows.iter().collect()
}

/// The rows that these events lead to.
fn fold_all<M: ReadModel>(events: &[Event]) -> Vec<M::Row> {
    let rows = check::fold::<M>(events).expect("a valid history");
    rows.into_values().collect()
}

/// The live rows that there are of these keys.
async fn loaded<M: ReadModel>(database: &mut Database, keys: &[M::Key]) -> HashMap<M::Key, M::Row> {
    let loaded = M::load(&mut database.projector, Generation::FIRST, keys, usize::MAX).await;
    loaded.expect("rows can be loaded").rows
}
