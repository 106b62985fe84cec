//! The database, for the verbs of its administrator.
//!
//! What they call and write must be nobody else's: a function or a table that a service's role could change would hand the
//! administrator's rights to whoever has that role's password. So roles that can log in own nothing in the schemas, and
//! where one does, nothing is done.

use std::str::FromStr as _;

use daybook_postgres::{CONNECT_TIMEOUT, LOOKUP_TIMEOUT, within};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions as _, PgConnection};

use crate::failure::Failure;
use crate::settings::Settings;

/// Where an administrator's session looks for what is named without a schema: where nobody else can put anything.
const SEARCH_PATH: (&str, &str) = ("search_path", "pg_catalog, pg_temp");

/// Who else could have put something in the way: a role that can log in and owns a part of the schemas, or a function that
/// a part of them calls, or may add to them.
const FOREIGN_ROLES: &str = "
    WITH schema AS (
        SELECT n.oid, n.nspname AS name FROM pg_namespace AS n WHERE n.nspname IN ('event_store', 'read_model')
    ), foreign_role AS (
        -- Once for every role that it can act as: itself, and those that it is a member of, even if it must SET ROLE.
        SELECT r.rolname AS name, m.oid AS acts_as
        FROM pg_roles AS r JOIN pg_roles AS m ON pg_has_role(r.oid, m.oid, 'MEMBER')
        WHERE r.rolcanlogin AND NOT EXISTS (
            -- An administrator, or a member of its role.
            SELECT FROM pg_roles AS a
            WHERE (a.rolsuper OR a.rolname = current_user) AND pg_has_role(r.oid, a.oid, 'MEMBER')
        )
    )
    -- An owner can take its privileges from itself and give them back, so they are no sign.
    SELECT format('the role %s owns the %s %s', r.name, o.type, o.identity)
    FROM foreign_role AS r
    JOIN pg_shdepend AS d ON d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.acts_as AND d.deptype = 'o'
    JOIN pg_database AS b ON b.oid = d.dbid AND b.datname = current_database()
    CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, 0) AS o
    JOIN schema AS s ON s.name = coalesce(o.schema, o.name)
    UNION ALL
    -- Triggers, defaults, rules and the like stay when the right to put them there is gone.
    SELECT format('the role %s owns the function %s, which the %s %s calls',
                  r.name, p.oid::regprocedure, o.type, array_to_string(o.object_names, '.'))
    FROM foreign_role AS r
    JOIN pg_proc AS p ON p.proowner = r.acts_as
    JOIN pg_depend AS d ON d.refclassid = 'pg_proc'::regclass AND d.refobjid = p.oid
    CROSS JOIN LATERAL pg_identify_object_as_address(d.classid, d.objid, d.objsubid) AS o
    JOIN schema AS s ON s.name = o.object_names[1]
    UNION ALL
    SELECT format('the role %s may create in the schema %s', r.name, s.name)
    FROM foreign_role AS r CROSS JOIN schema AS s WHERE has_schema_privilege(r.acts_as, s.oid, 'CREATE')
    UNION ALL
    SELECT format('the role %s may put triggers on %s', r.name, c.oid::regclass)
    FROM pg_class AS c JOIN schema AS s ON s.oid = c.relnamespace CROSS JOIN foreign_role AS r
    WHERE has_table_privilege(r.acts_as, c.oid, 'TRIGGER')
    LIMIT 1
";

/// Connects to the database of `DATABASE_URL`, unless somebody else could make use of that.
pub(crate) async fn connect(settings: &Settings) -> Result<PgConnection, Failure> {
    let url = settings.database_url()?;
    let connecting = async {
        PgConnectOptions::from_str(url)?
            .options([SEARCH_PATH])
            .connect()
            .await
    };
    let connected = within(CONNECT_TIMEOUT, connecting).await;
    let mut connection = connected.map_err(|error| match error {
        // The message must not repeat the URL: it may hold a password.
        sqlx::Error::Configuration(cause) => {
            Failure::Usage(format!("DATABASE_URL is not a URL of Postgres: {cause}"))
        }
        error => Failure::Connect(error),
    })?;
    refuse_foreign_roles(&mut connection).await?;
    Ok(connection)
}

async fn refuse_foreign_roles(connection: &mut PgConnection) -> Result<(), Failure> {
    let looking = sqlx::query_scalar(FOREIGN_ROLES).fetch_optional(connection);
    let found: Option<String> = within(LOOKUP_TIMEOUT, looking).await?;
    match found {
        None => Ok(()),
        Some(found) => Err(Failure::Failed(format!(
            "{found}: nothing is done, since it could gain the rights of an administrator by that"
        ))),
    }
}
