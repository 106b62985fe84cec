-- The registry of projections, how far each has come, and their rebuilds.
--
-- A projection fills a *generation* of tables, read_model.<name>_g<generation>; the view read_model.<name> shows the
-- live one. A rebuild fills the next generation beside it, and go_live() swaps the view. A read model brings two
-- functions in its own migration, which this file calls by name:
--
--   read_model.create_<name>(generation integer)   makes the tables with nothing but their unique keys, grants included
--   read_model.index_<name>(generation integer)    returns the statements that make the other indexes, which cost less
--                                                  after a fill than during it: CREATE INDEX IF NOT EXISTS, the schema
--                                                  named, whichever takes longest first; no rows when there are none
--
-- begins with SET LOCAL ROLE daybook_read_model, as this file does, and ends with SELECT read_model.introduce('<name>').

SET LOCAL ROLE daybook_read_model;

CREATE TABLE read_model.projection (
    name                text        COLLATE "C" PRIMARY KEY CHECK (name ~ '^[a-z][a-z0-9_]{0,39}$'),
    -- The generation of tables that the view shows.
    live_generation     integer     NOT NULL DEFAULT 1,
    -- The one that was live before, kept for a way back.
    previous_generation integer,
    -- What the next rebuild fills. A number is never used twice.
    next_generation     integer     NOT NULL DEFAULT 2,
    created_at          timestamptz NOT NULL DEFAULT now(),
    updated_at          timestamptz NOT NULL DEFAULT now(),
    CHECK (live_generation < next_generation)
);

-- The projector's replicas. One lives as long as the session that entered it, which the server ends when it has been
-- silent for a moment (`idle_session_timeout`). So nothing is written to stay alive, which under a held snapshot would
-- make the row a chain of dead versions; no clock decides who lives; and nobody else can pass for a session.
CREATE TABLE read_model.replica (
    id                 uuid        PRIMARY KEY,
    -- The projections that its program has.
    projections        text[]      NOT NULL,
    -- The partitions of the log that it has workers for: one that is added later it gets when it starts again.
    partitions         integer[]   NOT NULL,
    -- Which session: numbers of processes come again, together with the moment of the start they do not.
    pid                integer     NOT NULL,
    session_started_at timestamptz NOT NULL
);

-- Whether each replica lives. To be asked by the projector's own role: of another role's sessions the server does not tell
-- when they started.
CREATE VIEW read_model.replica_state WITH (security_invoker = true) AS
SELECT r.id, r.projections, r.partitions,
       EXISTS (SELECT FROM pg_catalog.pg_stat_activity AS a
               WHERE a.pid = r.pid AND a.backend_start = r.session_started_at) AS lives
FROM read_model.replica AS r;

-- Who may take a generation of tables further in a partition of the log: a row that changes only when its owner does, or
-- when the projection fails and recovers. Every batch locks it, which makes no new version of it; what is written more
-- often is in the table below. Otherwise a snapshot that somebody holds (a backup, a forgotten session) would make it a
-- chain of dead versions that every batch has to walk.
CREATE TABLE read_model.fence (
    projection     text        COLLATE "C" NOT NULL REFERENCES read_model.projection,
    generation     integer     NOT NULL,
    partition      integer     NOT NULL,
    -- One more with each owner. A worker that lost its lease without noticing (a zombie) has a lower one.
    number         bigint      NOT NULL DEFAULT 0,
    -- The replica that holds the lease, for as long as it lives.
    owner          uuid,
    -- The generation of the *log* that the positions belong to: another one after a restore.
    log_generation uuid        NOT NULL,
    -- Set while the projection is failed: it stands before an event that it cannot take, and never skips it.
    error          text,
    error_position bigint,
    failed_at      timestamptz,
    PRIMARY KEY (projection, generation, partition),
    CHECK ((error IS NULL) = (failed_at IS NULL))
);

-- How far it has come: the step of its newest batch; none at the beginning of the log.
--
-- A step is inserted in the transaction that changes the rows, and the step before it is deleted there. It is never
-- updated: its key moves on with it, so the newest step is the first that a probe from the end of the index meets,
-- however many dead ones a held snapshot keeps behind it. The key also makes the insert a compare-and-set: two steps
-- from one position cannot both be committed.
CREATE TABLE read_model.checkpoint_step (
    projection     text        COLLATE "C" NOT NULL,
    generation     integer     NOT NULL,
    partition      integer     NOT NULL,
    -- Where the batch began.
    from_position  bigint      NOT NULL,
    -- Everything up to here is applied,
    position       bigint      NOT NULL,
    -- and this is the event there. Positions come again when the log's history forks; ids do not.
    event_id       uuid        NOT NULL,
    PRIMARY KEY (projection, generation, partition, from_position)
);

