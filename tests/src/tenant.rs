//! Tenants with a key for each kind of user.

use daybook_service::identity::{Scope, generate_api_key};
use sqlx::PgPool;
use uuid::Uuid;

/// A tenant and its keys.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// The tenant.
    pub tenant_id: Uuid,
    /// Writes and reads orders.
    pub service_key: String,
    /// Reads orders.
    pub frontend_key: String,
    /// Reads orders and histories.
    pub auditor_key: String,
    /// Operates projections.
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
        Ok(Self {
            tenant_id,
            service_key: create_key(superuser, tenant_id, &[Scope::OrdersWrite, Scope::OrdersRead]).await?,
            frontend_key: create_key(superuser, tenant_id, &[Scope::OrdersRead]).await?,
            auditor_key: create_key(superuser, tenant_id, &[Scope::OrdersRead, Scope::EventsRead]).await?,
            operator_key: create_key(
                superuser,
                tenant_id,
                &[Scope::ProjectionsOperate, Scope::OrdersRead],
            )
            .await?,
        })
    }

    /// Another key of this tenant.
    ///
    /// # Errors
    /// When the database does not take it.
    pub async fn key(&self, superuser: &PgPool, scopes: &[Scope]) -> anyhow::Result<String> {
        create_key(superuser, self.tenant_id, scopes).await
    }
}

async fn create_key(superuser: &PgPool, tenant_id: Uuid, scopes: &[Scope]) -> anyhow::Result<String> {
    let key = generate_api_key();
    let scopes: Vec<&str> = scopes.iter().map(|scope| scope.as_str()).collect();
    sqlx::query(
        "INSERT INTO event_store.api_key (prefix, secret_sha256, tenant_id, name, scopes)
         VALUES ($1, $2, $3, 'test', $4)",
    )
    .bind(&key.prefix)
    .bind(key.sha256.as_slice())
    .bind(tenant_id)
    .bind(&scopes)
    .execute(superuser)
    .await?;
    Ok(key.plain)
}
