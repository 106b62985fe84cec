-- Operations that take longer than a request: imports. Their input is here before the caller is told that it was taken, and any
-- command service works on them.
--
-- An operation is worked on by one session at a time, which holds an advisory lock: it is free as soon as the session has ended,
-- however its process did, and nothing is written to keep it. What is written about progress goes through that very session,
-- so whoever has lost it writes nothing more. Whatever is done twice after a crash is done under the same idempotency keys.
--
-- The row of an operation changes when it is submitted, when it ends, and when whoever works on it gives it back, which is after
-- minutes. What grows meanwhile is inserted: progress about twice a second, always with the errors of the lines that it counts. A
-- chunk of the input is deleted as soon as it is done.

CREATE TABLE event_store.operation (
    -- A UUIDv7: operations are in the order of time.
    operation_id        uuid        PRIMARY KEY,
    tenant_id           uuid        NOT NULL REFERENCES event_store.tenant,
    -- What is imported ("orders"), as it is called in addresses.
    kind                text        NOT NULL,
    -- The caller's idempotency key.
    key                 text        NOT NULL,
    -- Who asked for it: its events name the credential.
    tenant_partition    integer     NOT NULL,
    key_prefix          text        NOT NULL,
    key_name            text        NOT NULL,
    created_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Of the whole input; NULL until all of it is there. Before that nobody sees the operation.
    input_sha256        bytea,
    input_bytes         bigint,
    input_lines         bigint,
    input_chunks        integer,
    -- When its last turn ended, where it was given back.
    yielded_at          timestamptz,
    cancel_requested_at timestamptz,
    ended_at            timestamptz,
    outcome             text        CHECK (outcome IN ('SUCCEEDED', 'CANCELLED')),
    -- The code that its commands would be refused with by now, where it was cancelled for that.
    cancelled_with      text
);
CREATE UNIQUE INDEX operation_key ON event_store.operation (tenant_id, key) WHERE input_sha256 IS NOT NULL;
CREATE INDEX operation_of_tenant ON event_store.operation (tenant_id, operation_id) WHERE input_sha256 IS NOT NULL;
CREATE INDEX operation_open ON event_store.operation (tenant_id, operation_id) WHERE ended_at IS NULL;
CREATE INDEX operation_arriving ON event_store.operation (created_at) WHERE input_sha256 IS NULL;
CREATE INDEX operation_ended ON event_store.operation (ended_at) WHERE ended_at IS NOT NULL;

-- The input, cut between lines.
CREATE TABLE event_store.operation_input (
    operation_id uuid    NOT NULL REFERENCES event_store.operation ON DELETE CASCADE,
    -- From 0.
    number       integer NOT NULL,
    tenant_id    uuid    NOT NULL,
    -- The number of its first line, from 1.
    first_line   bigint  NOT NULL,
    -- Bytes of the input up to the end of this chunk.
    bytes_to_end bigint  NOT NULL,
    lines        bytea   NOT NULL,
    PRIMARY KEY (operation_id, number)
);

-- How far an operation had come, at moments. What is counted is what the first chunks hold, so that whoever goes on after a crash
-- counts nothing twice.
CREATE TABLE event_store.operation_progress (
    operation_id uuid        NOT NULL REFERENCES event_store.operation ON DELETE CASCADE,
    -- How many chunks are done. The first row has none: it says when the operation began.
    chunks       integer     NOT NULL,
    tenant_id    uuid        NOT NULL,
    bytes        bigint      NOT NULL,
    -- Lines that were read, without blank ones, and what became of them.
    lines        bigint      NOT NULL,
    succeeded    bigint      NOT NULL,
    failed       bigint      NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (operation_id, chunks)
);

-- Why lines failed.
CREATE TABLE event_store.operation_error (
    operation_id uuid   NOT NULL REFERENCES event_store.operation ON DELETE CASCADE,
    line         bigint NOT NULL,
    tenant_id    uuid   NOT NULL,
    -- What the line is about in the caller's words, where that could be read.
    reference    text,
    -- The problem, as a single command would have been answered.
    problem      json   NOT NULL,
    PRIMARY KEY (operation_id, line)
);

DO $$
DECLARE
    table_name text;