-- Everything up to here is applied; 0, without an event, is the beginning of the log. One probe from the end of the
-- index. The plan must not depend on statistics: they count one live row, and a scan of a table of one row meets all of
-- its dead ones.
CREATE FUNCTION read_model.reached(
    p_projection text, p_generation integer, p_partition integer, OUT "position" bigint, OUT event_id uuid)
LANGUAGE plpgsql STABLE SECURITY INVOKER SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
BEGIN
    SELECT s.position, s.event_id INTO "position", event_id
    FROM read_model.checkpoint_step AS s
    WHERE s.projection = p_projection AND s.generation = p_generation AND s.partition = p_partition
    ORDER BY s.from_position DESC LIMIT 1;
    "position" := coalesce("position", 0);
END
$$;

-- Whether the log holds this event at this position, and so everything that was recorded before it. To be asked by a role
-- that sees every tenant's events.
CREATE FUNCTION read_model.is_in_log(p_partition integer, p_position bigint, p_event_id uuid) RETURNS boolean
LANGUAGE plpgsql STABLE SECURITY INVOKER SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
BEGIN
    RETURN p_position = 0 OR EXISTS (
        SELECT FROM event_store.event AS e
        WHERE e.partition = p_partition AND e.position = p_position AND e.event_id = p_event_id);
END
$$;

-- How far each generation of tables has come in each partition.
CREATE VIEW read_model.checkpoint WITH (security_invoker = true) AS
SELECT f.projection, f.generation, f.partition, r.position, r.event_id, f.log_generation, f.number AS fence,
       f.error, f.error_position, f.failed_at
FROM read_model.fence AS f
CROSS JOIN LATERAL read_model.reached(f.projection, f.generation, f.partition) AS r;

CREATE TABLE read_model.rebuild (
    projection   text        COLLATE "C" NOT NULL REFERENCES read_model.projection,
    -- The generation of tables that it fills.
    generation   integer     NOT NULL,
    status       text        NOT NULL DEFAULT 'running' CHECK (status IN ('running', 'done', 'failed')),
    -- Why it was asked for, and by whom: a credential's name, or the projector itself.
    reason       text        NOT NULL,
    requested_by text        NOT NULL,
    started_at   timestamptz NOT NULL DEFAULT now(),
    -- When the tables had their indexes: the fill is over, what is left is to catch up.
    indexed_at   timestamptz,
    ended_at     timestamptz,
    error        text,
    -- Where it was started because the live tables hold what the log has not: the events that those stand at.
    instead_of   uuid[],
    PRIMARY KEY (projection, generation),
    CHECK ((status = 'running') = (ended_at IS NULL))
);
-- One rebuild of a projection at a time.
CREATE UNIQUE INDEX rebuild_running_key ON read_model.rebuild (projection) WHERE status = 'running';

-- Advances a checkpoint, in the transaction that changes the rows and before they change: it leaves the lock on the fence,
-- so they have one writer. An exception and not a row count, so that it can be a part of the statement that writes the
-- rows, or travel in one message with BEGIN.
--
-- A log that was restored since is another log, however far it has come; and what is beyond its head was never recorded.
-- The bus is no authority: what came over it has to be, word for word, what the log holds in these places. Of what was read
-- from the log the ids are enough: they show whether it was this log.
CREATE FUNCTION read_model.advance(
    p_projection text, p_generation integer, p_partition integer, p_fence bigint, p_log_generation uuid,
    p_from bigint, p_to bigint,
    -- The ids of the batch's events, in order, or their digest as `event_store.digest` makes it; NULL for no comparison.
    p_event_ids uuid[], p_digest bytea)
RETURNS void
LANGUAGE plpgsql SECURITY INVOKER SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
    v_failed_at timestamptz;
    v_newest    read_model.checkpoint_step;
    v_is_there  boolean := false;
