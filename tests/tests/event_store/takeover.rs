//! Whoever has a service's database password gains nothing when an administrator works on the database next.

use daybook_devstack::testing::test_cluster;
use daybook_tests::cli::daybook;
use daybook_tests::database::{Database, ROLES};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

/// What an administrator does with a database.
const VERBS: [&str; 4] = [
    "migrate",
    "bootstrap --tenant acme --operator",
    "idempotency show",
    "idempotency turn --yes",
];

/// What a stranger's code does: it leaves a schema behind when it runs as an administrator, and nothing otherwise.
const PAYLOAD: &str = "BEGIN CREATE SCHEMA gained; EXCEPTION WHEN OTHERS THEN NULL; END";

/// The payload in the attacker's own session, for whatever can be made to call it.
const TEMPORARY: &str = "
    CREATE FUNCTION pg_temp.attack() RETURNS integer LANGUAGE plpgsql AS
        'BEGIN BEGIN CREATE SCHEMA gained; EXCEPTION WHEN OTHERS THEN NULL; END; RETURN 1; END';
    CREATE FUNCTION pg_temp.on_change() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_temp.attack(); RETURN NULL; END'
";

/// Every way to own, replace, alter or add to what is in the database, one statement for each thing that is there.
const ATTACKS: &str = r"
    WITH function AS (
        SELECT p.oid, p.oid::regprocedure AS name FROM pg_proc AS p
        WHERE p.pronamespace IN ('event_store'::regnamespace, to_regnamespace('read_model'))
    ), relation AS (
        SELECT c.oid, c.oid::regclass AS name, c.relkind FROM pg_class AS c
        WHERE c.relnamespace IN ('event_store'::regnamespace, to_regnamespace('read_model'))
    ), schema AS (
        SELECT quote_ident(n.nspname) AS name FROM pg_namespace AS n
        WHERE n.nspname IN ('event_store', 'read_model', 'public', 'pg_catalog')
    )
    SELECT format('CREATE OR REPLACE FUNCTION %s(%s) RETURNS %s LANGUAGE plpgsql AS %L', f.oid::regproc,
                  pg_get_function_arguments(f.oid), pg_get_function_result(f.oid), $1::text) FROM function AS f
    UNION ALL SELECT format('ALTER FUNCTION %s RESET ALL', f.name) FROM function AS f
    UNION ALL SELECT format('ALTER FUNCTION %s OWNER TO CURRENT_USER', f.name) FROM function AS f
    UNION ALL SELECT format(a.attack, r.name) FROM relation AS r CROSS JOIN (VALUES
        ('CREATE TRIGGER attack BEFORE INSERT OR UPDATE OR DELETE ON %s EXECUTE FUNCTION pg_temp.on_change()'),
        ('ALTER TABLE %s ADD COLUMN attack integer DEFAULT pg_temp.attack()'),
        ('ALTER TABLE %s DISABLE ROW LEVEL SECURITY'),
        ('CREATE INDEX ON %s ((pg_temp.attack()))'),
        ('CREATE RULE attack AS ON INSERT TO %s DO ALSO SELECT pg_temp.attack()'),
        ('CREATE POLICY attack ON %s USING (pg_temp.attack() = 1)')
    ) AS a (attack) WHERE r.relkind IN ('r', 'p')
    UNION ALL SELECT format('ALTER TABLE %s OWNER TO CURRENT_USER', r.name) FROM relation AS r
        WHERE r.relkind IN ('r', 'p', 'v', 'S')
    UNION ALL SELECT format('CREATE OR REPLACE VIEW %s AS SELECT *, pg_temp.attack() FROM (%s) AS v', r.name,
                            rtrim(pg_get_viewdef(r.oid), ';')) FROM relation AS r WHERE r.relkind = 'v'
    UNION ALL SELECT format('ALTER TYPE %s OWNER TO CURRENT_USER', t.oid::regtype) FROM pg_type AS t
        WHERE t.typtype = 'e' AND t.typnamespace = 'event_store'::regnamespace
    UNION ALL SELECT format(a.attack, s.name) FROM schema AS s CROSS JOIN (VALUES
        ('CREATE FUNCTION %s.attack() RETURNS void LANGUAGE sql AS ''SELECT'''),
        ('CREATE TABLE %s.attack ()'),
        ('CREATE VIEW %s.attack AS SELECT 1'),
        ('CREATE SEQUENCE %s.attack'),
        ('CREATE DOMAIN %s.attack AS integer'),
        ('CREATE OPERATOR %s.= (LEFTARG = text, RIGHTARG = integer, FUNCTION = pg_catalog.starts_with)'),
        ('ALTER SCHEMA %s OWNER TO CURRENT_USER')
    ) AS a (attack)
    UNION ALL SELECT format(a.attack, r.rolname) FROM pg_roles AS r CROSS JOIN (VALUES
        ('SET ROLE %I'), ('GRANT %I TO CURRENT_USER'), ('ALTER ROLE %I SUPERUSER')
    ) AS a (attack) WHERE r.rolsuper OR r.rolname LIKE 'daybook\_%' AND NOT r.rolcanlogin
    UNION ALL SELECT a.attack FROM (VALUES
        ('CREATE SCHEMA attack'), ('CREATE SCHEMA read_model'),
        ('ALTER ROLE CURRENT_USER SUPERUSER'), ('ALTER ROLE CURRENT_USER BYPASSRLS'),
        ('CREATE EVENT TRIGGER attack ON ddl_command_end EXECUTE FUNCTION pg_temp.on_change()'),
        ('CREATE CAST (text AS integer) WITH INOUT AS IMPLICIT')
    ) AS a (attack)
