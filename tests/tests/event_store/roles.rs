//! What login roles may not do.

use daybook_tests::database::ROLES;

use super::{Log, command};

#[tokio::test]
async fn no_login_role_rewrites_events_or_sees_another_tenants() -> anyhow::Result<()> {
    let mut log = Log::new().await?;
    log.append(&[command("a", None, 1)]).await?;
    let writes = [
        "UPDATE event_store.event SET payload = '{}'",
        "DELETE FROM event_store.event",
        "TRUNCATE event_store.event",
        "INSERT INTO event_store.event SELECT * FROM event_store.event",
        "UPDATE event_store.log SET generation = gen_random_uuid()",
        "TRUNCATE event_store.command_0",
        "DELETE FROM event_store.command",
        "DROP TABLE event_store.event",
        "ALTER TABLE event_store.event DISABLE ROW LEVEL SECURITY",
        "CREATE TABLE event_store.mine (id int)",
        "SELECT secret_sha256 FROM event_store.api_key",
    ];
    for role in ROLES {
        let pool = log.database.pool(role).await?;
        for write in writes {
            let refused = sqlx::query(write).execute(&pool).await.expect_err(write);
            let code = refused
                .as_database_error()
                .and_then(|error| error.code().map(String::from));
            assert_eq!(code.as_deref(), Some("42501"), "{role}: {write}: {refused}");
        }
    }
    for role in ["daybook_command", "daybook_query"] {
        let pool = log.database.pool(role).await?;
        let seen: i64 = sqlx::query_scalar("SELECT count(*) FROM event_store.event")
            .fetch_one(&pool)
            .await?;
        assert_eq!(seen, 0, "{role} sees events without a tenant");
    }
    let superuser = log.database.superuser().await?;
    for write in &writes[..3] {
        let refused = sqlx::query(*write).execute(&superuser).await.expect_err(write);
        assert!(
            refused.to_string().contains("never rewritten"),
            "{write}: {refused}"
        );
    }
    assert_eq!(log.events().await?.len(), 1);
    Ok(())
}
