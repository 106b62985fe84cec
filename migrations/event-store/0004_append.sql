-- Group commit: one call appends the events of many commands, of many tenants, and says what became of each.
--
-- Commands that were decided one on another travel as one chain. A chain names the event that its first command was
-- decided on, and stands if that is the newest event of its stream: an id, and not a count, because two processes that
-- decide ahead reach one version by different events. A chain that stands does so up to its first known key: that command
-- was answered before, and what follows it was decided on events that are not recorded. A chain of no commands that may
-- be written asks only: whether its key is known, and what the newest event of its stream is.
--
-- The caller sees to it that no key and no stream's second chain is in a batch, and that the commands of a chain, and the
-- events of a command, are side by side and in order. Were it wrong, the keys of the tables would refuse the batch.
--
-- Each statement takes its snapshot after the lock is held, so it sees everything that was committed before; under any
-- other isolation than READ COMMITTED it would not. Plans are kept from the first calls, when the tables are still empty
-- and reading them whole looks cheap, so every way to look up a key but a probe of the index is off. Arrays become rows in
-- select lists, one at a time; in FROM they would be written to a temporary store first.
CREATE FUNCTION event_store.append(
    p_partition      integer,
    -- One element per chain.
    c_tenant         uuid[],
    c_stream         text[],
    c_category       text[],
    c_decided_on     uuid[],     -- the event that its first command was decided on; NULL: a stream without events
    c_first          integer[],  -- its first command, from 1
    c_behind         integer[],  -- the first command behind it; equal to c_first in a chain that only asks
    c_event_count    integer[],
    -- One element per command.
    k_chain          integer[],  -- which chain, from 1
    k_key            text[],
    k_fingerprint    uuid[],
    k_metadata       json[],
    k_event_count    integer[],
    k_events_before  integer[],  -- events of its chain before it
    k_rejection      json[],     -- of a command without events: the domain's refusal, NULL for none
    -- One element per event.
    e_command        integer[],
    e_index          integer[],  -- which of its chain's events, from 0
    e_id             uuid[],
    e_type           text[],
    e_schema_version integer[],
    e_payload        json[],
    OUT generation   uuid,
    OUT recorded_at  timestamptz,
    -- One element per chain. Of its commands those before `stop` were written.
    OUT stop           integer[],
    OUT newest_id      uuid[],   -- the newest event of its stream before this batch, NULL when there is none
    OUT newest_version bigint[], -- 0 when there is none
    OUT newest_position bigint[],
    OUT first_position bigint[], -- where the chain's first event is, or would be
    -- The commands whose keys are known; nothing was written for them.
    OUT known          integer[]
)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_material = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_head      bigint;
    v_key_table smallint;
    v_command   integer;
    v_events    bigint;
    v_written   bigint;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'event_store.append needs READ COMMITTED' USING ERRCODE = 'invalid_transaction_state';
    END IF;
    -- Whatever the database's default is: what is acknowledged is on disk.
    PERFORM set_config('synchronous_commit', 'on', true);

    -- Lock.
    SELECT l.generation INTO STRICT generation
    FROM event_store.log AS l WHERE l.partition = p_partition FOR NO KEY UPDATE;
    SELECT t.key_table, coalesce(newest.position, 0), greatest(clock_timestamp(), newest.recorded_at)
    INTO STRICT v_key_table, v_head, recorded_at
    FROM event_store.current_key_table AS t
    LEFT JOIN LATERAL (
        SELECT e.position, e.recorded_at
        FROM event_store.event AS e WHERE e.partition = p_partition ORDER BY e.position DESC LIMIT 1
    ) AS newest ON true
    WHERE t.is_only_row;

    -- Judge: is the newest event the one that the chain was decided on?
    SELECT array_agg(n.event_id), array_agg(coalesce(n.stream_version, 0)), array_agg(coalesce(n.position, 0)),
           array_agg(CASE WHEN n.event_id IS NOT DISTINCT FROM c.decided_on THEN c.behind ELSE c.first END)
    INTO newest_id, newest_version, newest_position, stop
    FROM (
        SELECT unnest(c_tenant) AS tenant_id, unnest(c_stream) AS stream_id, unnest(c_decided_on) AS decided_on,
               unnest(c_first) AS first, unnest(c_behind) AS behind
    ) AS c
    LEFT JOIN LATERAL (
        SELECT e.event_id, e.stream_version, e.position
        FROM event_store.event AS e
        WHERE e.partition = p_partition AND e.tenant_id = c.tenant_id AND e.stream_id = c.stream_id
        ORDER BY e.stream_version DESC LIMIT 1
    ) AS n ON true;

    -- Judge: which keys are known? A chain is cut at the first of them.
    FOR v_command IN
        SELECT k.ord
        FROM (
            SELECT generate_subscripts(k_key, 1) AS ord, unnest(k_chain) AS chain, unnest(k_key) AS key
        ) AS k
        CROSS JOIN LATERAL (
            SELECT FROM event_store.command AS c
            WHERE c.partition = p_partition AND c.tenant_id = c_tenant[k.chain] AND c.key = k.key
            LIMIT 1
        ) AS is_known
    LOOP
        known := known || v_command;
        stop[k_chain[v_command]] := least(stop[k_chain[v_command]], v_command);
    END LOOP;

    -- Cut: positions go to what stands.
    SELECT array_agg(v_head + 1 + c.through - c.standing), max(c.through)
    INTO first_position, v_events
    FROM (
        SELECT c.standing, sum(c.standing) OVER (ROWS UNBOUNDED PRECEDING) AS through
        FROM (
            SELECT CASE WHEN s.stop = s.behind THEN s.event_count ELSE k_events_before[s.stop] END AS standing
            FROM (
                SELECT unnest(append.stop) AS stop, unnest(c_behind) AS behind, unnest(c_event_count) AS event_count
            ) AS s
        ) AS c
    ) AS c;

    -- Write.
    INSERT INTO event_store.event (
        position, stream_version, recorded_at, partition, schema_version, tenant_id, event_id, category, stream_id,
        event_type, payload, metadata)
    SELECT append.first_position[e.chain] + e.index, append.newest_version[e.chain] + 1 + e.index, append.recorded_at,
           p_partition, e.schema_version, c_tenant[e.chain], e.id, c_category[e.chain], c_stream[e.chain],
           e.type, e.payload, k_metadata[e.command]
    FROM (
        SELECT e.command, k_chain[e.command] AS chain, e.index, e.id, e.type, e.schema_version, e.payload
        FROM (
            SELECT unnest(e_command) AS command, unnest(e_index) AS index, unnest(e_id) AS id, unnest(e_type) AS type,
                   unnest(e_schema_version) AS schema_version, unnest(e_payload) AS payload
        ) AS e
        OFFSET 0
    ) AS e
    WHERE e.command < append.stop[e.chain];

    -- Positions are unique and none up to the head is free, so the number and the last of them say that there is no hole.
    GET DIAGNOSTICS v_written = ROW_COUNT;
    IF v_written <> v_events OR v_events > 0 AND NOT EXISTS (
        SELECT FROM event_store.event AS e WHERE e.partition = p_partition AND e.position = v_head + v_events
    ) THEN
        RAISE EXCEPTION 'the batch does not say truly which events it has' USING ERRCODE = 'raise_exception';
    END IF;

    INSERT INTO event_store.command (
        position, partition, event_count, tenant_id, fingerprint, key_table, key, outcome)
    SELECT CASE
               WHEN k.event_count > 0 THEN append.first_position[k.chain] + k.events_before
               WHEN k.events_before > 0 THEN append.first_position[k.chain] + k.events_before - 1
               ELSE append.newest_position[k.chain]
           END,
           p_partition, k.event_count, c_tenant[k.chain], k.fingerprint, v_key_table, k.key,
           CASE WHEN k.event_count = 0 THEN json_build_object(
               'stream_id', c_stream[k.chain],
               'stream_version', append.newest_version[k.chain] + k.events_before,
               'recorded_at_us', (extract(epoch FROM append.recorded_at) * 1000000)::bigint,
               'rejection', k.rejection) END
    FROM (
        SELECT generate_subscripts(k_key, 1) AS ord, unnest(k_chain) AS chain, unnest(k_key) AS key,
               unnest(k_fingerprint) AS fingerprint, unnest(k_event_count) AS event_count,
               unnest(k_events_before) AS events_before, unnest(k_rejection) AS rejection
    ) AS k
    WHERE k.ord < append.stop[k.chain];