BEGIN
    SELECT f.failed_at INTO v_failed_at
    FROM read_model.fence AS f
    WHERE f.projection = p_projection AND f.generation = p_generation AND f.partition = p_partition
      AND f.number = p_fence AND f.log_generation = p_log_generation
    FOR NO KEY UPDATE;

    -- Each statement from here on sees what was committed while the lock was waited for.
    IF FOUND THEN
        SELECT s.* INTO v_newest
        FROM read_model.checkpoint_step AS s
        WHERE s.projection = p_projection AND s.generation = p_generation AND s.partition = p_partition
        ORDER BY s.from_position DESC LIMIT 1;

        v_is_there := p_from = coalesce(v_newest.position, 0) AND p_from < p_to;
        INSERT INTO read_model.checkpoint_step (projection, generation, partition, from_position, position, event_id)
        SELECT p_projection, p_generation, p_partition, p_from, p_to, newest.event_id
        FROM event_store.log AS l
        JOIN event_store.event AS newest ON newest.partition = l.partition AND newest.position = p_to
        WHERE l.partition = p_partition AND l.generation = p_log_generation AND v_is_there
          AND (p_event_ids IS NULL OR p_event_ids = ARRAY(
                  SELECT e.event_id FROM event_store.event AS e
                  WHERE e.partition = p_partition AND e.position > p_from AND e.position <= p_to
                  ORDER BY e.position))
          AND (p_digest IS NULL OR p_digest = event_store.digest(p_partition, p_from, p_to));
    END IF;
    IF NOT FOUND THEN
        IF (p_event_ids IS NOT NULL OR p_digest IS NOT NULL) AND v_is_there AND EXISTS (
            SELECT FROM event_store.log AS l WHERE l.partition = p_partition AND l.generation = p_log_generation
        ) THEN
            RAISE EXCEPTION 'the log does not hold what % was given as its events % to %', p_projection, p_from + 1, p_to
                USING ERRCODE = 'DBK02';
        END IF;
        RAISE EXCEPTION 'the checkpoint of % is not where this worker left it', p_projection USING ERRCODE = 'DBK01';
    END IF;

    DELETE FROM read_model.checkpoint_step AS s
    WHERE s.projection = p_projection AND s.generation = p_generation AND s.partition = p_partition
      AND s.from_position = v_newest.from_position;
    IF v_failed_at IS NOT NULL THEN
        UPDATE read_model.fence AS f SET error = NULL, error_position = NULL, failed_at = NULL
        WHERE f.projection = p_projection AND f.generation = p_generation AND f.partition = p_partition;
    END IF;
END
$$;

