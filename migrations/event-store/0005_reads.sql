-- Reads that answer a caller set the tenant and read in one call: a statement in autocommit is a transaction of its own,
-- so the setting is local to it, and row-level security holds the read as it would hold any other.

CREATE FUNCTION event_store.read_stream(
    p_tenant uuid, p_partition integer, p_stream text, p_from bigint, p_to bigint, p_limit integer,
    p_descending boolean)
RETURNS SETOF event_store.event
LANGUAGE plpgsql STABLE SECURITY INVOKER SET plan_cache_mode = force_generic_plan
-- A plan that was made while there were few events would read them all.
SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    IF p_descending THEN
        RETURN QUERY
            SELECT e.* FROM event_store.event AS e
            WHERE e.partition = p_partition AND e.tenant_id = p_tenant AND e.stream_id = p_stream
              AND e.stream_version BETWEEN p_from AND p_to
            ORDER BY e.stream_version DESC LIMIT p_limit;
    ELSE
        RETURN QUERY
            SELECT e.* FROM event_store.event AS e
            WHERE e.partition = p_partition AND e.tenant_id = p_tenant AND e.stream_id = p_stream
              AND e.stream_version BETWEEN p_from AND p_to
            ORDER BY e.stream_version LIMIT p_limit;
    END IF;
END
$$;

REVOKE ALL ON FUNCTION event_store.read_stream FROM PUBLIC;
GRANT EXECUTE ON FUNCTION event_store.read_stream TO daybook_command, daybook_query;

-- The position of the newest event that was recorded at or before a moment, 0 when there is none. Recording times never
-- decrease along the positions, so this is a binary search over the primary key and needs no index of its own. It runs
-- as a role that sees every tenant's events, and gives away a number only.
CREATE FUNCTION event_store.position_at(p_partition integer, p_moment timestamptz)
RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
    v_low  bigint := 0;
    v_high bigint;
    v_mid  bigint;
BEGIN
    SELECT h.head INTO STRICT v_high FROM event_store.head(p_partition) AS h;
    WHILE v_low < v_high LOOP
        v_mid := (v_low + v_high + 1) / 2;
        IF (SELECT e.recorded_at FROM event_store.event AS e
            WHERE e.partition = p_partition AND e.position = v_mid) <= p_moment THEN
            v_low := v_mid;
        ELSE
            v_high := v_mid - 1;
        END IF;
    END LOOP;
    RETURN v_low;
END
$$;
ALTER FUNCTION event_store.position_at OWNER TO daybook_append;
REVOKE ALL ON FUNCTION event_store.position_at FROM PUBLIC;
GRANT EXECUTE ON FUNCTION event_store.position_at
    TO daybook_command, daybook_publisher, daybook_projector, daybook_query;