END
$$;
ALTER FUNCTION event_store.append OWNER TO daybook_append;
REVOKE ALL ON FUNCTION event_store.append FROM PUBLIC;
GRANT EXECUTE ON FUNCTION event_store.append TO daybook_command;

-- The receipts of known keys, read after the append that met them: an answer of megabytes would hold the partition's
-- lock for as long as its client takes to read it. Keys of several tenants come in one call, so it runs as the role that
-- sees them all; only the command service may call it.
CREATE FUNCTION event_store.receipts(p_partition integer, p_tenant uuid[], p_key text[])
RETURNS TABLE (
    ord            bigint,
    fingerprint    uuid,
    "position"     bigint,
    event_count    integer,
    outcome        json,
    -- Of a command with events: of its first event.
    event_id       uuid,
    stream_id      text,
    stream_version bigint,
    recorded_at    timestamptz
)
LANGUAGE plpgsql STABLE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
    RETURN QUERY
        SELECT k.ord, c.fingerprint, c.position, c.event_count, c.outcome, e.event_id, e.stream_id, e.stream_version,
               e.recorded_at
        FROM unnest(p_tenant, p_key) WITH ORDINALITY AS k(tenant_id, key, ord)
        CROSS JOIN LATERAL (
            SELECT c.* FROM event_store.command AS c
            WHERE c.partition = p_partition AND c.tenant_id = k.tenant_id AND c.key = k.key
            LIMIT 1
        ) AS c
        LEFT JOIN event_store.event AS e
             ON c.event_count > 0 AND e.partition = p_partition AND e.position = c.position;
END
$$;
ALTER FUNCTION event_store.receipts OWNER TO daybook_append;
REVOKE ALL ON FUNCTION event_store.receipts FROM PUBLIC;
GRANT EXECUTE ON FUNCTION event_store.receipts TO daybook_command;
