-- Group commit: one call appends the events of many commands, of many tenants, and says what became of each.
--
-- Commands that were decided one on another travel as one chain. A chain names the event that its first command was
-- decided on, and stands if that is the newest event of its stream: an id, and not a count, because two processes that
-- decide ahead reach one version by different events. A chain that stands does so up to its first known key: that command
-- was answered before, and what follows it was decided on events that are not recorded. A chain of no commands that may
-- be written asks only: whether its key is known, and what the newest event of its stream is.
--
-- Chains of different streams may be a group, which stands as a whole or not at all: an atomic batch of a caller's.
--
-- The caller sees to it that no key and no stream's second chain is in a batch, and that the commands of a chain, and the
-- events of a command, are side by side and in order. If it were wrong, the batch would be refused, by the keys of the tables
-- or because its counts do not fit together: no caller, whatever it sends, leaves a hole.
--
-- Each statement takes its snapshot after the lock is held, so it sees everything that was committed before; under any
-- other isolation than READ COMMITTED it would not. Plans are kept from the first calls, when the tables are still empty
-- and reading them whole looks cheap, so every way to look up a key but a probe of the index is off: what would be a hash or
-- a merge is a lateral probe with a LIMIT. Arrays become rows in select lists, one at a time; in FROM they would be written to
-- a temporary store first, as a window over the chains would be. To start a statement costs a lone command more than to run
-- it: hence few of them, and a result of a named type, whose columns are not looked up anew for each call.

-- What became of a batch.
CREATE TYPE event_store.judgement AS (
    -- The epoch that it was recorded in.
    epoch           integer,
    generation      uuid,
    recorded_at     timestamptz,
    -- One element per chain.
    written_end     integer[],  -- of its commands those before this one were written
    newest_id       uuid[],     -- the newest event of its stream before this batch, NULL when there is none
    newest_version  bigint[],   -- 0 when there is none
    newest_position bigint[],
    first_position  bigint[],   -- where the chain's first event is, or would be; one more element: behind the batch
    -- The commands whose keys are known, NULL for none; nothing was written for them.
    known           integer[]
);