BEGIN
    FOREACH table_name IN ARRAY ARRAY['operation', 'operation_input', 'operation_progress', 'operation_error'] LOOP
        EXECUTE format('ALTER TABLE event_store.%I ENABLE ROW LEVEL SECURITY', table_name);
        EXECUTE format('ALTER TABLE event_store.%I FORCE ROW LEVEL SECURITY', table_name);
        EXECUTE format('CREATE POLICY own_tenant ON event_store.%I USING (tenant_id = event_store.current_tenant())', table_name);
        EXECUTE format('CREATE POLICY every_tenant ON event_store.%I TO daybook_operations USING (true)', table_name);
    END LOOP;
END
$$;
GRANT SELECT, INSERT, DELETE ON event_store.operation, event_store.operation_input, event_store.operation_progress
    TO daybook_command;
GRANT UPDATE (input_sha256, input_bytes, input_lines, input_chunks, yielded_at, cancel_requested_at, ended_at, outcome,
              cancelled_with)
    ON event_store.operation TO daybook_command;
GRANT SELECT, INSERT ON event_store.operation_error TO daybook_command;
GRANT SELECT, DELETE ON event_store.operation, event_store.operation_input, event_store.operation_progress, event_store.operation_error
    TO daybook_operations;
-- Whoever locks a row needs the right to change something of it.
GRANT UPDATE (yielded_at) ON event_store.operation TO daybook_operations;

-- Notes an operation whose input begins to arrive.
CREATE FUNCTION event_store.begin_operation(
    p_tenant uuid, p_operation uuid, p_kind text, p_key text, p_partition integer, p_key_prefix text, p_key_name text)
RETURNS void
LANGUAGE plpgsql SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    INSERT INTO event_store.operation (operation_id, tenant_id, kind, key, tenant_partition, key_prefix, key_name)
    VALUES (p_operation, p_tenant, p_kind, p_key, p_partition, p_key_prefix, p_key_name);
END
$$;

-- Keeps the next part of an input.
CREATE FUNCTION event_store.add_operation_input(
    p_tenant uuid, p_operation uuid, p_number integer, p_first_line bigint, p_bytes_to_end bigint, p_lines bytea)
RETURNS void
LANGUAGE plpgsql SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    INSERT INTO event_store.operation_input (operation_id, number, tenant_id, first_line, bytes_to_end, lines)
    VALUES (p_operation, p_number, p_tenant, p_first_line, p_bytes_to_end, p_lines);
END
$$;

-- What an advisory lock stands for an operation, or for the submissions of a tenant.
CREATE FUNCTION event_store.operation_lock(p_id uuid) RETURNS bigint
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
RETURN hashtextextended('event_store.operation ' || p_id::text, 0);
ALTER FUNCTION event_store.operation_lock OWNER TO daybook_functions;

-- Has an operation wait for whoever works on it, unless the tenant has one with its key: that one is returned then, with its
-- kind and the hash of its input. Returns none where as many of the tenant's are open as may be.
CREATE FUNCTION event_store.submit_operation(
    p_tenant uuid, p_operation uuid, p_sha256 bytea, p_bytes bigint, p_lines bigint, p_chunks integer, p_open_max integer)
RETURNS TABLE (operation_id uuid, kind text, input_sha256 bytea)
LANGUAGE plpgsql SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    v_key text;
BEGIN
    PERFORM set_config('synchronous_commit', 'on', true);
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    -- Those of a tenant are submitted one after another, so that they can be counted.
    PERFORM pg_advisory_xact_lock(event_store.operation_lock(p_tenant));
    -- It may be so late that it is being swept: from the first chunk on, and locked meanwhile.
    SELECT o.key INTO STRICT v_key FROM event_store.operation AS o WHERE o.operation_id = p_operation FOR UPDATE;
    IF p_chunks > 0 THEN
        PERFORM FROM event_store.operation_input AS i WHERE i.operation_id = p_operation AND i.number = 0;
        IF NOT FOUND THEN
            RAISE no_data_found USING MESSAGE = 'the input was swept';
        END IF;
    END IF;
    RETURN QUERY
        SELECT o.operation_id, o.kind, o.input_sha256 FROM event_store.operation AS o
        WHERE o.tenant_id = p_tenant AND o.key = v_key AND o.input_sha256 IS NOT NULL;
    IF FOUND OR p_open_max <= (SELECT count(*) FROM event_store.operation AS o
                               WHERE o.tenant_id = p_tenant AND o.ended_at IS NULL AND o.input_sha256 IS NOT NULL) THEN
        RETURN;
    END IF;
    RETURN QUERY
        UPDATE event_store.operation AS o
        SET input_sha256 = p_sha256, input_bytes = p_bytes, input_lines = p_lines, input_chunks = p_chunks
        WHERE o.operation_id = p_operation
        RETURNING o.operation_id, o.kind, o.input_sha256;
