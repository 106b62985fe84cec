-- Exports: operations that write what a tenant's log holds into a file, which is kept here until its operation is deleted.
--
-- An export is of one history up to one position: those of the moment when it was asked for. What is there up to a position never
-- changes within a history, so the file is the same whenever it is written, and by whomever. It is cut into chunks. Each says how far
-- the log was read for it, so that after a crash the file goes on behind the last one.

-- Beside those of imports: it cannot be done, whoever works on it.
ALTER TABLE event_store.operation
    DROP CONSTRAINT operation_outcome_check,
    ADD CONSTRAINT operation_outcome_check CHECK (outcome IN ('SUCCEEDED', 'CANCELLED', 'FAILED'));

CREATE TABLE event_store.export (
    operation_id   uuid    PRIMARY KEY REFERENCES event_store.operation ON DELETE CASCADE,
    tenant_id      uuid    NOT NULL,
    -- The format and the filters, as they were asked for.
    request        json    NOT NULL,
    -- The history that it is of, and its part: behind one position and up to another.
    epoch          integer NOT NULL,
    generation     uuid    NOT NULL,
    after_position bigint  NOT NULL,
    up_to_position bigint  NOT NULL,
    -- Once it has ended: what it has written. There is a hash where the file is whole, and else no file any more.
    events         bigint,
    bytes          bigint,
    first_position bigint,
    last_position  bigint,
    sha256         bytea,
    -- Why it failed.
    problem        json
);
-- How much of a tenant's is kept.
CREATE INDEX export_of_tenant ON event_store.export (tenant_id);

-- The file, cut between events.
CREATE TABLE event_store.operation_output (
    operation_id   uuid        NOT NULL REFERENCES event_store.operation ON DELETE CASCADE,
    -- From 0.
    number         integer     NOT NULL,
    tenant_id      uuid        NOT NULL,
    -- The log was read up to here.
    up_to          bigint      NOT NULL,
    -- What is in this chunk and all before it.
    events         bigint      NOT NULL,
    bytes          bigint      NOT NULL,
    -- NULL where there is no event.
    first_position bigint,
    last_position  bigint,
    recorded_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    content        bytea       NOT NULL,
    PRIMARY KEY (operation_id, number)
);

DO $$
DECLARE
    table_name text;
BEGIN
    FOREACH table_name IN ARRAY ARRAY['export', 'operation_output'] LOOP
        EXECUTE format('ALTER TABLE event_store.%I ENABLE ROW LEVEL SECURITY', table_name);
        EXECUTE format('ALTER TABLE event_store.%I FORCE ROW LEVEL SECURITY', table_name);
        EXECUTE format('CREATE POLICY own_tenant ON event_store.%I USING (tenant_id = event_store.current_tenant())', table_name);
        EXECUTE format('CREATE POLICY every_tenant ON event_store.%I TO daybook_operations USING (true)', table_name);
    END LOOP;
END
$$;
GRANT SELECT, INSERT ON event_store.export TO daybook_command;
GRANT UPDATE (events, bytes, first_position, last_position, sha256, problem) ON event_store.export TO daybook_command;
GRANT SELECT, INSERT, DELETE ON event_store.operation_output TO daybook_command;
GRANT SELECT, DELETE ON event_store.export, event_store.operation_output TO daybook_operations;

-- The first position at which an event was recorded at a moment or later; the one behind the head where there is none. Times never
-- fall along the positions, which have no holes, so it is found by halves, each by one probe of the key. A tenant's own events have
-- holes between them, so this looks at those of all tenants: of them it tells nothing but where a moment lies.
CREATE FUNCTION event_store.position_since(p_partition integer, p_moment timestamptz, p_head bigint) RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
    -- Nothing up to here was recorded since.
    v_before   bigint := 0;
    v_found    bigint := p_head + 1;
    v_middle   bigint;
    v_recorded timestamptz;
BEGIN
    WHILE v_before + 1 < v_found LOOP
        v_middle := v_before + (v_found - v_before) / 2;
        SELECT e.recorded_at INTO v_recorded FROM event_store.event AS e
        WHERE e.partition = p_partition AND e.position = v_middle;
        IF v_recorded >= p_moment THEN
            v_found := v_middle;
        ELSE
            v_before := v_middle;
        END IF;
    END LOOP;
    RETURN v_found;
END
$$;
ALTER FUNCTION event_store.position_since OWNER TO daybook_append;

-- Has an export wait for whoever works on it, of the log as it is now, unless the tenant has an operation with its key: that one is
-- returned then, with its kind and the hash of what was asked for. Nothing is returned to a tenant that has so many open already.
CREATE FUNCTION event_store.submit_export(
    p_tenant uuid, p_operation uuid, p_kind text, p_key text, p_partition integer, p_key_prefix text, p_key_name text,
    p_sha256 bytea, p_request json,
    -- Of events recorded at one moment or later, and before the other; NULL for no such bound.
    p_recorded_after timestamptz, p_recorded_before timestamptz, p_open_max integer)
RETURNS TABLE (operation_id uuid, kind text, input_sha256 bytea)
LANGUAGE plpgsql SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    v_log   record;
    v_after bigint := 0;
    v_up_to bigint;
