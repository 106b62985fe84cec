//! `daybook bootstrap`: a tenant with a key for each kind of its users, and a key for the deployment's operators, so that
//! there is something to begin with.
//!
//! All of it is one transaction. The keys are shown once; the database keeps their hashes.

use std::time::Duration;

use clap::Args;
use daybook_postgres::within;
use daybook_service::identity::{Audience, Scope, generate_api_key};
use serde::Serialize;
use sqlx::{Acquire as _, PgConnection, PgTransaction};
use uuid::Uuid;

use crate::database;
use crate::failure::Failure;
use crate::output::{Format, print, print_json};
use crate::settings::Settings;

/// How long making tenants and keys may take.
const MAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes a tenant with three API keys, a key for operators, or both, in the database of DATABASE_URL.
///
/// A tenant's keys are for a service, a frontend and an auditor. The operators' key is the deployment's: it operates
/// projections and administers tenants, and reads no tenant's data. Keys are shown once. Exits with 4 when the tenant exists
/// already.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Make a tenant of this name: small letters, digits and hyphens, at most 63.
    #[arg(long, value_name = "NAME", required_unless_present = "operator")]
    tenant: Option<String>,

    /// Make a key for the deployment's operators.
    #[arg(long)]
    operator: bool,

    /// The partition of the log that will hold all of the tenant, for good.
    #[arg(long, value_name = "NUMBER", default_value_t = 0, requires = "tenant")]
    partition: i32,

    /// What the output looks like.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

/// What was made.
#[derive(Default, Serialize)]
struct Made {
    #[serde(flatten)]
    tenant: Option<Tenant>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operator_key: Option<String>,
}

/// A tenant and its keys.
#[derive(Serialize)]
struct Tenant {
    tenant_id: Uuid,
    service_key: String,
    frontend_key: String,
    auditor_key: String,
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
    let mut made = Made::default();
    if let Some(name) = &arguments.tenant {
        let tenant_id = make_tenant(&mut transaction, name, arguments.partition).await?;
        made.tenant = Some(Tenant {
            tenant_id,
            service_key: make_key(&mut transaction, Some(tenant_id), "service", Audience::Service).await?,
            frontend_key: make_key(&mut transaction, Some(tenant_id), "frontend", Audience::Frontend).await?,
            auditor_key: make_key(&mut transaction, Some(tenant_id), "auditor", Audience::Auditor).await?,
        });
    }
    if arguments.operator {
        made.operator_key = Some(make_key(&mut transaction, None, "operator", Audience::Operator).await?);
    }
    transaction.commit().await?;
    Ok(made)
}

fn text(made: &Made) -> String {
    let tenant = made.tenant.iter().map(|tenant| {
        format!(
            "tenant    {}\nservice   {}\nfrontend  {}\nauditor   {}",
            tenant.tenant_id, tenant.service_key, tenant.frontend_key, tenant.auditor_key
        )
    });
    let operator = made.operator_key.iter().map(|key| format!("operator  {key}"));
    tenant.chain(operator).collect::<Vec<_>>().join("\n")
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

/// Makes a key of a tenant, or, without one, of the deployment. Which scopes a kind may have is a constraint of the table.
async fn make_key(
    transaction: &mut PgTransaction<'_>,
    tenant_id: Option<Uuid>,
    name: &str,
    audience: Audience,
) -> Result<String, Failure> {
    let key = generate_api_key();
    let scopes: Vec<&str> = audience.scopes().into_iter().map(Scope::as_str).collect();
    sqlx::query(
        "INSERT INTO event_store.api_key (prefix, secret_sha256, tenant_id, name, scopes)
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(&key.prefix)
    .bind(key.sha256.as_slice())
    .bind(tenant_id)
    .bind(name)
    .bind(scopes)
    .execute(&mut **transaction)
    .await?;
    Ok(key.plain)
}
