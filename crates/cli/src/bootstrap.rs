//! `daybook bootstrap`: a tenant and a key for each kind of user, so that there is something to begin with.
//!
//! All of it is one transaction. The keys are shown once; the database keeps their hashes.

use std::time::Duration;

use clap::Args;
use daybook_postgres::within;
use daybook_service::identity::{Scope, generate_api_key};
use serde::Serialize;
use sqlx::{Acquire as _, PgConnection, PgTransaction};
use uuid::Uuid;

use crate::database;
use crate::failure::Failure;
use crate::output::{Format, print, print_json};
use crate::settings::Settings;

/// How long making the tenant and its keys may take.
const MAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes a tenant and four API keys for it, in the database of DATABASE_URL.
///
/// The keys are for a service, a frontend, an auditor and an operator. They are shown once. Exits with 4 when the tenant
/// exists already.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The tenant's name: small letters, digits and hyphens, at most 63.
    #[arg(long, value_name = "NAME")]
    tenant: String,

    /// The partition of the log that will hold all of the tenant, for good.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    partition: i32,

    /// What the output looks like.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// What a kind of user may do.
struct KeyPlan {
    name: &'static str,
    scopes: &'static [Scope],
}

const SERVICE: KeyPlan = KeyPlan {
    name: "service",
    scopes: &[Scope::OrdersWrite, Scope::OrdersRead],
};
const FRONTEND: KeyPlan = KeyPlan {
    name: "frontend",
    scopes: &[Scope::OrdersRead],
};
const AUDITOR: KeyPlan = KeyPlan {
    name: "auditor",
    scopes: &[Scope::OrdersRead, Scope::EventsRead],
};
const OPERATOR: KeyPlan = KeyPlan {
    name: "operator",
    scopes: &[Scope::ProjectionsOperate, Scope::OrdersRead],
};

/// What was made.
#[derive(Serialize)]
struct Made {
    tenant_id: Uuid,
    service_key: String,
    frontend_key: String,
    auditor_key: String,
    operator_key: String,
}

/// Runs the verb.
pub(crate) async fn run(settings: &Settings, arguments: &Arguments) -> Result<(), Failure> {
    let mut connection = database::connect(settings).await?;
    let made = within(MAKE_TIMEOUT, make(&mut connection, arguments)).await?;
    match arguments.output {
        Format::Json => print_json(&made),
        Format::Text => print(&text(&made)),
    }
}

/// Makes all of it, or nothing.
async fn make(connection: &mut PgConnection, arguments: &Arguments) -> Result<Made, Failure> {
    let mut transaction = connection.begin().await?;
    let tenant_id = make_tenant(&mut transaction, &arguments.tenant, arguments.partition).await?;
    let made = Made {
        tenant_id,
        service_key: make_key(&mut transaction, tenant_id, &SERVICE).await?,
        frontend_key: make_key(&mut transaction, tenant_id, &FRONTEND).await?,
        auditor_key: make_key(&mut transaction, tenant_id, &AUDITOR).await?,
        operator_key: make_key(&mut transaction, tenant_id, &OPERATOR).await?,
    };
    transaction.commit().await?;
    Ok(made)
}

fn text(made: &Made) -> String {
    format!(
        "tenant    {}\nservice   {}\nfrontend  {}\nauditor   {}\noperator  {}",
        made.tenant_id, made.service_key, made.frontend_key, made.auditor_key, made.operator_key
    )
}

/// Makes the tenant, and makes the transaction the tenant's own: row-level security holds the owner of the tables, too.
async fn make_tenant(
    transaction: &mut PgTransaction<'_>,
    name: &str,
    partition: i32,
) -> Result<Uuid, Failure> {
    let tenant_id = Uuid::now_v7();
    sqlx::query("SELECT set_config('daybook.tenant_id', $1::text, true)")
        .bind(tenant_id.to_string())
        .execute(&mut **transaction)
        .await?;
    let made = sqlx::query(
        "INSERT INTO event_store.tenant (tenant_id, name, partition)
         SELECT $1, $2, l.partition FROM event_store.log AS l WHERE l.partition = $3",
    )
    .bind(tenant_id)
    .bind(name)
    .bind(partition)
    .execute(&mut **transaction)
    .await
    .map_err(|error| tenant_failure(error, name))?;
    match made.rows_affected() {
        0 => Err(Failure::Usage(format!("the log has no partition {partition}"))),
        _ => Ok(tenant_id),
    }
}

/// The constraints of the table are the guards; what one of them means is told by its name.
fn tenant_failure(error: sqlx::Error, name: &str) -> Failure {
    match error.as_database_error().and_then(|error| error.constraint()) {
        Some("tenant_name_key") => Failure::Conflict(format!("the tenant {name} exists already")),
        Some("tenant_name_check") => Failure::Usage(format!(
            "`{name}` is no name for a tenant: small letters, digits and hyphens, at most 63, the first no hyphen"
        )),
        _ => error.into(),
    }
}

async fn make_key(
    transaction: &mut PgTransaction<'_>,
    tenant_id: Uuid,
    plan: &KeyPlan,
) -> Result<String, Failure> {
    let key = generate_api_key();
    let scopes: Vec<&str> = plan.scopes.iter().map(|scope| scope.as_str()).collect();
    sqlx::query(
        "INSERT INTO event_store.api_key (prefix, secret_sha256, tenant_id, name, scopes)
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(&key.prefix)
    .bind(key.sha256.as_slice())
    .bind(tenant_id)
    .bind(plan.name)
    .bind(scopes)
    .execute(&mut **transaction)
    .await?;
    Ok(key.plain)
}