CREATE FUNCTION event_store.append(
    p_partition          integer,
    -- One element per tenant, those with many commands first.
    tenant               uuid[],
    -- One element per tenant with many commands: the greatest of its keys and of its stream ids.
    tenant_last_key      bytea[],
    tenant_last_stream   text[],
    -- One element per chain.
    chain_tenant         integer[],  -- which tenant, from 1
    chain_stream         text[],
    chain_category       text[],
    chain_decided_on     uuid[],     -- the event that its first command was decided on; NULL: a stream without events
    chain_first          integer[],  -- its first command, from 1
    chain_end            integer[],  -- the first command behind it; equal to chain_first in a chain that only asks
    chain_events         integer[],  -- how many events it has
    -- One element per group of chains, which are side by side.
    group_first          integer[],  -- its first chain, from 1
    group_end            integer[],  -- the first chain behind it
    -- One element per command.
    command_chain        integer[],  -- which chain, from 1
    command_key          bytea[],
    command_fingerprint  bigint[],
    command_metadata     json[],
    command_events       integer[],  -- how many events it has
    command_events_before integer[], -- events of its chain before it
    command_rejection    json[],     -- of a command without events: the domain's refusal, NULL for none
    -- One element per event.
    event_command        integer[],  -- which command, from 1
    event_index          integer[],  -- which of its chain's events, from 0
    event_id             uuid[],
    event_type           text[],
    event_schema_version integer[],
    event_payload        json[]
) RETURNS event_store.judgement
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
SET enable_bitmapscan = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    -- Whatever the database's default is: what is acknowledged is on disk.
    v_commit CONSTANT text NOT NULL := set_config('synchronous_commit', 'on', true);
    v_tenant          integer[];
    v_epoch           integer;
    v_generation      uuid;
    v_timeline        text;
    v_recorded_at     timestamptz;
    v_head            bigint;
    v_known_until     bytea[];
    v_streams_until   text[];
    v_newest_id       uuid[];
    v_newest_version  bigint[];
    v_newest_position bigint[];
    v_known           integer[];
    v_decided_wrongly integer[];     -- the chains that were decided on another event than the newest
    v_command         integer;
    v_chain           integer;
    v_group           integer;
    v_written_end     integer[] := chain_end;
    v_position        bigint;
    v_first_position  bigint[];
    v_written         bigint;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'event_store.append needs READ COMMITTED' USING ERRCODE = 'invalid_transaction_state';
    END IF;
    v_tenant := ARRAY(
        SELECT (SELECT t.number FROM event_store.tenant AS t WHERE t.tenant_id = k.tenant_id)
        FROM (SELECT unnest(tenant) AS tenant_id) AS k
    );

    -- Lock.
    SELECT l.epoch, l.generation, l.timeline INTO STRICT v_epoch, v_generation, v_timeline
    FROM event_store.log AS l WHERE l.partition = p_partition FOR NO KEY UPDATE;
    -- A session may have begun on a standby, and live through its promotion.
    IF left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) <> v_timeline THEN
        RAISE EXCEPTION 'the log''s newest epoch is of another timeline' USING ERRCODE = 'DBK03';
    END IF;
    SELECT e.position, e.recorded_at INTO v_head, v_recorded_at
    FROM event_store.event AS e WHERE e.partition = p_partition ORDER BY e.position DESC LIMIT 1;
    v_head := coalesce(v_head, 0);
    v_recorded_at := greatest(clock_timestamp(), v_recorded_at);

    -- Judge: up to which key, and which stream, can there be anything of a tenant with many commands? Ids that come in the
    -- order of time are mostly beyond that, and need no probe of their own.
    IF cardinality(tenant_last_key) > 0 THEN
        SELECT array_agg(k.key), array_agg(s.stream_id)
        INTO v_known_until, v_streams_until
        FROM (
            SELECT unnest(v_tenant[:cardinality(tenant_last_key)]) AS tenant, unnest(tenant_last_key) AS last_key,
                   unnest(tenant_last_stream) AS last_stream
        ) AS t
        LEFT JOIN LATERAL (
            SELECT c.key FROM event_store.command AS c
            WHERE c.partition = p_partition AND c.tenant_number = t.tenant AND c.key <= t.last_key
            ORDER BY c.key DESC LIMIT 1
        ) AS k ON true
        LEFT JOIN LATERAL (
            SELECT e.stream_id FROM event_store.event AS e
            WHERE e.partition = p_partition AND e.tenant_number = t.tenant AND e.stream_id <= t.last_stream
            ORDER BY e.stream_id DESC LIMIT 1
        ) AS s ON true;
    END IF;

    -- Judge: which keys are known, and is the newest event of a stream the one that its chain was decided on?
    SELECT array_agg(n.event_id) FILTER (WHERE c.is_first),
           array_agg(coalesce(n.stream_version, 0)) FILTER (WHERE c.is_first),
           array_agg(coalesce(n.position, 0)) FILTER (WHERE c.is_first),
           array_agg(c.chain) FILTER (WHERE c.is_first AND n.event_id IS DISTINCT FROM chain_decided_on[c.chain]),
           array_agg(c.ord) FILTER (WHERE k.is_known)
    INTO v_newest_id, v_newest_version, v_newest_position, v_decided_wrongly, v_known
    FROM (
        SELECT c.ord, c.chain, c.key, chain_tenant[c.chain] AS tenant, c.ord = chain_first[c.chain] AS is_first
        FROM (
            SELECT generate_subscripts(command_key, 1) AS ord, unnest(command_chain) AS chain, unnest(command_key) AS key
        ) AS c
    ) AS c
    LEFT JOIN LATERAL (
        SELECT e.event_id, e.stream_version, e.position
        FROM event_store.event AS e
        WHERE e.partition = p_partition AND e.tenant_number = v_tenant[c.tenant] AND e.stream_id = chain_stream[c.chain]
          AND c.is_first AND coalesce(chain_stream[c.chain] COLLATE "C" <= v_streams_until[c.tenant], true)
        ORDER BY e.stream_version DESC LIMIT 1
    ) AS n ON true
    LEFT JOIN LATERAL (
        SELECT true AS is_known
        FROM event_store.command AS k
        WHERE k.partition = p_partition AND k.tenant_number = v_tenant[c.tenant] AND k.key = c.key
          AND coalesce(c.key <= v_known_until[c.tenant], true)
        LIMIT 1
    ) AS k ON true;

    -- Cut: what stands does so up to the chain's first known key. Positions go to what stands.
    FOREACH v_command IN ARRAY coalesce(v_known, '{}') LOOP
        v_chain := command_chain[v_command];
        v_written_end[v_chain] := least(v_written_end[v_chain], v_command);
    END LOOP;
    FOREACH v_chain IN ARRAY coalesce(v_decided_wrongly, '{}') LOOP
        v_written_end[v_chain] := chain_first[v_chain];
    END LOOP;
    -- Of a group that would not stand as a whole nothing does.
    FOR v_group IN 1 .. cardinality(group_first) LOOP
        IF v_written_end[group_first[v_group] : group_end[v_group] - 1]
           IS DISTINCT FROM chain_end[group_first[v_group] : group_end[v_group] - 1] THEN
            FOR v_chain IN group_first[v_group] .. group_end[v_group] - 1 LOOP
                v_written_end[v_chain] := chain_first[v_chain];
            END LOOP;
        END IF;
    END LOOP;
    v_position := v_head + 1;
    FOR v_chain IN 1 .. cardinality(chain_first) LOOP
        v_first_position[v_chain] := v_position;
        v_position := v_position + CASE
            WHEN v_written_end[v_chain] = chain_end[v_chain] THEN chain_events[v_chain]
            ELSE command_events_before[v_written_end[v_chain]]
        END;
        IF (v_position >= v_first_position[v_chain] AND command_chain[chain_first[v_chain]] = v_chain
            AND chain_first[v_chain] > coalesce(chain_first[v_chain - 1], 0)) IS NOT TRUE THEN
            RAISE EXCEPTION 'the batch''s chains do not match its commands' USING ERRCODE = 'raise_exception';
        END IF;
    END LOOP;
    v_first_position := v_first_position || v_position;

    -- Write.
    INSERT INTO event_store.event (
        position, stream_version, recorded_at, partition, tenant_number, schema_version, event_id, category, stream_id,
        event_type, payload, metadata)
    SELECT v_first_position[e.chain] + e.index, v_newest_version[e.chain] + 1 + e.index, v_recorded_at,
           p_partition, v_tenant[chain_tenant[e.chain]], e.schema_version, e.id, chain_category[e.chain],
           chain_stream[e.chain], e.type, e.payload, command_metadata[e.command]
    FROM (
        SELECT e.command, command_chain[e.command] AS chain, e.index, e.id, e.type, e.schema_version, e.payload
        FROM (
            SELECT unnest(event_command) AS command, unnest(event_index) AS index, unnest(event_id) AS id,
                   unnest(event_type) AS type, unnest(event_schema_version) AS schema_version,
                   unnest(event_payload) AS payload
        ) AS e
        OFFSET 0
    ) AS e
    -- As many different positions as there are from the chain's first to the next one's leave no hole.
    WHERE e.command < v_written_end[e.chain]
      AND e.index >= 0 AND v_first_position[e.chain] + e.index < v_first_position[e.chain + 1];
    GET DIAGNOSTICS v_written = ROW_COUNT;
    IF v_head + 1 + v_written IS DISTINCT FROM v_position THEN
        RAISE EXCEPTION 'the batch''s event counts do not match its events' USING ERRCODE = 'raise_exception';
    END IF;

    -- Whoever has looked for keys holds both tables until it commits, so that they do not take turns meanwhile.
    INSERT INTO event_store.command (
        position, fingerprint, partition, tenant_number, event_count, key_table, key, outcome)
    SELECT CASE
               WHEN k.events > 0 THEN v_first_position[k.chain] + k.events_before
               WHEN k.events_before > 0 THEN v_first_position[k.chain] + k.events_before - 1
               ELSE v_newest_position[k.chain]
           END,
           k.fingerprint, p_partition, v_tenant[chain_tenant[k.chain]], k.events,
           (SELECT t.key_table FROM event_store.current_key_table AS t WHERE t.is_only_row), k.key,
           CASE WHEN k.events = 0 THEN json_build_object(
               'stream_id', chain_stream[k.chain],
               'stream_version', v_newest_version[k.chain] + k.events_before,
               'recorded_at_us', (extract(epoch FROM v_recorded_at) * 1000000)::bigint,
               'rejection', k.rejection) END
    FROM (
        SELECT generate_subscripts(command_key, 1) AS ord, unnest(command_chain) AS chain, unnest(command_key) AS key,
               unnest(command_fingerprint) AS fingerprint, unnest(command_events) AS events,
               unnest(command_events_before) AS events_before, unnest(command_rejection) AS rejection
    ) AS k
    WHERE k.ord < v_written_end[k.chain];

    RETURN (v_epoch, v_generation, v_recorded_at, v_written_end, v_newest_id, v_newest_version, v_newest_position,
            v_first_position, v_known);
