-- The lineage of a partition's log: epochs, one for each history that it has had.
--
-- A log goes on in another history when its server does: a standby is promoted, a dump or a backup is restored, a disk is
-- rolled back. What was recorded below the fork is the same in both; what the old history had above it is gone. Each epoch
-- has a generation, an id that never comes again, and whatever leaves the database names it: messages, checkpoints, tokens.
-- So what belongs to a history that is gone can be told from what is recorded.
--
-- An epoch names the server that it was opened on: the cluster, the database, and the timeline, which changes with
-- every promotion. An append compares the timeline, and whoever connects compares all of it. A backup that is started as it
-- is, and a disk that is rolled back, show no such sign. Therefore whoever remembers an event says so when it connects, before
-- anything is written, and the log looks whether it has it: the appender its last ones, and the publisher the first one of the
-- stream that it does not find in the log. The log may have gone on since, with other events in the places of those.

CREATE TABLE event_store.epoch (
    partition         integer     NOT NULL REFERENCES event_store.log,
    -- Above that of every epoch that was known when it was opened.
    number            integer     NOT NULL,
    generation        uuid        NOT NULL UNIQUE DEFAULT gen_random_uuid(),
    -- Where it begins: what earlier epochs recorded before this position is a part of it.
    from_position     bigint      NOT NULL,
    system_identifier bigint      NOT NULL,
    database          oid         NOT NULL,
    -- As the names of write-ahead log files begin.
    timeline          text        COLLATE "C" NOT NULL,
    opened_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Why, for people.
    reason            text        NOT NULL,
    PRIMARY KEY (partition, number)
);
GRANT SELECT, INSERT ON event_store.epoch TO daybook_append;
GRANT SELECT ON event_store.epoch
    TO daybook_command, daybook_publisher, daybook_projector, daybook_query, daybook_read_model;

-- Whether the log has what was recorded in a generation up to a position.
CREATE FUNCTION event_store.has(p_partition integer, p_generation uuid, p_position bigint) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (
        SELECT FROM event_store.epoch AS e
        WHERE e.partition = p_partition AND e.generation = p_generation
          AND NOT EXISTS (
              SELECT FROM event_store.epoch AS later
              WHERE later.partition = e.partition AND later.number > e.number AND later.from_position <= p_position))
$$;
ALTER FUNCTION event_store.has OWNER TO daybook_functions;

-- What a server is told apart by. The timeline comes from the write-ahead log itself: it changes at the very promotion,
-- while the control file says the old one until the next checkpoint. Fails on a standby.
CREATE FUNCTION event_store.server(OUT system_identifier bigint, OUT database oid, OUT timeline text)
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT (SELECT c.system_identifier FROM pg_control_system() AS c),
           (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database()),
           left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)
$$;
ALTER FUNCTION event_store.server OWNER TO daybook_append;
REVOKE ALL ON FUNCTION event_store.server FROM PUBLIC;

-- Adds a partition, with its first epoch.
CREATE FUNCTION event_store.add_partition(p_partition integer) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
AS $$
    WITH first AS (
        INSERT INTO event_store.log (partition, epoch, generation, timeline)
        SELECT p_partition, 1, gen_random_uuid(), s.timeline FROM event_store.server() AS s
        RETURNING partition, epoch, generation
    )
    INSERT INTO event_store.epoch (
        partition, number, generation, from_position, system_identifier, database, timeline, reason)
    SELECT f.partition, f.epoch, f.generation, 1, s.system_identifier, s.database, s.timeline, 'the partition was added'
    FROM first AS f CROSS JOIN event_store.server() AS s
$$;
ALTER FUNCTION event_store.add_partition OWNER TO daybook_functions;
REVOKE ALL ON FUNCTION event_store.add_partition FROM PUBLIC;

