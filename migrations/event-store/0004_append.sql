-- Group commit: one call appends the events of many commands, of many tenants, and says what became of each command.
--
-- Parameters come in two bundles of arrays: one element per command, and one element per event that names its command.
-- A command is, in this order of precedence,
--
--   3 replayed    its key was used before with the same content: nothing is written, the first receipt is given;
--   4 key_reused  its key was used before with other content: nothing is written;
--   5 deferred    it cannot be judged in this batch, send it again in the next one: its key is in this batch already,
--                 or a command before it on its stream was refused and it may still fit what is left;
--   2 conflict    its stream is not at the expected version;
--   1 appended    its events have consecutive positions, and its receipt is remembered under its key. A command
--                 without events is a refusal by the domain that is to be remembered.
--
-- Commands on one stream may build on each other within the batch: the expected version is compared with what the
-- stream will be after the commands before. A refused command never fails the others.
--
-- There are three ways to the same verdicts: a lone command with one event, which needs no sets; commands that have
-- nothing to do with each other, which most batches are made of; and commands that may share streams or keys, judged with
-- windows over the batch, which costs a third more.
--
-- Arrays become rows in select lists, one row at a time: in FROM they would be written to a temporary store first, which
-- cost an eighth of a batch's time.
--
-- Each statement takes its snapshot after the lock is held, so it sees everything that was committed before. Plans are
-- kept from the first calls, when the tables are still empty and reading them whole looks cheap; every way to look up a
-- key but the one that stays cheap, a probe of the index for each command, is therefore off.
CREATE FUNCTION event_store.append(
    p_partition       integer,
    -- One element per command.
    p_tenant          uuid[],
    p_key             text[],
    p_fingerprint     bytea[],
    p_stream          text[],
    p_category        text[],
    p_expected        bigint[],   -- NULL: any version
    p_event_count     integer[],
    p_metadata        json[],
    p_rejection       json[],
    -- One element per event, in the order of the commands.
    e_command         integer[],  -- which command, from 1
    e_index           integer[],  -- which of its events, from 0
    e_id              uuid[],
    e_type            text[],
    e_schema_version  integer[],
    e_payload         json[],
    -- No key and no stream occurs twice in this batch. The caller counts that on its own processor; were it wrong, the
    -- keys of the tables would refuse the batch as a whole.
    p_unrelated       boolean,
    OUT generation    uuid,
    OUT recorded_at   timestamptz,
    -- One element per command.
    OUT verdict       smallint[],
    OUT version       bigint[],   -- appended: the stream's version after it; conflict: the actual version
    OUT first_position bigint[],  -- 0: no events
    -- The receipts of replayed commands, or NULL.
    OUT replays       json
)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = ''
SET enable_seqscan = off
SET enable_bitmapscan = off
SET enable_hashjoin = off
SET enable_mergejoin = off
SET enable_material = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    v_head       bigint;
    v_appended   bigint;
    -- One element per command: its stream's version before it, and, where it is the last that adds to its stream, before
    -- the batch (else NULL).
    v_before     bigint[];
    v_stream_was bigint[];
    -- Of a lone command.
    v_known      bytea;
    v_version    bigint;