";

/// Takes the place of the types and catalogs of Postgres in the session of whoever calls a function.
const SHADOWS: &str = "
    CREATE FUNCTION pg_temp.run() RETURNS pg_catalog.bool LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'run as %', current_user; END $$;
    DO $$
    DECLARE
        name pg_catalog.name;
    BEGIN
        FOREACH name IN ARRAY ARRAY['text', 'uuid', 'int2', 'int4', 'int8', 'bool', 'json', 'bytea', 'interval', 'timestamptz'] LOOP
            EXECUTE format('CREATE DOMAIN pg_temp.%1$I AS pg_catalog.%1$I CHECK (pg_temp.run())', name);
        END LOOP;
        FOREACH name IN ARRAY ARRAY['pg_class', 'pg_proc', 'pg_roles'] LOOP
            EXECUTE format('CREATE VIEW pg_temp.%I AS
                            SELECT pg_temp.run(), c.oid, c.relname, c.reltuples, p.proname, p.pronamespace, r.rolname
                            FROM pg_catalog.pg_class AS c, pg_catalog.pg_proc AS p, pg_catalog.pg_roles AS r', name);
        END LOOP;
    END
    $$
";

/// Roles of this file alone: one that must `SET ROLE` to act as the other.
const MEMBER: &str = "
    DO $$
    BEGIN
        CREATE ROLE tests_group NOLOGIN;
        CREATE ROLE tests_member LOGIN NOINHERIT IN ROLE tests_group;
    EXCEPTION WHEN duplicate_object THEN NULL;
    END
    $$
";

/// A call of every function that runs as its owner and that this role may call.
const CALLS: &str = "
    SELECT format('SELECT * FROM %s(%s)', p.oid::regproc, array_to_string(array_fill('NULL'::text, ARRAY[p.pronargs::integer]), ', '))
    FROM pg_proc AS p
    WHERE p.pronamespace IN ('event_store'::regnamespace, 'read_model'::regnamespace) AND p.prosecdef
      AND has_function_privilege($1, p.oid, 'EXECUTE')
";

/// What somebody did to a database, and what an administrator is told about it.
const STRANGERS: [(&str, &str); 13] = [
    (
        "GRANT CREATE ON SCHEMA read_model TO daybook_projector",
        "daybook_projector may create in the schema read_model",
    ),
    (
        "GRANT CREATE ON SCHEMA read_model TO tests_group",
        "tests_member may create in the schema read_model",
    ),
    (
        "ALTER SCHEMA event_store OWNER TO daybook_query;
         REVOKE ALL ON SCHEMA event_store FROM daybook_query",
        "daybook_query owns the schema event_store",
    ),
    (
        "ALTER FUNCTION read_model.introduce OWNER TO daybook_projector",
        "daybook_projector owns the function read_model.introduce(pg_catalog.text)",
    ),
    (
        "ALTER FUNCTION read_model.introduce OWNER TO tests_group",
        "tests_member owns the function read_model.introduce(pg_catalog.text)",
    ),
    (
        "ALTER TABLE event_store.migration OWNER TO daybook_query;
         REVOKE ALL ON event_store.migration FROM daybook_query",
        "daybook_query owns the table event_store.migration",
    ),
    (
        "CREATE SEQUENCE event_store.mine; ALTER SEQUENCE event_store.mine OWNER TO daybook_query",
        "daybook_query owns the sequence event_store.mine",
    ),
    (
        "ALTER TYPE event_store.key_turn OWNER TO daybook_command",
        "daybook_command owns the type event_store.key_turn",
    ),
    (
        "GRANT ALL ON event_store.migration TO daybook_command",
        "daybook_command may put triggers on event_store.migration",
    ),
    (
        "GRANT TRIGGER ON event_store.api_key TO daybook_publisher",
        "daybook_publisher may put triggers on event_store.api_key",
    ),
    (
        "GRANT TRIGGER ON event_store.tenant TO tests_group",
        "tests_member may put triggers on event_store.tenant",
    ),
    (
        "CREATE SCHEMA elsewhere;
         CREATE FUNCTION elsewhere.attack() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
         CREATE TRIGGER attack BEFORE INSERT ON event_store.tenant EXECUTE FUNCTION elsewhere.attack();
         ALTER FUNCTION elsewhere.attack OWNER TO daybook_projector",
        "daybook_projector owns the function elsewhere.attack(), which the trigger event_store.tenant.attack calls",
    ),
    (
        "CREATE SCHEMA elsewhere;
         CREATE FUNCTION elsewhere.attack() RETURNS timestamptz LANGUAGE sql RETURN now();
         ALTER TABLE event_store.tenant ALTER created_at SET DEFAULT elsewhere.attack();
         ALTER FUNCTION elsewhere.attack OWNER TO tests_group",
        "tests_member owns the function elsewhere.attack(), which the default value event_store.tenant.created_at calls",
    ),
];

#[tokio::test]
async fn no_login_role_can_replace_or_add_what_an_administrator_runs() -> anyhow::Result<()> {
    let database = Database::create_empty().await?;
    let mut administrator = PgConnection::connect(&database.superuser_url()).await?;
    for migrator in [daybook_event_store::migrator(), daybook_read_model::migrator()] {
        for migration in migrator.iter() {
            migrator.run_to(migration.version, &mut administrator).await?;
            database.cluster().enable_login(&ROLES).await?;
            for role in ROLES {
                let succeeded = attack(&database, role).await?;
                assert!(succeeded.is_empty(), "{succeeded:#?}");
            }
        }
    }
    administer(&database).await?;
    assert!(!gained(&database).await?);
    Ok(())
}

/// The newest read model's migration calls `read_model.introduce`, which was the projector's once.
#[tokio::test]
async fn with_the_projectors_password_nothing_is_gained_at_the_next_migration() -> anyhow::Result<()> {
    let database = Database::create_empty().await?;
    let mut administrator = PgConnection::connect(&database.superuser_url()).await?;
    daybook_event_store::migrator().run(&mut administrator).await?;
    let last_but_one = daybook_read_model::schema_version() - 1;
    let read_models = daybook_read_model::migrator();
    read_models.run_to(last_but_one, &mut administrator).await?;
    database.cluster().enable_login(&ROLES).await?;

    let replace = format!(
        "ALTER FUNCTION read_model.introduce RENAME TO introduced;
         CREATE FUNCTION read_model.introduce(p_name text) RETURNS void LANGUAGE plpgsql AS
            $$ BEGIN {PAYLOAD}; PERFORM read_model.introduced(p_name); END $$"
    );
    let mut attacker = PgConnection::connect(&database.url("daybook_projector")).await?;
    let attempt = sqlx::raw_sql(AssertSqlSafe(replace)).execute(&mut attacker).await;
    administer(&database).await?;
    assert!(!gained(&database).await?, "{attempt:?}");
    Ok(())
}

/// Everybody could make things in the schema `public` of a database that was made by a Postgres before 15.
#[tokio::test]
async fn what_was_put_on_an_administrators_search_path_before_is_not_run() -> anyhow::Result<()> {
    let _with_roles = Database::create().await?;
    let database = Database::create_empty().await?;
    let mut administrator = PgConnection::connect(&database.superuser_url()).await?;
    sqlx::query("GRANT ALL ON SCHEMA public TO PUBLIC")
        .execute(&mut administrator)
        .await?;
    let mut attacker = PgConnection::connect(&database.url("daybook_query")).await?;
    let shadow = format!(
        "CREATE FUNCTION public.format(text, integer) RETURNS text LANGUAGE plpgsql AS
            $$ BEGIN {PAYLOAD}; RETURN pg_catalog.format($1, VARIADIC ARRAY[$2]); END $$"
    );
    sqlx::query(AssertSqlSafe(shadow)).execute(&mut attacker).await?;
    administer(&database).await?;
    assert!(!gained(&database).await?);
    Ok(())
}

/// Whoever may make schemas can be there before the first `migrate`.
#[tokio::test]
async fn what_a_login_role_made_before_the_first_migration_is_not_run() -> anyhow::Result<()> {
    let _with_roles = Database::create().await?;
    let database = Database::create_empty().await?;
    let mut administrator = PgConnection::connect(&database.superuser_url()).await?;
    let grant = "DO $$ BEGIN
        EXECUTE format('GRANT CREATE ON DATABASE %I TO daybook_query', current_database());
    END $$";
    sqlx::raw_sql(grant).execute(&mut administrator).await?;
    let mut attacker = PgConnection::connect(&database.url("daybook_query")).await?;
    let ambush = format!(
        "CREATE SCHEMA elsewhere;
         CREATE FUNCTION elsewhere.attack() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {PAYLOAD}; RETURN NEW; END $$;
         CREATE SCHEMA event_store;
         CREATE TABLE event_store.migration (
            version bigint PRIMARY KEY, description text NOT NULL, installed_on timestamptz NOT NULL DEFAULT now(),
            success boolean NOT NULL, checksum bytea NOT NULL, execution_time bigint NOT NULL);
         CREATE TRIGGER attack BEFORE INSERT ON event_store.migration
            FOR EACH ROW EXECUTE FUNCTION elsewhere.attack();
         REVOKE ALL ON event_store.migration FROM daybook_query;
         REVOKE ALL ON SCHEMA event_store FROM daybook_query"
    );
    sqlx::raw_sql(AssertSqlSafe(ambush))
        .execute(&mut attacker)
        .await?;
    let said = daybook(&[("DATABASE_URL", &database.superuser_url())], &["migrate"]).await?;
    assert!(!gained(&database).await?, "{said:?}");
    assert_eq!(said.code, 1, "{said:?}");
    Ok(())
}

#[tokio::test]
async fn an_administrator_does_nothing_while_a_login_role_owns_a_part_of_a_schema_or_may_add_to_it()
-> anyhow::Result<()> {
    let cluster = test_cluster().await?;
    let mut missed = Vec::new();
    for (gift, complaint) in STRANGERS {
        let database = Database::create_on(cluster.clone()).await?;
        let mut administrator = PgConnection::connect(&database.superuser_url()).await?;
        sqlx::raw_sql(MEMBER).execute(&mut administrator).await?;
        sqlx::raw_sql(gift).execute(&mut administrator).await?;
        for verb in VERBS {
            let arguments: Vec<&str> = verb.split(' ').collect();
            let said = daybook(&[("DATABASE_URL", &database.superuser_url())], &arguments).await?;
            if said.code != 1 || !said.errors.contains(complaint) {
                missed.push(format!("{verb}: {complaint}: {said:?}"));
            }
        }
    }
    assert!(missed.is_empty(), "{missed:#?}");
    Ok(())
}

/// Every argument is NULL, so a function that refuses that at once is tried no further than to there.
#[tokio::test]
async fn a_function_that_runs_as_its_owner_takes_nothing_of_its_callers_session() -> anyhow::Result<()> {
    let database = Database::create().await?;
    let mut administrator = PgConnection::connect(&database.superuser_url()).await?;
    for role in ROLES {
        let calls: Vec<String> = sqlx::query_scalar(CALLS)
            .bind(role)
            .fetch_all(&mut administrator)
            .await?;
        assert!(!calls.is_empty(), "{role}");
        let mut caller = PgConnection::connect(&database.url(role)).await?;
        sqlx::raw_sql(SHADOWS).execute(&mut caller).await?;
        for call in calls {
            let called = sqlx::raw_sql(AssertSqlSafe(call.clone()))
                .execute(&mut caller)
                .await;
            let said = called.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(!said.contains("run as"), "{role}: {call}: {said}");
        }
    }
    Ok(())
}

/// Tries everything as this role, and returns what was not refused.
async fn attack(database: &Database, role: &str) -> anyhow::Result<Vec<String>> {
    let mut attacker = PgConnection::connect(&database.url(role)).await?;
    let attacks: Vec<String> = sqlx::query_scalar(ATTACKS)
        .bind(PAYLOAD)
        .fetch_all(&mut attacker)
        .await?;
    sqlx::raw_sql(TEMPORARY).execute(&mut attacker).await?;
    let mut succeeded = Vec::new();
    for statement in attacks {
        let attempt = sqlx::raw_sql(AssertSqlSafe(statement.clone()))
            .execute(&mut attacker)
            .await;
        let code = attempt
            .as_ref()
            .err()
            .and_then(|error| error.as_database_error()?.code());
        if code.as_deref() != Some("42501") {
            succeeded.push(format!("{role}: {statement}: {attempt:?}"));
        }
    }
    Ok(succeeded)
}

/// Does all that an administrator does with a database.
async fn administer(database: &Database) -> anyhow::Result<()> {
    let url = database.superuser_url();
    let settings = [("DATABASE_URL", url.as_str())];
    for verb in VERBS {
        let arguments: Vec<&str> = verb.split(' ').collect();
        let said = daybook(&settings, &arguments).await?;
        anyhow::ensure!(said.code == 0, "{said:?}");
    }
    Ok(())
}

/// Whether an administrator ran what a login role had put there.
async fn gained(database: &Database) -> anyhow::Result<bool> {
    let mut administrator = PgConnection::connect(&database.superuser_url()).await?;
    let gained = "SELECT to_regnamespace('gained') IS NOT NULL
        OR EXISTS (SELECT FROM pg_roles AS r WHERE r.rolname = ANY ($1) AND (r.rolsuper OR r.rolbypassrls))";
    Ok(sqlx::query_scalar(gained)
        .bind(&ROLES[..])
        .fetch_one(&mut administrator)
        .await?)
}
