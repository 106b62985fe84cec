//! A database for each test, and rows in its tables.

use std::collections::HashMap;

use daybook_devstack::testing::{TestCluster, test_cluster};
use daybook_read_model::{Event, Generation, ReadModel, connect_options, migrator, schema_version};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions as _, Connection as _, PgConnection, PgPool};
use uuid::Uuid;

/// A migrated database. The server goes when this goes.
pub(crate) struct Database {
    name: String,
    pub(crate) query: PgPool,
    pub(crate) projector: PgConnection,
    cluster: TestCluster,
}

impl Database {
    pub(crate) async fn create() -> Self {
        let cluster = test_cluster().await.expect("a server for tests");
        let template = format!("daybook_read_model_{}", schema_version());
        cluster
            .ensure_template(&template, async |url| migrate(&cluster, url).await)
            .await
            .expect("a migrated template");
        let name = format!("read_model_{}", Uuid::now_v7().simple());
        cluster
            .create_database(&name, Some(&template))
            .await
            .expect("a database");
        let options: PgConnectOptions = cluster
            .url("daybook_projector", &name)
            .parse()
            .expect("an address");
        Self {
            query: PgPoolOptions::new()
                .max_connections(1)
                .connect(&cluster.url("daybook_query", &name))
                .await
                .expect("it lets us in"),
            projector: connect_options(options).connect().await.expect("it lets us in"),
            name,
            cluster,
        }
    }

    pub(crate) async fn superuser(&self) -> PgConnection {
        self.cluster.connect(&self.name).await.expect("it lets us in")
    }

    /// Folds events from nothing and stores the rows in the live tables.
    pub(crate) async fn project<M: ReadModel>(&mut self, events: &[Event]) -> Vec<M::Row> {
        let rows = fold_all::<M>(events);
        M::store(&mut self.projector, Generation::FIRST, &refs(&rows), None)
            .await
            .expect("rows can be stored");
        rows
    }
}

async fn migrate(cluster: &TestCluster, url: String) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect(&url).await?;
    daybook_event_store::migrator().run(&mut connection).await?;
    migrator().run(&mut connection).await?;
    connection.close().await?;
    cluster
        .enable_login(&["daybook_query", "daybook_projector"])
        .await?;
    Ok(())
}

pub(crate) fn refs<R>(rows: &[R]) -> Vec<&R> {
    rows.iter().collect()
}

/// The rows that these events lead to.
pub(crate) fn fold_all<M: ReadModel>(events: &[Event]) -> Vec<M::Row> {
    let mut rows: HashMap<M::Key, M::Row> = HashMap::new();
    for event in events {
        for key in M::keys(event) {
            if let Some(row) = M::fold(&key, rows.get(&key), event).expect("a valid history") {
                rows.insert(key, row);
            }
        }
    }
    rows.into_values().collect()
}

/// The live rows that there are of these keys.
pub(crate) async fn loaded<M: ReadModel>(
    database: &mut Database,
    keys: &[M::Key],
) -> HashMap<M::Key, M::Row> {
    M::load(&mut database.projector, Generation::FIRST, keys)
        .await
        .expect("rows can be loaded")
}