END
$$;

-- Deletes what there is of an input, in parts that take little time: says whether there is more of it. Of an operation that was
-- not submitted nothing is left in the end.
CREATE FUNCTION event_store.discard_operation_input(p_tenant uuid, p_operation uuid) RETURNS boolean
LANGUAGE plpgsql SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    DELETE FROM event_store.operation_input AS i
    WHERE i.operation_id = p_operation
      AND i.number IN (SELECT n.number FROM event_store.operation_input AS n
                       WHERE n.operation_id = p_operation ORDER BY n.number LIMIT 64);
    IF EXISTS (SELECT FROM event_store.operation_input AS i WHERE i.operation_id = p_operation) THEN
        RETURN true;
    END IF;
    DELETE FROM event_store.operation AS o WHERE o.operation_id = p_operation AND o.input_sha256 IS NULL;
    RETURN false;
END
$$;

-- What is open of a tenant's and of all, as far as one more depends on it: operations that were submitted, and bytes of inputs,
-- also of those that still arrive; and the operation that the tenant has with this key, if there is one. It looks at those of all
-- tenants, so it runs as a role of its own.
CREATE FUNCTION event_store.operations_open(p_tenant uuid, p_key text)
RETURNS TABLE (operations bigint, bytes bigint, bytes_of_all bigint, operation_id uuid, kind text, input_sha256 bytea)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
        SELECT a.operations, a.bytes, a.bytes_of_all, k.operation_id, k.kind, k.input_sha256
        FROM (
            SELECT count(*) FILTER (WHERE o.tenant_id = p_tenant AND o.input_sha256 IS NOT NULL) AS operations,
                   coalesce(sum(i.bytes) FILTER (WHERE o.tenant_id = p_tenant), 0)::bigint AS bytes,
                   coalesce(sum(i.bytes), 0)::bigint AS bytes_of_all
            FROM event_store.operation AS o
            CROSS JOIN LATERAL (
                SELECT coalesce(o.input_bytes, (SELECT n.bytes_to_end FROM event_store.operation_input AS n
                                                WHERE n.operation_id = o.operation_id ORDER BY n.number DESC LIMIT 1), 0) AS bytes
            ) AS i
            WHERE o.ended_at IS NULL
        ) AS a
        LEFT JOIN event_store.operation AS k
            ON k.tenant_id = p_tenant AND k.key = p_key AND k.input_sha256 IS NOT NULL;
END
$$;
ALTER FUNCTION event_store.operations_open OWNER TO daybook_operations;

-- Operations of a tenant, the newest first, of these kinds: one of them, or a page of them.
CREATE FUNCTION event_store.operations(
    p_tenant uuid, p_kinds text[], p_operation uuid, p_before uuid, p_limit integer)