END
$$;
ALTER FUNCTION event_store.append OWNER TO daybook_append;
REVOKE ALL ON FUNCTION event_store.append FROM PUBLIC;
GRANT EXECUTE ON FUNCTION event_store.append TO daybook_command;

-- The receipts of known keys, read after the append that met them: an answer of megabytes would hold the partition's
-- lock for as long as its client takes to read it. Keys of several tenants come in one call, so it runs as the role that
-- sees them all; only the command service may call it.
CREATE FUNCTION event_store.receipts(p_partition integer, p_tenant uuid[], p_key bytea[])
RETURNS TABLE (
    ord            bigint,
    fingerprint    bigint,
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
        JOIN event_store.tenant AS t ON t.tenant_id = k.tenant_id
        CROSS JOIN LATERAL (
            SELECT c.* FROM event_store.command AS c
            WHERE c.partition = p_partition AND c.tenant_number = t.number AND c.key = k.key
            LIMIT 1
        ) AS c
        LEFT JOIN event_store.event AS e
             ON c.event_count > 0 AND e.partition = p_partition AND e.position = c.position;
END
$$;
ALTER FUNCTION event_store.receipts OWNER TO daybook_append;
REVOKE ALL ON FUNCTION event_store.receipts FROM PUBLIC;
GRANT EXECUTE ON FUNCTION event_store.receipts TO daybook_command;