BEGIN
    PERFORM set_config('synchronous_commit', 'on', true);
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    -- Those of a tenant are submitted one after another, so that they can be counted.
    PERFORM pg_advisory_xact_lock(event_store.operation_lock(p_tenant));
    RETURN QUERY
        SELECT o.operation_id, o.kind, o.input_sha256 FROM event_store.operation AS o
        WHERE o.tenant_id = p_tenant AND o.key = p_key AND o.input_sha256 IS NOT NULL;
    IF FOUND OR p_open_max <= (SELECT count(*) FROM event_store.operation AS o
                               WHERE o.tenant_id = p_tenant AND o.ended_at IS NULL AND o.input_sha256 IS NOT NULL) THEN
        RETURN;
    END IF;
    SELECT h.* INTO STRICT v_log FROM event_store.head(p_partition) AS h;
    v_up_to := v_log.head;
    IF p_recorded_before IS NOT NULL THEN
        v_up_to := event_store.position_since(p_partition, p_recorded_before, v_log.head) - 1;
    END IF;
    IF p_recorded_after IS NOT NULL THEN
        v_after := least(event_store.position_since(p_partition, p_recorded_after, v_log.head) - 1, v_up_to);
    END IF;
    INSERT INTO event_store.operation (operation_id, tenant_id, kind, key, tenant_partition, key_prefix, key_name,
                                       input_sha256, input_bytes, input_lines, input_chunks)
    VALUES (p_operation, p_tenant, p_kind, p_key, p_partition, p_key_prefix, p_key_name, p_sha256, 0, 0, 0);
    INSERT INTO event_store.export (operation_id, tenant_id, request, epoch, generation, after_position, up_to_position)
    VALUES (p_operation, p_tenant, p_request, v_log.epoch, v_log.generation, v_after, v_up_to);
    RETURN QUERY SELECT p_operation, p_kind, p_sha256;
END
$$;

-- What a tenant's log holds behind a position, of one type and one aggregate where those are given: the first of it, in order, and
-- how far that is. The tenant's row-level security holds this read as any other.
--
-- There is one row at least: without an event its columns are NULL. All is of one snapshot: what is returned was recorded in the
-- epoch that is returned with it, or before.
CREATE FUNCTION event_store.read_tenant(
    p_tenant uuid, p_partition integer, p_after bigint,
    -- Nothing behind this position, and of no more positions than so many, other tenants' included.
    p_up_to bigint, p_positions bigint,
    -- No more events than this, and none behind as many bytes of payload and metadata.
    p_limit integer, p_bytes bigint,
    p_event_type text, p_stream text)