-- Takes the lease on a partition for a replica, unless another one that lives has it: on the live tables, or on those that a
-- running rebuild fills. Returns which generation it is and the new fencing number; no row when it is not to be had, and no
-- number when it is of no use: the live tables hold what the log has not, since its history forked before that.
--
-- A switch to other tables holds the projection's row. So it is over before the claim, which is then one on the new tables,
-- or it comes after it, and takes the lease away again. (Were the generation looked up first and claimed then, a worker
-- could hold the old tables' lease for good: the switch that takes it away has been.)
CREATE FUNCTION read_model.claim(p_projection text, p_rebuilt integer, p_partition integer, p_owner uuid)
RETURNS TABLE (generation integer, number bigint)
LANGUAGE plpgsql SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    v_generation integer;
    v_owner      uuid;
BEGIN
    SELECT p.live_generation INTO v_generation
    FROM read_model.projection AS p WHERE p.name = p_projection FOR SHARE;

    -- Each statement from here on sees what was committed while a lock was waited for.
    IF p_rebuilt IS NOT NULL THEN
        SELECT r.generation INTO v_generation
        FROM read_model.rebuild AS r
        WHERE r.projection = p_projection AND r.generation = p_rebuilt AND r.status = 'running';
    END IF;

    SELECT f.owner INTO v_owner
    FROM read_model.fence AS f
    WHERE f.projection = p_projection AND f.generation = v_generation AND f.partition = p_partition
    FOR NO KEY UPDATE;

    IF p_rebuilt IS NULL AND NOT (
        SELECT read_model.is_in_log(p_partition, r.position, r.event_id)
        FROM read_model.reached(p_projection, v_generation, p_partition) AS r
    ) THEN
        RETURN QUERY SELECT v_generation, NULL::bigint;
    ELSIF v_owner = p_owner OR NOT EXISTS (SELECT FROM read_model.replica_state AS s WHERE s.id = v_owner AND s.lives) THEN
        -- Where the log's history has forked since, and the fork is behind the checkpoint, it goes on in the new epoch.
        RETURN QUERY
        UPDATE read_model.fence AS f
        SET number = f.number + 1, owner = p_owner,
            log_generation = (
                SELECT CASE WHEN read_model.is_in_log(p_partition, r.position, r.event_id)
                            THEN l.generation ELSE f.log_generation END
                FROM event_store.log AS l
                CROSS JOIN LATERAL read_model.reached(f.projection, f.generation, f.partition) AS r
                WHERE l.partition = p_partition)
        WHERE f.projection = p_projection AND f.generation = v_generation AND f.partition = p_partition
        RETURNING f.generation, f.number;
    END IF;
END
$$;
REVOKE ALL ON FUNCTION read_model.advance, read_model.claim, read_model.reached, read_model.is_in_log FROM PUBLIC;
GRANT EXECUTE ON FUNCTION read_model.advance, read_model.claim, read_model.is_in_log TO daybook_projector;
GRANT EXECUTE ON FUNCTION read_model.reached TO daybook_projector, daybook_query;

GRANT SELECT ON read_model.projection, read_model.rebuild TO daybook_projector;
-- To lock a row takes the right to update a column of it.
GRANT UPDATE (updated_at) ON read_model.projection TO daybook_projector;
GRANT SELECT, UPDATE ON read_model.fence TO daybook_projector;
GRANT SELECT, INSERT, DELETE ON read_model.checkpoint_step, read_model.replica TO daybook_projector;
GRANT SELECT ON read_model.checkpoint, read_model.replica_state TO daybook_projector;
GRANT SELECT ON read_model.projection, read_model.fence, read_model.checkpoint_step, read_model.checkpoint
    TO daybook_query;

-- The functions below run as daybook_read_model, which owns the tables that they make. What the projector gives them is a
-- projection's name and a generation; which statements they run is written here.

-- Points the view at a generation. Columns may be added at the end and nothing else, since cached statements and
-- functions depend on the others.
CREATE FUNCTION read_model.show(p_name text, p_generation integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- security_invoker: without it a view reads as its owner, and row-level security holds the wrong role.
    EXECUTE format('CREATE OR REPLACE VIEW read_model.%I WITH (security_invoker = true) AS SELECT * FROM read_model.%I',
                   p_name, p_name || '_g' || p_generation);
    EXECUTE format('GRANT SELECT ON read_model.%I TO daybook_query', p_name);
END
$$;

-- Throws a generation away: its tables and its checkpoints.
CREATE FUNCTION read_model.discard(p_name text, p_generation integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('DROP TABLE IF EXISTS read_model.%I', p_name || '_g' || p_generation);
    DELETE FROM read_model.fence AS f WHERE f.projection = p_name AND f.generation = p_generation;
    DELETE FROM read_model.checkpoint_step AS s WHERE s.projection = p_name AND s.generation = p_generation;
END
$$;

-- Opens the checkpoints of a generation, at the beginning of each partition that has none yet.
CREATE FUNCTION read_model.open(p_name text, p_generation integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    INSERT INTO read_model.fence (projection, generation, partition, log_generation)
    SELECT p_name, p_generation, l.partition, l.generation FROM event_store.log AS l
    ON CONFLICT DO NOTHING;
END
$$;

-- Makes a generation's table, with what all tables have alike, and opens its checkpoints.
--
-- Rows of read models are updated or replaced all the time. What an update leaves behind is in the way of whoever reads past
-- it in an index, so it is cleaned up when it is a fiftieth of the table, and not a fifth.
CREATE FUNCTION read_model.make(p_name text, p_generation integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $make$
BEGIN
    EXECUTE format('SELECT read_model.%I($1)', 'create_' || p_name) USING p_generation;
    EXECUTE format($ddl$
        ALTER TABLE read_model.%1$I SET (
            autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 10000,
            autovacuum_analyze_scale_factor = 0.02, autovacuum_analyze_threshold = 10000);
        ALTER TABLE read_model.%1$I ENABLE ROW LEVEL SECURITY;
        ALTER TABLE read_model.%1$I FORCE ROW LEVEL SECURITY;
        CREATE POLICY own_tenant ON read_model.%1$I FOR SELECT TO daybook_query
            USING (tenant_id = event_store.current_tenant());
        CREATE POLICY every_tenant ON read_model.%1$I TO daybook_projector USING (true) WITH CHECK (true);
        GRANT SELECT ON read_model.%1$I TO daybook_query;
        GRANT SELECT, INSERT, UPDATE, DELETE ON read_model.%1$I TO daybook_projector;
    $ddl$, p_name || '_g' || p_generation);
    PERFORM read_model.open(p_name, p_generation);
END
$make$;

-- The statements that make the further indexes of a generation, in the order worth starting them. Whoever died over them
-- starts again with all of them, hence IF NOT EXISTS.
CREATE FUNCTION read_model.further_indexes(p_name text, p_generation integer) RETURNS SETOF text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN QUERY EXECUTE format('SELECT read_model.%I($1)', 'index_' || p_name) USING p_generation;
END
$$;

-- Makes one of the further indexes, by its number from 1. One session makes one index at a time, so whoever has filled the
-- tables makes them in several.
CREATE FUNCTION read_model.make_index(p_name text, p_generation integer, p_number bigint) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_index text;
BEGIN
    SELECT i.statement INTO STRICT v_index
    FROM read_model.further_indexes(p_name, p_generation) WITH ORDINALITY AS i (statement, number)
    WHERE i.number = p_number;
    EXECUTE v_index;
END
$$;

-- Registers a projection with its first generation, empty and live. Does nothing when it is there already.
CREATE FUNCTION read_model.introduce(p_name text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_index text;
BEGIN
    INSERT INTO read_model.projection (name) VALUES (p_name) ON CONFLICT DO NOTHING;
    IF FOUND THEN
        PERFORM read_model.make(p_name, 1);
        FOR v_index IN SELECT read_model.further_indexes(p_name, 1) LOOP
            EXECUTE v_index;
        END LOOP;
        PERFORM read_model.show(p_name, 1);
    END IF;
END
$$;

-- Starts the rebuild of live tables that hold what the log has not, since its history forked before that. Returns the
-- generation that it fills; NULL when one is running. If the last one was started for the same and failed, the next would fail
-- again: the projection is failed then, and somebody has to look. The tables stay where they are meanwhile, so the event that
-- they stand at tells, whatever clocks say and whether or not the log goes on in a new epoch.
CREATE FUNCTION read_model.begin_anew(
    p_name text, p_partition integer, p_reason text, p_requested_by text, OUT generation integer, OUT failed boolean)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    v_last read_model.rebuild;
    v_live integer;
BEGIN
    -- One after another.
    SELECT p.live_generation INTO STRICT v_live
    FROM read_model.projection AS p WHERE p.name = p_name FOR NO KEY UPDATE;

    SELECT r.* INTO v_last FROM read_model.rebuild AS r WHERE r.projection = p_name ORDER BY r.generation DESC LIMIT 1;
    SELECT coalesce(v_last.status = 'failed' AND r.event_id = ANY (v_last.instead_of), false) INTO failed
    FROM read_model.reached(p_name, v_live, p_partition) AS r;
    IF failed THEN
        UPDATE read_model.fence AS f
        SET error = 'the rebuild failed: ' || v_last.error, failed_at = v_last.ended_at
        WHERE f.projection = p_name AND f.generation = v_live AND f.partition = p_partition AND f.failed_at IS NULL;
        failed := FOUND;
    ELSIF v_last.status IS DISTINCT FROM 'running' THEN
        generation := read_model.start_rebuild(p_name, p_reason, p_requested_by);
        UPDATE read_model.rebuild AS r
        SET instead_of = ARRAY(
            SELECT c.event_id FROM read_model.checkpoint AS c WHERE c.projection = p_name AND c.generation = v_live)
        WHERE r.projection = p_name AND r.generation = begin_anew.generation;
    END IF;
END
$$;

-- Starts a rebuild and returns the generation that it fills. A second one at the same time violates
-- rebuild_running_key.
CREATE FUNCTION read_model.start_rebuild(p_name text, p_reason text, p_requested_by text) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_generation integer;
BEGIN
    -- Whoever asked is told that it has started; that must survive a crash.
    PERFORM set_config('synchronous_commit', 'on', true);
    UPDATE read_model.projection AS p
    SET next_generation = p.next_generation + 1, updated_at = now()
    WHERE p.name = p_name
    RETURNING p.next_generation - 1 INTO STRICT v_generation;
    INSERT INTO read_model.rebuild (projection, generation, reason, requested_by)
    VALUES (p_name, v_generation, p_reason, p_requested_by);
    PERFORM read_model.make(p_name, v_generation);
    RETURN v_generation;
END
$$;

-- Notes, once, that a filled generation has its indexes, with what the planner should know of tables that were empty a
-- moment ago. Makes those that are missing: where `index_<name>` was replaced while they were made by number, one was
-- passed over.
CREATE FUNCTION read_model.finish_fill(p_name text, p_generation integer) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_index text;
BEGIN
    UPDATE read_model.rebuild AS r SET indexed_at = clock_timestamp()
    WHERE r.projection = p_name AND r.generation = p_generation AND r.indexed_at IS NULL;
    IF FOUND THEN
        FOR v_index IN SELECT read_model.further_indexes(p_name, p_generation) LOOP
            EXECUTE v_index;
        END LOOP;
        EXECUTE format('ANALYZE read_model.%I', p_name || '_g' || p_generation);
    END IF;
END
$$;

-- Ends a rebuild that cannot go on, for whoever holds the lease on one of its partitions; false, and nothing is changed,
-- when that one is lost: the tables are another replica's to fill. The live tables stay as they are. (The other functions
-- need no fence. What they do is right whoever asks for it.)
CREATE FUNCTION read_model.fail_rebuild(
    p_name text, p_generation integer, p_partition integer, p_fence bigint,
    -- NULL when the tables hold what the log has not, which was set back: that says nothing of the next rebuild.
    p_error text)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- Whoever wants to take the rebuild over waits, and finds none.
    PERFORM FROM read_model.fence AS f
    WHERE f.projection = p_name AND f.generation = p_generation AND f.partition = p_partition AND f.number = p_fence
    FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE read_model.rebuild AS r
    SET status = 'failed', ended_at = clock_timestamp(),
        error = coalesce(p_error, 'the log was set back meanwhile'),
        instead_of = CASE WHEN p_error IS NOT NULL THEN r.instead_of END
    WHERE r.projection = p_name AND r.generation = p_generation AND r.status = 'running';
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    PERFORM read_model.discard(p_name, p_generation);
    RETURN true;
END
$$;

-- Makes a rebuilt generation live, in one transaction with everything that depends on it. False, and nothing is
-- changed, when its rebuild is not running and indexed, or when the swap would take readers back: the live tables are
-- further in some partition.
--
-- The lock on the live fences holds the live worker still for the comparison. A checkpoint beyond a fork of the log does not
-- count; its position means nothing any more. The new fences stop the workers of the old
-- generation and whoever filled the new one at their next step, wherever they run; the leases are free.
CREATE FUNCTION read_model.go_live(p_name text, p_generation integer) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_live     integer;
    v_previous integer;
BEGIN
    PERFORM set_config('synchronous_commit', 'on', true);
    SELECT p.live_generation, p.previous_generation INTO STRICT v_live, v_previous
    FROM read_model.projection AS p WHERE p.name = p_name FOR NO KEY UPDATE;

    PERFORM FROM read_model.fence AS f
    WHERE f.projection = p_name AND f.generation = v_live
    ORDER BY f.partition FOR NO KEY UPDATE;

    IF EXISTS (
        SELECT FROM read_model.checkpoint AS live
        CROSS JOIN LATERAL event_store.head(live.partition) AS h
        LEFT JOIN read_model.checkpoint AS next
             ON next.projection = p_name AND next.generation = p_generation AND next.partition = live.partition
        WHERE live.projection = p_name AND live.generation = v_live
          AND event_store.has(live.partition, live.log_generation, live.position) AND live.position <= h.head
          AND live.position > coalesce(next.position, 0)
    ) THEN
        RETURN false;
    END IF;

    UPDATE read_model.rebuild AS r SET status = 'done', ended_at = clock_timestamp()
    WHERE r.projection = p_name AND r.generation = p_generation AND r.status = 'running' AND r.indexed_at IS NOT NULL;
    IF NOT FOUND THEN
        RETURN false;
    END IF;

    UPDATE read_model.fence AS f SET number = f.number + 1, owner = NULL
    WHERE f.projection = p_name AND f.generation IN (v_live, p_generation);
    UPDATE read_model.projection AS p
    SET live_generation = p_generation, previous_generation = v_live, updated_at = now()
    WHERE p.name = p_name;
    PERFORM read_model.show(p_name, p_generation);
    IF v_previous IS NOT NULL THEN
        PERFORM read_model.discard(p_name, v_previous);
    END IF;
    RETURN true;
END
$$;

REVOKE ALL ON FUNCTION read_model.show, read_model.discard, read_model.open, read_model.make,
    read_model.further_indexes, read_model.make_index, read_model.introduce, read_model.begin_anew,
    read_model.start_rebuild, read_model.finish_fill, read_model.fail_rebuild, read_model.go_live FROM PUBLIC;
GRANT EXECUTE ON FUNCTION read_model.open, read_model.further_indexes, read_model.make_index, read_model.introduce,
    read_model.begin_anew, read_model.start_rebuild, read_model.finish_fill, read_model.fail_rebuild, read_model.go_live
    TO daybook_projector;
