//! Tenants with a key for each kind of user.

use daybook_service::identity::{Audience, NewApiKey, Scope, generate_api_key};
use sqlx::PgPool;
use uuid::Uuid;

/// A tenant and its keys, and a key of the deployment's.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// The tenant.
    pub tenant_id: Uuid,
    /// Writes and reads orders and stock.
    pub service_key: String,
    /// Reads orders and stock.
    pub frontend_key: String,
    /// Reads orders, stock and histories.
    pub auditor_key: String,
    /// Operates projections. It is the deployment's, and not the tenant's.
    pub operator_key: String,
}

impl Tenant {
    /// Makes a tenant in partition 0.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn create(superuser: &PgPool) -> anyhow::Result<Self> {
        let tenant_id = Uuid::now_v7();
        sqlx::query("INSERT INTO event_store.tenant (tenant_id, name, partition) VALUES ($1, $2, 0)")
            .bind(tenant_id)
            .bind(format!("t-{}", tenant_id.simple()))
            .execute(superuser)
            .await?;
        let key = async |audience: Audience| create_key(superuser, Some(tenant_id), &audience.scopes()).await;
        Ok(Self {
            tenant_id,
            service_key: key(Audience::Service).await?,
            frontend_key: key(Audience::Frontend).await?,
            auditor_key: key(Audience::Auditor).await?,
            operator_key: create_key(superuser, None, &Audience::Operator.scopes()).await?,
        })
    }

    /// A key with this scope alone: the tenant's, or the deployment's where only that can have it.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn key_with(&self, superuser: &PgPool, scope: Scope) -> anyhow::Result<String> {
        let tenant_id = (!scope.is_deployments()).then_some(self.tenant_id);
        create_key(superuser, tenant_id, &[scope]).await
    }

    /// Keys that together have every scope but one: one of the tenant's and one of the deployment's.
    ///
    /// # Errors
    /// When the database does not take one.
    pub async fn keys_without(&self, superuser: &PgPool, scope: Scope) -> anyhow::Result<[String; 2]> {
        let others = Scope::ALL.iter().copied().filter(|other| *other != scope);
        let (deployments, tenants): (Vec<_>, Vec<_>) = others.partition(|other| other.is_deployments());
        Ok([
            create_key(superuser, Some(self.tenant_id), &tenants).await?,
            create_key(superuser, None, &deployments).await?,
        ])
    }
}

async fn create_key(superuser: &PgPool, tenant_id: Option<Uuid>, scopes: &[Scope]) -> anyhow::Result<String> {
    let key = generate_api_key();
    let scopes: Vec<&str> = scopes.iter().map(|scope| scope.as_str()).collect();
    store_key(superuser, &key, tenant_id, &format!("{{{}}}", scopes.join(","))).await?;
    Ok(key.plain)
}

/// Stores a key of a tenant's, or of the deployment's, with scopes as they are written in SQL.
///
/// # Errors
/// When the database does not take it.
pub async fn store_key(
    superuser: &PgPool,
    key: &NewApiKey,
    tenant_id: Option<Uuid>,
    scopes: &str,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO event_store.api_key (prefix, secret_sha256, tenant_id, name, scopes)
         VALUES ($1, $2, $3, 'test', $4::text::text[])",
    )
    .bind(&key.prefix)
    .bind(key.sha256.as_slice())
    .bind(tenant_id)
    .bind(scopes)
    .execute(superuser)
    .await?;
    Ok(())
}