RETURNS TABLE (
    operation_id uuid, kind text, created_at timestamptz, started_at timestamptz, cancel_requested_at timestamptz,
    ended_at timestamptz, outcome text, cancelled_with text, input_bytes bigint, input_lines bigint,
    bytes bigint, lines bigint, succeeded bigint, failed bigint, recorded_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    RETURN QUERY
        SELECT o.operation_id, o.kind, o.created_at, f.recorded_at, o.cancel_requested_at, o.ended_at, o.outcome, o.cancelled_with,
               o.input_bytes, o.input_lines, n.bytes, n.lines, n.succeeded, n.failed, n.recorded_at
        FROM event_store.operation AS o
        LEFT JOIN event_store.operation_progress AS f ON f.operation_id = o.operation_id AND f.chunks = 0
        LEFT JOIN LATERAL (
            SELECT p.* FROM event_store.operation_progress AS p
            WHERE p.operation_id = o.operation_id ORDER BY p.chunks DESC LIMIT 1
        ) AS n ON true
        WHERE o.tenant_id = p_tenant AND o.input_sha256 IS NOT NULL AND o.kind = ANY (p_kinds)
          AND o.operation_id >= coalesce(p_operation, '00000000-0000-0000-0000-000000000000')
          AND o.operation_id <= coalesce(p_operation, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
          AND o.operation_id < coalesce(p_before, 'ffffffff-ffff-ffff-ffff-ffffffffffff')
        ORDER BY o.operation_id DESC LIMIT p_limit;
END
$$;

-- Errors of an operation, by their lines, from one behind `p_after` on.
CREATE FUNCTION event_store.operation_errors(p_tenant uuid, p_operation uuid, p_after bigint, p_limit integer)
RETURNS TABLE (line bigint, reference text, problem json)
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off
AS $$
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    RETURN QUERY
        SELECT e.line, e.reference, e.problem FROM event_store.operation_error AS e
        WHERE e.operation_id = p_operation AND e.tenant_id = p_tenant AND e.line > p_after
        ORDER BY e.line LIMIT p_limit;
END
$$;

-- Asks for an operation to end before it is done. One that has ended stays as it is.
CREATE FUNCTION event_store.cancel_operation(p_tenant uuid, p_operation uuid) RETURNS void
LANGUAGE plpgsql SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    UPDATE event_store.operation AS o SET cancel_requested_at = clock_timestamp()
    WHERE o.operation_id = p_operation AND o.cancel_requested_at IS NULL AND o.ended_at IS NULL;
END
$$;

-- Gives this session an operation to work on that nobody works on, until it ends: of each tenant the oldest of these kinds, so that
-- they are done one after another. One of a kind that this program does not know waits for a program that does, and holds up no
-- other. Of the tenants the one is next whose operation has waited longest, since it came or since its last turn. Those that failed
-- a moment ago are set aside. It looks at those of all tenants, so it runs as a role of its own.
CREATE FUNCTION event_store.claim_operation(p_kinds text[], p_set_aside uuid[])
RETURNS TABLE (operation_id uuid, tenant_id uuid, kind text, tenant_partition integer, key_prefix text, key_name text,
               input_chunks integer)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_open event_store.operation;
BEGIN
    FOR v_open IN
        SELECT oldest.* FROM (
            SELECT DISTINCT ON (o.tenant_id) o.* FROM event_store.operation AS o
            WHERE o.ended_at IS NULL AND o.input_sha256 IS NOT NULL AND o.kind = ANY (p_kinds)
            ORDER BY o.tenant_id, o.operation_id
        ) AS oldest
        WHERE oldest.operation_id <> ALL (p_set_aside)
        ORDER BY coalesce(oldest.yielded_at, oldest.created_at), oldest.operation_id
    LOOP
        IF pg_try_advisory_lock(event_store.operation_lock(v_open.operation_id)) THEN
            -- Whoever had it may have ended it since this looked.
            IF EXISTS (SELECT FROM event_store.operation AS o
                       WHERE o.operation_id = v_open.operation_id AND o.ended_at IS NULL) THEN
                RETURN QUERY SELECT v_open.operation_id, v_open.tenant_id, v_open.kind, v_open.tenant_partition,
                                    v_open.key_prefix, v_open.key_name, v_open.input_chunks;
                RETURN;
            END IF;
            PERFORM pg_advisory_unlock(event_store.operation_lock(v_open.operation_id));
        END IF;
    END LOOP;
END
$$;
ALTER FUNCTION event_store.claim_operation OWNER TO daybook_operations;

-- Notes how far the session that works on an operation has come, with the errors that belong to it, and deletes the input that is
-- done. Says whether somebody wants it to end.
CREATE FUNCTION event_store.record_operation_progress(
    p_tenant uuid, p_operation uuid, p_chunks integer, p_bytes bigint, p_lines bigint, p_succeeded bigint, p_failed bigint,
    -- One element per error.
    p_line bigint[], p_reference text[], p_problem json[])
RETURNS boolean
LANGUAGE plpgsql SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    INSERT INTO event_store.operation_progress (operation_id, chunks, tenant_id, bytes, lines, succeeded, failed)
    VALUES (p_operation, p_chunks, p_tenant, p_bytes, p_lines, p_succeeded, p_failed)
    ON CONFLICT DO NOTHING;
    INSERT INTO event_store.operation_error (operation_id, line, tenant_id, reference, problem)
    SELECT p_operation, e.line, p_tenant, e.reference, e.problem
    FROM unnest(p_line, p_reference, p_problem) AS e(line, reference, problem)
    ON CONFLICT DO NOTHING;
    DELETE FROM event_store.operation_input AS i WHERE i.operation_id = p_operation AND i.number < p_chunks;
    RETURN (SELECT o.cancel_requested_at IS NOT NULL FROM event_store.operation AS o WHERE o.operation_id = p_operation);
END
$$;

-- How far an operation had come.
CREATE FUNCTION event_store.read_operation_progress(p_tenant uuid, p_operation uuid)
RETURNS TABLE (chunks integer, bytes bigint, lines bigint, succeeded bigint, failed bigint)
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    RETURN QUERY
        SELECT p.chunks, p.bytes, p.lines, p.succeeded, p.failed FROM event_store.operation_progress AS p
        WHERE p.operation_id = p_operation ORDER BY p.chunks DESC LIMIT 1;
END
$$;

-- A chunk of an input.
CREATE FUNCTION event_store.read_operation_input(p_tenant uuid, p_operation uuid, p_number integer)
RETURNS TABLE (first_line bigint, lines bytea)
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    RETURN QUERY
        SELECT i.first_line, i.lines FROM event_store.operation_input AS i
        WHERE i.operation_id = p_operation AND i.number = p_number;
END
$$;

-- Notes that an operation is given back to whoever is next.
CREATE FUNCTION event_store.yield_operation(p_tenant uuid, p_operation uuid) RETURNS void
LANGUAGE plpgsql SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    UPDATE event_store.operation AS o SET yielded_at = clock_timestamp() WHERE o.operation_id = p_operation;
END
$$;

-- Ends an operation whose input is gone. Of its progress the beginning and the end stay.
CREATE FUNCTION event_store.end_operation(p_tenant uuid, p_operation uuid, p_outcome text, p_cancelled_with text) RETURNS void
LANGUAGE plpgsql SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    UPDATE event_store.operation AS o
    SET ended_at = clock_timestamp(), outcome = p_outcome, cancelled_with = p_cancelled_with
    WHERE o.operation_id = p_operation AND o.ended_at IS NULL;
    DELETE FROM event_store.operation_progress AS p
    WHERE p.operation_id = p_operation AND p.chunks > 0
      AND p.chunks < (SELECT max(n.chunks) FROM event_store.operation_progress AS n WHERE n.operation_id = p_operation);
END
$$;

-- Deletes operations that ended so long ago, and what a process left that died while an input arrived: parts that take little
-- time. Says whether there may be more. An operation that somebody changes, as whoever submits it does, is passed over; it stays
-- locked until this has deleted a part of it.
CREATE FUNCTION event_store.sweep_operations(p_retention interval, p_arriving_max interval) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_operation uuid;
BEGIN
    SELECT o.operation_id INTO v_operation FROM event_store.operation AS o
    WHERE o.ended_at < clock_timestamp() - p_retention
    ORDER BY o.ended_at LIMIT 1 FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        SELECT o.operation_id INTO v_operation FROM event_store.operation AS o
        WHERE o.input_sha256 IS NULL AND o.created_at < clock_timestamp() - p_arriving_max
        ORDER BY o.created_at LIMIT 1 FOR UPDATE SKIP LOCKED;
    END IF;
    IF v_operation IS NULL THEN
        RETURN false;
    END IF;
    -- From the first one on: whether that is there says whether all are.
    DELETE FROM event_store.operation_input AS i
    WHERE i.operation_id = v_operation
      AND i.number IN (SELECT n.number FROM event_store.operation_input AS n
                       WHERE n.operation_id = v_operation ORDER BY n.number LIMIT 64);
    IF NOT FOUND THEN
        DELETE FROM event_store.operation AS o WHERE o.operation_id = v_operation;
    END IF;
    RETURN true;
END
$$;
ALTER FUNCTION event_store.sweep_operations OWNER TO daybook_operations;

DO $$
DECLARE
    of_command regprocedure;
BEGIN
    FOR of_command IN
        SELECT p.oid::regprocedure FROM pg_proc AS p
        WHERE p.pronamespace = 'event_store'::regnamespace
          AND p.proname IN ('begin_operation', 'add_operation_input', 'submit_operation', 'discard_operation_input',
                            'operations_open', 'operations', 'operation_errors', 'cancel_operation', 'claim_operation',
                            'record_operation_progress', 'read_operation_progress', 'read_operation_input', 'yield_operation',
                            'end_operation', 'sweep_operations')
    LOOP
        IF (SELECT NOT p.prosecdef FROM pg_proc AS p WHERE p.oid = of_command) THEN
            EXECUTE format('ALTER FUNCTION %s OWNER TO daybook_functions', of_command);
        END IF;
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', of_command);
        EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO daybook_command', of_command);
    END LOOP;
END
$$;
