-- Who may do what, before there is anything to do it to.
--
-- Login roles have no password here; whoever runs Daybook sets them (the development stack does so by itself). No
-- service owns anything or may create anything, so that none of them can change the schema, switch row-level security
-- off, or put its own code where an administrator runs it. Functions belong to roles that nobody can log in as.
--
--   daybook_command    the command service: appends through one function, reads one tenant's streams
--   daybook_publisher  the same process's publishing task: reads committed events of every tenant, answers no caller
--   daybook_projector  the projector: reads the log of every tenant, writes the read models
--   daybook_query      the query service: reads one tenant at a time
--   daybook_append     NOLOGIN: runs the append function, which serves many tenants in one batch
--   daybook_keys       NOLOGIN: empties the older of the two tables of idempotency keys
--   daybook_operations NOLOGIN: finds the operations that wait for somebody to work on them, and deletes old ones
--   daybook_identity   NOLOGIN: runs the look-up of API keys, which comes before the tenant is known
--   daybook_functions  NOLOGIN: owns the functions of event_store that run as their caller, and may do nothing itself
--   daybook_read_model NOLOGIN: owns the read models, and runs the functions that make, swap and drop their tables
--
-- Roles belong to the whole server while migrations belong to a database, hence the guards.
DO $$
DECLARE
    login_role text;
BEGIN
    FOREACH login_role IN ARRAY ARRAY['daybook_command', 'daybook_publisher', 'daybook_projector', 'daybook_query'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = login_role) THEN
            EXECUTE format('CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOBYPASSRLS', login_role);
        END IF;
    END LOOP;
    FOREACH login_role IN ARRAY ARRAY['daybook_append', 'daybook_keys', 'daybook_operations', 'daybook_identity',
                                  'daybook_functions', 'daybook_read_model'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = login_role) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN NOSUPERUSER NOBYPASSRLS', login_role);
        END IF;
    END LOOP;
    -- A command is acknowledged when it is on disk, whatever the server's or the database's default is. Asked first, since
    -- two sessions that change one role at once fail.
    IF NOT EXISTS (
        SELECT FROM pg_db_role_setting AS s
        WHERE s.setrole = 'daybook_command'::regrole AND s.setdatabase = 0 AND 'synchronous_commit=on' = ANY (s.setconfig)
    ) THEN
        ALTER ROLE daybook_command SET synchronous_commit = on;
    END IF;
END
$$;

REVOKE ALL ON SCHEMA public FROM PUBLIC;

GRANT USAGE ON SCHEMA event_store
    TO daybook_command, daybook_publisher, daybook_projector, daybook_query, daybook_append, daybook_keys, daybook_operations,
       daybook_identity, daybook_read_model;

-- The tenant of the running transaction; NULL, so that every policy fails closed, when none is set. After a commit a
-- local setting reads as '' and not as NULL.
CREATE FUNCTION event_store.current_tenant() RETURNS uuid
LANGUAGE sql STABLE PARALLEL SAFE
RETURN nullif(current_setting('daybook.tenant_id', true), '')::uuid;
ALTER FUNCTION event_store.current_tenant OWNER TO daybook_functions;

-- A service compares the newest version with the one that it was built for before it starts to work.
GRANT SELECT (version, success) ON event_store.migration
    TO daybook_command, daybook_publisher, daybook_projector, daybook_query;