RETURNS TABLE (
    epoch integer, generation uuid,
    -- All up to here was looked at.
    up_to bigint,
    "position" bigint, category text, stream_id text, stream_version bigint, event_id uuid, event_type text,
    schema_version integer, payload json, metadata json, recorded_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
-- It reads by position, whatever the planner believes of the tenant. What is sorted in the end counts as dear then, and must not be
-- compiled for that.
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off
AS $$
DECLARE
    v_tenant integer;
    v_up_to  bigint := least(p_after + p_positions, p_up_to);
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    v_tenant := event_store.current_tenant_number();
    RETURN QUERY
        SELECT l.epoch, l.generation,
               CASE WHEN count(e.position) OVER () >= p_limit OR sum(e.bytes) OVER () >= p_bytes
                    THEN max(e.position) OVER () ELSE v_up_to END,
               e.position, e.category, e.stream_id, e.stream_version, e.event_id, e.event_type, e.schema_version, e.payload,
               e.metadata, e.recorded_at
        FROM event_store.log AS l
        LEFT JOIN (
            SELECT e.*, sum(e.bytes) OVER (ORDER BY e.position ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS bytes_before
            FROM (
                SELECT e.*, event_store.size_bytes(e.payload) + event_store.size_bytes(e.metadata) AS bytes
                FROM event_store.event AS e
                WHERE e.partition = p_partition AND e.position > p_after AND e.position <= v_up_to
                  AND e.tenant_number = v_tenant
                  AND (p_event_type IS NULL OR e.event_type = p_event_type)
                  AND (p_stream IS NULL OR e.stream_id = p_stream)
                ORDER BY e.position LIMIT p_limit
            ) AS e
        ) AS e ON coalesce(e.bytes_before, 0) < p_bytes
        WHERE l.partition = p_partition
        ORDER BY e.position;
END
$$;

-- Exports of a tenant, and how far they are.
CREATE FUNCTION event_store.exports(p_tenant uuid, p_operations uuid[])
RETURNS TABLE (
    operation_id uuid, request json, epoch integer, generation uuid, after_position bigint, up_to_position bigint,
    chunks integer, up_to bigint, events bigint, bytes bigint, first_position bigint, last_position bigint,
    recorded_at timestamptz, sha256 bytea, problem json)
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    RETURN QUERY
        SELECT e.operation_id, e.request, e.epoch, e.generation, e.after_position, e.up_to_position,
               coalesce(n.number + 1, 0),
               CASE WHEN e.sha256 IS NULL THEN coalesce(n.up_to, e.after_position) ELSE e.up_to_position END,
               coalesce(e.events, n.events, 0), coalesce(e.bytes, n.bytes, 0),
               coalesce(e.first_position, n.first_position), coalesce(e.last_position, n.last_position),
               n.recorded_at, e.sha256, e.problem
        FROM event_store.export AS e
        LEFT JOIN LATERAL (
            SELECT o.number, o.up_to, o.events, o.bytes, o.first_position, o.last_position, o.recorded_at
            FROM event_store.operation_output AS o
            WHERE o.operation_id = e.operation_id ORDER BY o.number DESC LIMIT 1
        ) AS n ON true
        WHERE e.tenant_id = p_tenant AND e.operation_id = ANY (p_operations);
END
$$;

-- How many bytes a tenant's files have that are whole.
CREATE FUNCTION event_store.export_bytes(p_tenant uuid) RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    RETURN (SELECT coalesce(sum(e.bytes), 0)::bigint FROM event_store.export AS e
            WHERE e.tenant_id = p_tenant AND e.sha256 IS NOT NULL);
END
$$;

-- Keeps the next chunk of a file. Says whether somebody wants the operation to end.
CREATE FUNCTION event_store.record_output(
    p_tenant uuid, p_operation uuid, p_number integer, p_up_to bigint, p_events bigint, p_bytes bigint,
    p_first_position bigint, p_last_position bigint, p_content bytea)
RETURNS boolean
LANGUAGE plpgsql SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    INSERT INTO event_store.operation_output (operation_id, number, tenant_id, up_to, events, bytes, first_position, last_position,
                                              content)
    VALUES (p_operation, p_number, p_tenant, p_up_to, p_events, p_bytes, p_first_position, p_last_position, p_content);
    RETURN (SELECT o.cancel_requested_at IS NOT NULL FROM event_store.operation AS o WHERE o.operation_id = p_operation);
END
$$;

-- A chunk of a file.
CREATE FUNCTION event_store.read_output(p_tenant uuid, p_operation uuid, p_number integer) RETURNS bytea
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    RETURN (SELECT o.content FROM event_store.operation_output AS o
            WHERE o.operation_id = p_operation AND o.number = p_number);
END
$$;

-- Deletes what there is of a file, in parts that take little time: says whether there is more of it.
CREATE FUNCTION event_store.discard_output(p_tenant uuid, p_operation uuid) RETURNS boolean
LANGUAGE plpgsql SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    DELETE FROM event_store.operation_output AS o
    WHERE o.operation_id = p_operation
      AND o.number IN (SELECT n.number FROM event_store.operation_output AS n
                       WHERE n.operation_id = p_operation ORDER BY n.number LIMIT 64);
    RETURN EXISTS (SELECT FROM event_store.operation_output AS o WHERE o.operation_id = p_operation);
END
$$;

-- Ends an export: with the hash of its file, which is whole, or without a file, and then perhaps with the reason.
CREATE FUNCTION event_store.end_export(
    p_tenant uuid, p_operation uuid, p_outcome text, p_events bigint, p_bytes bigint, p_first_position bigint,
    p_last_position bigint, p_sha256 bytea, p_problem json)
RETURNS void
LANGUAGE plpgsql SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    UPDATE event_store.export AS e
    SET events = p_events, bytes = p_bytes, first_position = p_first_position, last_position = p_last_position,
        sha256 = p_sha256, problem = p_problem
    WHERE e.operation_id = p_operation;
    PERFORM event_store.end_operation(p_tenant, p_operation, p_outcome, NULL);
END
$$;

-- Deletes files of operations that ended so long ago, a part that takes little time. Says whether there may be more.
CREATE FUNCTION event_store.sweep_outputs(p_retention interval) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_deleted bigint;
BEGIN
    DELETE FROM event_store.operation_output AS d
    USING (
        SELECT n.operation_id, n.number
        FROM event_store.operation AS o
        JOIN event_store.operation_output AS n ON n.operation_id = o.operation_id
        WHERE o.ended_at < clock_timestamp() - p_retention
        LIMIT 64
    ) AS old
    WHERE d.operation_id = old.operation_id AND d.number = old.number;
    GET DIAGNOSTICS v_deleted = ROW_COUNT;
    RETURN v_deleted > 0;
END
$$;
ALTER FUNCTION event_store.sweep_outputs OWNER TO daybook_operations;

DO $$
DECLARE
    of_command regprocedure;
BEGIN
    FOR of_command IN
        SELECT p.oid::regprocedure FROM pg_proc AS p
        WHERE p.pronamespace = 'event_store'::regnamespace
          AND p.proname IN ('position_since', 'submit_export', 'read_tenant', 'exports', 'export_bytes', 'record_output',
                            'read_output', 'discard_output', 'end_export', 'sweep_outputs')
    LOOP
        IF (SELECT NOT p.prosecdef FROM pg_proc AS p WHERE p.oid = of_command) THEN
            EXECUTE format('ALTER FUNCTION %s OWNER TO daybook_functions', of_command);
        END IF;
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', of_command);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO daybook_command', of_command);
    END LOOP;
END
$$;