BEGIN
    SELECT l.head, l.generation, greatest(clock_timestamp(), l.recorded_at)
    INTO STRICT v_head, generation, recorded_at
    FROM event_store.log AS l
    WHERE l.partition = p_partition
    FOR NO KEY UPDATE;

    IF cardinality(p_key) = 1 AND cardinality(e_id) = 1 THEN
        SELECT (SELECT k.fingerprint
                FROM event_store.command AS k
                WHERE k.partition = p_partition AND k.tenant_id = p_tenant[1] AND k.key = p_key[1]),
               coalesce((SELECT s.version
                         FROM event_store.stream AS s
                         WHERE s.partition = p_partition AND s.tenant_id = p_tenant[1] AND s.stream_id = p_stream[1]), 0)
        INTO STRICT v_known, v_version;
        verdict := ARRAY[CASE
            WHEN v_known = p_fingerprint[1] THEN 3
            WHEN v_known IS NOT NULL THEN 4
            WHEN p_expected[1] IS NULL OR p_expected[1] = v_version THEN 1
            ELSE 2
        END];
        IF verdict[1] = 1 THEN
            IF v_version = 0 THEN
                INSERT INTO event_store.stream (partition, tenant_id, stream_id, category, version)
                VALUES (p_partition, p_tenant[1], p_stream[1], p_category[1], 1);
            ELSE
                UPDATE event_store.stream AS s
                SET version = v_version + 1
                WHERE s.partition = p_partition AND s.tenant_id = p_tenant[1] AND s.stream_id = p_stream[1];
            END IF;
            v_head := v_head + 1;
            v_version := v_version + 1;
            INSERT INTO event_store.event (
                partition, position, tenant_id, category, stream_id, stream_version,
                event_id, event_type, schema_version, payload, metadata, recorded_at)
            VALUES (
                p_partition, v_head, p_tenant[1], p_category[1], p_stream[1], v_version,
                e_id[1], e_type[1], e_schema_version[1], e_payload[1], p_metadata[1], append.recorded_at);
            INSERT INTO event_store.command (
                partition, tenant_id, key, fingerprint, stream_id, stream_version, first_position, event_count, rejection,
                recorded_at)
            VALUES (
                p_partition, p_tenant[1], p_key[1], p_fingerprint[1], p_stream[1], v_version, v_head, 1, p_rejection[1],
                append.recorded_at);
            UPDATE event_store.log AS l
            SET head = v_head, recorded_at = append.recorded_at
            WHERE l.partition = p_partition;
        END IF;
        version := ARRAY[v_version];
        first_position := ARRAY[CASE WHEN verdict[1] = 1 THEN v_head ELSE 0 END];
    ELSE
        IF p_unrelated THEN
            SELECT array_agg(j.verdict), array_agg(j.before + j.adds),
                   array_agg(CASE WHEN j.adds > 0 THEN v_head + 1 - j.adds + j.running ELSE 0 END),
                   array_agg(j.before), array_agg(CASE WHEN j.adds > 0 THEN j.before END), sum(j.adds)
            INTO verdict, version, first_position, v_before, v_stream_was, v_appended
            FROM (
                SELECT a.ord, a.verdict, a.before, a.adds,
                       sum(a.adds) OVER (ORDER BY a.ord ROWS UNBOUNDED PRECEDING) AS running
                FROM (
                    SELECT v.ord, v.verdict, v.before, CASE WHEN v.verdict = 1 THEN v.event_count ELSE 0 END AS adds
                    FROM (
                        SELECT k.ord, k.before, k.event_count,
                               CASE
                                   WHEN k.known_fingerprint = k.fingerprint THEN 3
                                   WHEN k.known_fingerprint IS NOT NULL THEN 4
                                   WHEN k.expected IS NULL OR k.expected = k.before THEN 1
                                   ELSE 2
                               END::smallint AS verdict
                        FROM (
                            SELECT i.ord, i.fingerprint, i.expected, i.event_count,
                                   (SELECT known.fingerprint
                                    FROM event_store.command AS known
                                    WHERE known.partition = p_partition
                                      AND known.tenant_id = i.tenant_id
                                      AND known.key = i.key) AS known_fingerprint,
                                   coalesce((SELECT s.version
                                             FROM event_store.stream AS s
                                             WHERE s.partition = p_partition
                                               AND s.tenant_id = i.tenant_id
                                               AND s.stream_id = i.stream_id), 0) AS before
                            FROM (
                                SELECT generate_subscripts(p_key, 1) AS ord, unnest(p_tenant) AS tenant_id,
                                       unnest(p_key) AS key, unnest(p_fingerprint) AS fingerprint,
                                       unnest(p_stream) AS stream_id, unnest(p_expected) AS expected,
                                       unnest(p_event_count) AS event_count
                            ) AS i
                            -- Keeps the planner from repeating the probes wherever their results are used.
                            OFFSET 0
                        ) AS k
                        OFFSET 0
                    ) AS v
                ) AS a
                ORDER BY a.ord
            ) AS j;
        ELSE
            SELECT array_agg(j.verdict), array_agg(j.version), array_agg(j.first_position), array_agg(j.before),
                   array_agg(j.stream_was), coalesce(sum(j.event_count) FILTER (WHERE j.verdict = 1), 0)
            INTO verdict, version, first_position, v_before, v_stream_was, v_appended
            FROM (
                SELECT c.ord, c.event_count, c.before,
                       CASE
                           WHEN c.known_fingerprint IS NOT NULL THEN
                               CASE WHEN c.known_fingerprint = c.fingerprint THEN 3 ELSE 4 END
                           WHEN NOT c.is_candidate THEN 5
                           WHEN c.accepted THEN 1
                           WHEN c.after_refusal AND c.chance_left AND (c.expected IS NULL OR c.expected >= c.settled) THEN 5
                           ELSE 2
                       END::smallint AS verdict,
                       CASE WHEN c.accepted THEN c.before + c.event_count ELSE c.settled END AS version,
                       CASE
                           WHEN c.accepted AND c.event_count > 0
                           THEN v_head + 1 - c.event_count
                                + sum(c.event_count) FILTER (WHERE c.accepted) OVER (ORDER BY c.ord)
                           ELSE 0
                       END::bigint AS first_position,
                       CASE
                           WHEN c.accepted AND c.event_count > 0 AND c.before + c.event_count = c.settled
                           THEN c.actual
                       END AS stream_was
                FROM (
                    -- Could a command behind the refused one still fit? Only if it takes any version or exactly the one that
                    -- the accepted commands lead to; the versions of a stream never fall.
                    SELECT b.*,
                           coalesce(bool_or(b.expected IS NULL OR b.expected = b.settled)
                               FILTER (WHERE b.after_refusal) OVER (PARTITION BY b.tenant_id, b.stream_id), false)
                               AS chance_left
                    FROM (
                        SELECT f.*,
                               f.fits AND NOT f.after_refusal AS accepted,
                               f.actual + coalesce(sum(f.event_count) FILTER (WHERE f.fits AND NOT f.after_refusal)
                                   OVER (PARTITION BY f.tenant_id, f.stream_id), 0) AS settled
                        FROM (
                            SELECT r.*,
                                   coalesce(bool_or(r.is_candidate AND NOT r.fits) OVER earlier, false) AS after_refusal
                            FROM (
                                SELECT a.*,
                                       a.is_candidate AND (a.expected IS NULL OR a.expected = a.before) AS fits
                                FROM (
                                    SELECT k.*,
                                           k.actual + coalesce(sum(k.event_count) FILTER (WHERE k.is_candidate)
                                               OVER earlier, 0)::bigint AS before
                                    FROM (
                                        SELECT i.ord, i.tenant_id, i.stream_id, i.fingerprint, i.expected, i.event_count,
                                               coalesce(s.version, 0) AS actual,
                                               known.fingerprint AS known_fingerprint,
                                               known.fingerprint IS NULL AND row_number() OVER (
                                                   PARTITION BY i.tenant_id, i.key ORDER BY i.ord) = 1 AS is_candidate
                                        FROM unnest(p_tenant, p_key, p_fingerprint, p_stream, p_expected, p_event_count)
                                             WITH ORDINALITY
                                             AS i(tenant_id, key, fingerprint, stream_id, expected, event_count, ord)
                                        LEFT JOIN event_store.command AS known
                                             ON known.partition = p_partition
                                            AND known.tenant_id = i.tenant_id
                                            AND known.key = i.key
                                        LEFT JOIN event_store.stream AS s
                                             ON s.partition = p_partition
                                            AND s.tenant_id = i.tenant_id
                                            AND s.stream_id = i.stream_id
                                    ) AS k
                                    WINDOW earlier AS (PARTITION BY k.tenant_id, k.stream_id ORDER BY k.ord
                                                       ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
                                ) AS a
                            ) AS r
                            WINDOW earlier AS (PARTITION BY r.tenant_id, r.stream_id ORDER BY r.ord
                                               ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)
                        ) AS f
                    ) AS b
                ) AS c
                ORDER BY c.ord
            ) AS j;
        END IF;

        INSERT INTO event_store.event (
            partition, position, tenant_id, category, stream_id, stream_version,
            event_id, event_type, schema_version, payload, metadata, recorded_at)
        SELECT p_partition, append.first_position[e.command] + e.index, p_tenant[e.command], p_category[e.command],
               p_stream[e.command], v_before[e.command] + 1 + e.index,
               e.id, e.type, e.schema_version, e.payload, p_metadata[e.command], append.recorded_at
        FROM (
            SELECT unnest(e_command) AS command, unnest(e_index) AS index, unnest(e_id) AS id, unnest(e_type) AS type,
                   unnest(e_schema_version) AS schema_version, unnest(e_payload) AS payload
        ) AS e
        WHERE append.first_position[e.command] > 0;

        -- Whether a stream is there is known, and nobody else can make it meanwhile: new ones need no look for a conflict.
        INSERT INTO event_store.stream (partition, tenant_id, stream_id, category, version)
        SELECT p_partition, c.tenant_id, c.stream_id, c.category, c.version
        FROM (
            SELECT unnest(p_tenant) AS tenant_id, unnest(p_stream) AS stream_id, unnest(p_category) AS category,
                   unnest(append.version) AS version, unnest(v_stream_was) AS stream_was
        ) AS c
        WHERE c.stream_was = 0;

        -- The others always conflict. An UPDATE would have to be joined with the batch, and the plan that looks cheapest
        -- while there are few streams reads all of them.
        IF 0 < ANY (v_stream_was) THEN
            INSERT INTO event_store.stream (partition, tenant_id, stream_id, category, version)
            SELECT p_partition, c.tenant_id, c.stream_id, c.category, c.version
            FROM (
                SELECT unnest(p_tenant) AS tenant_id, unnest(p_stream) AS stream_id, unnest(p_category) AS category,
                       unnest(append.version) AS version, unnest(v_stream_was) AS stream_was
            ) AS c
            WHERE c.stream_was > 0
            ON CONFLICT (partition, tenant_id, stream_id) DO UPDATE SET version = EXCLUDED.version;
        END IF;

        INSERT INTO event_store.command (
            partition, tenant_id, key, fingerprint, stream_id, stream_version, first_position, event_count, rejection,
            recorded_at)
        SELECT p_partition, c.tenant_id, c.key, c.fingerprint, c.stream_id, c.version, nullif(c.first_position, 0),
               c.event_count, c.rejection, append.recorded_at
        FROM (
            SELECT unnest(p_tenant) AS tenant_id, unnest(p_key) AS key, unnest(p_fingerprint) AS fingerprint,
                   unnest(p_stream) AS stream_id, unnest(append.version) AS version,
                   unnest(append.first_position) AS first_position, unnest(p_event_count) AS event_count,
                   unnest(p_rejection) AS rejection, unnest(append.verdict) AS verdict
        ) AS c
        WHERE c.verdict = 1;

        IF v_appended > 0 THEN
            UPDATE event_store.log AS l
            SET head = l.head + v_appended, recorded_at = append.recorded_at
            WHERE l.partition = p_partition;
        END IF;
    END IF;

    IF 3 = ANY (verdict) THEN
        SELECT json_agg(json_build_object(
                   'command', c.ord, 'stream_id', k.stream_id, 'stream_version', k.stream_version,
                   'first_position', k.first_position, 'event_count', k.event_count, 'rejection', k.rejection,
                   'recorded_at_us', (extract(epoch FROM k.recorded_at) * 1000000)::bigint))
        INTO replays
        FROM unnest(p_tenant, p_key, append.verdict) WITH ORDINALITY AS c(tenant_id, key, verdict, ord)
        -- All of them are there. A left join leaves the planner no choice but to look each of them up.
        LEFT JOIN event_store.command AS k
             ON k.partition = p_partition AND k.tenant_id = c.tenant_id AND k.key = c.key
        WHERE c.verdict = 3;
    END IF;
END
$$;

ALTER FUNCTION event_store.append OWNER TO daybook_append;
REVOKE ALL ON FUNCTION event_store.append FROM PUBLIC;
GRANT EXECUTE ON FUNCTION event_store.append TO daybook_command;
