//! `daybook migrate`: brings the schemas of a database up to this version.
//!
//! Migrations only go forward, each in a transaction of its own, under a lock that keeps a second `migrate` waiting. One
//! that was changed after it had been applied, or that this version does not know, stops everything.

use std::collections::HashMap;

use clap::Args;
use sqlx::migrate::{AppliedMigration, Migrate as _, MigrateError, Migration, Migrator};
use sqlx::{Executor as _, PgConnection};

use crate::database;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::print;
use crate::settings::Settings;

/// Brings the database of DATABASE_URL up to this version's schemas.
///
/// Needs the rights of an administrator: it makes roles. The services never migrate by themselves.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Only shows what is pending; exits with 1 when anything is.
    #[arg(long)]
    check: bool,
}

/// Nobody but administrators makes temporary tables and types, which may take the place of others. Each `migrate` says so,
/// since a database that was copied or restored from a dump lets everybody again. Two at once would fail.
const NO_TEMPORARY_TABLES: &str = "
    DO $$
    BEGIN
        PERFORM pg_advisory_xact_lock(hashtext('daybook.migrate'));
        EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
    END
    $$
";

/// A schema with its migrations and the table that remembers them.
struct Schema {
    name: &'static str,
    table: &'static str,
    migrator: Migrator,
}

impl Schema {
    fn failure(&self, source: MigrateError) -> Failure {
        Failure::Migrate {
            schema: self.name,
            source,
        }
    }
}

/// The schemas, in the order in which they depend on each other.
fn schemas() -> [Schema; 2] {
    [
        Schema {
            name: "event_store",
            table: "event_store.migration",
            migrator: daybook_event_store::migrator(),
        },
        Schema {
            name: "read_model",
            table: "read_model.migration",
            migrator: daybook_read_model::migrator(),
        },
    ]
}

/// Runs the verb.
pub(crate) async fn run(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    let mut connection = database::connect(settings).await?;
    if !arguments.check {
        connection.execute(NO_TEMPORARY_TABLES).await?;
    }
    let mut pending_count = 0;
    for schema in schemas() {
        let pending = examine(&mut connection, &schema).await?;
        pending_count += pending.len();
        if arguments.check {
            show("pending", &schema, &pending)?;
        } else {
            migrate(&mut connection, &schema, &pending).await?;
        }
    }
    match pending_count {
        0 => print("the schemas are up to date"),
        _ if arguments.check => Err(Failure::Shown(Exit::Failed)),
        _ => Ok(()),
    }
}

/// Migrates a schema and shows what was applied, also when one in the middle failed.
async fn migrate(
    connection: &mut PgConnection,
    schema: &Schema,
    pending: &[&Migration],
) -> Result<(), Failure> {
    let outcome = schema.migrator.run(&mut *connection).await;
    let left = match &outcome {
        Ok(()) => Vec::new(),
        // Where even this cannot be told, the failure itself says why.
        Err(_) => examine(connection, schema)
            .await
            .unwrap_or_else(|_| pending.to_vec()),
    };
    let is_applied = |migration: &&&Migration| !left.iter().any(|other| other.version == migration.version);
    let applied: Vec<&Migration> = pending.iter().filter(is_applied).copied().collect();
    show("applied", schema, &applied)?;
    outcome.map_err(|source| schema.failure(source))
}

fn show(word: &str, schema: &Schema, migrations: &[&Migration]) -> Result<(), Failure> {
    for migration in migrations {
        let Migration {
            version, description, ..
        } = migration;
        print(&format!("{word}  {}  {version:04} {description}", schema.name))?;
    }
    Ok(())
}

async fn examine<'a>(
    connection: &mut PgConnection,
    schema: &'a Schema,
) -> Result<Vec<&'a Migration>, Failure> {
    pending(connection, schema)
        .await
        .map_err(|source| schema.failure(source))
}

/// What has not been applied yet. What has been must be what this version knows.
async fn pending<'a>(
    connection: &mut PgConnection,
    schema: &'a Schema,
) -> Result<Vec<&'a Migration>, MigrateError> {
    let applied: HashMap<i64, AppliedMigration> = applied(connection, schema)
        .await?
        .into_iter()
        .map(|migration| (migration.version, migration))
        .collect();
    if let Some(unknown) = applied
        .keys()
        .find(|version| !schema.migrator.version_exists(**version))
    {
        return Err(MigrateError::VersionMissing(*unknown));
    }
    let mut pending = Vec::new();
    for migration in schema.migrator.iter() {
        match applied.get(&migration.version) {
            Some(applied) if applied.checksum != migration.checksum => {
                return Err(MigrateError::VersionMismatch(migration.version));
            }
            Some(_) => {}
            None => pending.push(migration),
        }
    }
    Ok(pending)
}

async fn applied(
    connection: &mut PgConnection,
    schema: &Schema,
) -> Result<Vec<AppliedMigration>, MigrateError> {
    let is_there: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
        .bind(schema.table)
        .fetch_one(&mut *connection)
        .await?;
    if is_there {
        connection.list_applied_migrations(schema.table).await
    } else {
        Ok(Vec::new())
    }
}
