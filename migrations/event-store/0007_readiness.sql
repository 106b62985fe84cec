-- Whether an append could succeed, for the command service's readiness. It writes nothing and takes no lock.
--
-- A row lock would be a write of its own, every second from every replica; and a partition that is busy counts as ready.
-- So the lock is not tried, and what is left are the reasons for which every append would fail, or would be acknowledged
-- before it is on disk.

-- Why the calling role could not append here; NULL when it could.
CREATE FUNCTION event_store.check_append() RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE
        WHEN pg_is_in_recovery()
            THEN 'the server is a standby'
        WHEN current_setting('transaction_read_only')::boolean
            THEN 'the server takes no writes (default_transaction_read_only)'
        -- Everything else acknowledges a command that a crash, or the loss of the primary, may take back.
        WHEN current_setting('synchronous_commit') NOT IN ('on', 'remote_apply')
            THEN 'synchronous_commit is ' || current_setting('synchronous_commit')
        WHEN NOT EXISTS (SELECT FROM event_store.log)
            THEN 'the log has no partition'
        WHEN NOT EXISTS (
            SELECT FROM pg_proc AS p
            WHERE p.pronamespace = 'event_store'::regnamespace AND p.proname = 'append'
              -- The caller, not the owner of this function.
              AND has_function_privilege(session_user, p.oid, 'EXECUTE'))
            THEN 'the role may not append'
    END
$$;
ALTER FUNCTION event_store.check_append() OWNER TO daybook_append;
REVOKE ALL ON FUNCTION event_store.check_append() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION event_store.check_append() TO daybook_command;