-- Why the log cannot go on in its newest epoch; NULL when it can. The witnesses are events that were recorded in a
-- generation, as the caller remembers: one that is not there was lost, unless a later epoch begins before it. Of a generation
-- that the log has not they say nothing: it may be this log that was left behind, and not they that are lost.
CREATE FUNCTION event_store.fork_reason(
    p_partition integer, p_generation uuid, p_positions bigint[], p_event_ids uuid[]) RETURNS text
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
    SELECT CASE
        WHEN e.system_identifier <> s.system_identifier THEN 'the log was restored in another cluster'
        WHEN e.database <> s.database THEN 'the log was restored in another database'
        WHEN e.timeline <> s.timeline THEN 'the server was promoted, from timeline ' || e.timeline || ' to ' || s.timeline
        WHEN EXISTS (
            SELECT FROM event_store.epoch AS of
            CROSS JOIN unnest(p_positions, p_event_ids) AS w (position, event_id)
            LEFT JOIN event_store.event AS n ON n.partition = p_partition AND n.position = w.position
            WHERE of.partition = p_partition AND of.generation = p_generation
              AND n.event_id IS DISTINCT FROM w.event_id
              AND NOT EXISTS (
                  SELECT FROM event_store.epoch AS later
                  WHERE later.partition = p_partition AND later.number > of.number AND later.from_position <= w.position)
        ) THEN 'the log was set back: it has not all that was recorded'
    END
    FROM event_store.log AS l
    JOIN event_store.epoch AS e ON e.partition = l.partition AND e.number = l.epoch
    CROSS JOIN event_store.server() AS s
    WHERE l.partition = p_partition
$$;
ALTER FUNCTION event_store.fork_reason OWNER TO daybook_append;
REVOKE ALL ON FUNCTION event_store.fork_reason FROM PUBLIC;

-- Opens the next epoch, behind p_common, or behind the head where that is NULL. An administrator calls it where it takes
-- somebody to decide: data from before the newest epoch were put back, and the bus has seen a later one.
CREATE FUNCTION event_store.fork(p_partition integer, p_above integer, p_reason text, p_common bigint DEFAULT NULL)
RETURNS integer
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
    v_epoch  integer;
    v_common bigint := p_common;
BEGIN
    SELECT l.epoch INTO STRICT v_epoch FROM event_store.log AS l WHERE l.partition = p_partition FOR NO KEY UPDATE;
    -- Whoever invents numbers does not use them up.
    v_epoch := greatest(v_epoch, least(p_above, v_epoch + 1000)) + 1;
    IF v_common IS NULL THEN
        v_common := coalesce((
            SELECT e.position FROM event_store.event AS e
            WHERE e.partition = p_partition ORDER BY e.position DESC LIMIT 1), 0);
    END IF;
    WITH opened AS (
        INSERT INTO event_store.epoch (
            partition, number, from_position, system_identifier, database, timeline, reason)
        SELECT p_partition, v_epoch, v_common + 1, s.system_identifier, s.database, s.timeline, p_reason
        FROM event_store.server() AS s
        RETURNING generation, timeline
    )
    UPDATE event_store.log AS l SET epoch = v_epoch, generation = o.generation, timeline = o.timeline
    FROM opened AS o WHERE l.partition = p_partition;
    RETURN v_epoch;
END
$$;
ALTER FUNCTION event_store.fork OWNER TO daybook_append;
REVOKE ALL ON FUNCTION event_store.fork FROM PUBLIC;

