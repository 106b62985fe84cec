//! What login roles may not do, and to whom things belong.

use daybook_tests::cli::daybook;
use daybook_tests::database::{Database, ROLES};

use super::{Log, command};

/// What is wrong with the owners, settings and rights of a migrated database; no rows when nothing is.
const VIOLATIONS: &str = "
    WITH function AS (
        SELECT p.oid::regprocedure AS name, p.proowner, p.prosecdef, p.proconfig FROM pg_proc AS p
        WHERE p.pronamespace IN ('event_store'::regnamespace, 'read_model'::regnamespace)
    ), login AS (
        SELECT r.oid, r.rolname AS name FROM pg_roles AS r WHERE r.rolname = ANY ($1)
    )
    SELECT format('%s belongs to %s, which can log in', f.name, r.rolname)
    FROM function AS f JOIN pg_roles AS r ON r.oid = f.proowner WHERE r.rolcanlogin OR r.rolsuper
    UNION ALL
    SELECT format('%s runs as its owner, and its path is %s', f.name, f.proconfig)
    FROM function AS f
    WHERE f.prosecdef AND NOT 'search_path=pg_catalog, pg_temp' = ANY (coalesce(f.proconfig, '{}'))
    UNION ALL
    SELECT format('%s owns %s', l.name, pg_describe_object(d.classid, d.objid, d.objsubid))
    FROM pg_shdepend AS d JOIN login AS l ON l.oid = d.refobjid
    WHERE d.refclassid = 'pg_authid'::regclass AND d.deptype = 'o'
      AND d.dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
    UNION ALL
    SELECT format('%s may create in the schema %s', l.name, n.nspname)
    FROM login AS l CROSS JOIN pg_namespace AS n WHERE has_schema_privilege(l.oid, n.oid, 'CREATE')
    UNION ALL
    SELECT format('%s may %s in the database', l.name, p.privilege)
    FROM login AS l CROSS JOIN (VALUES ('CREATE'), ('TEMPORARY')) AS p (privilege)
    WHERE has_database_privilege(l.oid, current_database(), p.privilege)
    UNION ALL
    SELECT format('%s is a member of %s', l.name, m.roleid::regrole)
    FROM login AS l JOIN pg_auth_members AS m ON m.member = l.oid
";

/// The database is a copy, and a copy does not keep who may make temporary tables in it: every `migrate` sees to that.
#[tokio::test]
async fn login_roles_own_nothing_and_may_create_nothing_and_functions_run_as_roles_that_cannot_log_in()
-> anyhow::Result<()> {
    let database = Database::create().await?;
    let said = daybook(&[("DATABASE_URL", &database.superuser_url())], &["migrate"]).await?;
    assert_eq!(said.code, 0, "{said:?}");
    let violations: Vec<String> = sqlx::query_scalar(VIOLATIONS)
        .bind(&ROLES[..])
        .fetch_all(&database.superuser().await?)
        .await?;
    assert!(violations.is_empty(), "{violations:#?}");
    Ok(())
}

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