-- Makes sure that the newest epoch is this server's and has all that the caller remembers, and opens the next one if not.
-- To be called after every connect, before the first append, and when an append says that its epoch is over. It fails on a
-- standby.
--
-- The fork is where the histories part. A promoted standby, or a dump, has the beginning of what was there before, and nothing was
-- recorded in it since: all that it holds is common. A log that was set back may have gone on before anybody noticed, so
-- there only what lies before a witness that it has is known to be.
-- A witness of the bus may be a lie, of whoever may publish: then events that are recorded lie behind the fork, and tokens and
-- cursors for them are refused. What the bus has of no event is no witness.
CREATE FUNCTION event_store.attach(
    p_partition integer,
    -- The generation that the witnesses were recorded in, and they.
    p_generation uuid,
    p_positions  bigint[],
    p_event_ids  uuid[],
    -- The greatest number of an epoch that the caller has met anywhere.
    p_seen       integer,
    OUT epoch      integer,
    OUT generation uuid,
    -- Why the epoch was opened by this call; NULL when it was open.
    OUT opened     text
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
#variable_conflict use_column
DECLARE
    v_common bigint;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'event_store.attach needs READ COMMITTED' USING ERRCODE = 'invalid_transaction_state';
    END IF;
    PERFORM set_config('synchronous_commit', 'on', true);
    -- Nearly always there is nothing to do, and nobody is held up.
    IF event_store.fork_reason(p_partition, p_generation, p_positions, p_event_ids) IS NOT NULL THEN
        PERFORM FROM event_store.log AS l WHERE l.partition = p_partition FOR NO KEY UPDATE;
        -- Once more: somebody else may have opened it while the lock was waited for.
        opened := event_store.fork_reason(p_partition, p_generation, p_positions, p_event_ids);
    END IF;
    IF opened IS NOT NULL THEN
        IF opened = 'the log was set back: it has not all that was recorded' THEN
            -- What was common when the newest epoch was opened is so still: its row is here, and what was recorded before it.
            SELECT greatest(max(w.position), max(e.from_position) - 1) INTO v_common
            FROM event_store.log AS l
            JOIN event_store.epoch AS e ON e.partition = l.partition AND e.number = l.epoch
            LEFT JOIN (
                unnest(p_positions, p_event_ids) AS w (position, event_id)
                JOIN event_store.event AS n
                     ON n.partition = p_partition AND n.position = w.position AND n.event_id = w.event_id
            ) ON true
            WHERE l.partition = p_partition;
        END IF;
        PERFORM event_store.fork(p_partition, p_seen, opened, v_common);
    END IF;
    SELECT l.epoch, l.generation INTO STRICT epoch, generation FROM event_store.log AS l WHERE l.partition = p_partition;
END
$$;
ALTER FUNCTION event_store.attach OWNER TO daybook_append;
REVOKE ALL ON FUNCTION event_store.attach FROM PUBLIC;
GRANT EXECUTE ON FUNCTION event_store.attach TO daybook_command;

-- Where a partition of the log stands. It runs as a role that sees every tenant's events, and gives away no payload.
CREATE FUNCTION event_store.head(
    p_partition     integer,
    OUT epoch       integer,
    OUT generation  uuid,
    -- The position of the newest event, 0 when there is none; then the next two are NULL.
    OUT head        bigint,
    OUT recorded_at timestamptz,
    OUT event_id    uuid,
    -- A standby may be behind what is on the bus: nobody who reads from it may call that a fork.
    OUT is_standby  boolean
)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
BEGIN
    SELECT l.epoch, l.generation, coalesce(newest.position, 0), newest.recorded_at, newest.event_id, pg_is_in_recovery()
    INTO epoch, generation, head, recorded_at, event_id, is_standby
    FROM event_store.log AS l
    LEFT JOIN LATERAL (
        SELECT e.position, e.recorded_at, e.event_id
        FROM event_store.event AS e
        WHERE e.partition = l.partition
        ORDER BY e.position DESC LIMIT 1
    ) AS newest ON true
    WHERE l.partition = p_partition;
END
$$;
ALTER FUNCTION event_store.head OWNER TO daybook_append;
REVOKE ALL ON FUNCTION event_store.head FROM PUBLIC;
GRANT EXECUTE ON FUNCTION event_store.head
    TO daybook_command, daybook_publisher, daybook_projector, daybook_query, daybook_read_model;

-- The default is one partition.
SELECT event_store.add_partition(0);
