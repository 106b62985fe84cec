-- Idempotency keys are kept for at least the retention time, in two tables that take turns: new ones go into the current
-- table, an append looks into both, and once nothing in the older one is younger than the retention time it is emptied and
-- becomes the current one. To empty a table costs the same whatever it holds; to delete row by row would not.
--
-- The time is counted in marks that are set while the system runs, and no two of them count for more than two hours. A clock
-- that jumps a year ahead empties nothing, and neither does a system that was down for a year: a key is then kept for longer.

CREATE TABLE event_store.key_mark (
    number    bigint      PRIMARY KEY,
    marked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- How much of the retention time has passed since the mark before.
    counted   interval    NOT NULL
);
INSERT INTO event_store.key_mark (number, counted) VALUES (0, '0');

GRANT SELECT, UPDATE ON event_store.log TO daybook_keys;
GRANT SELECT, INSERT, DELETE ON event_store.key_mark TO daybook_keys;
GRANT SELECT, TRUNCATE ON event_store.command_0, event_store.command_1 TO daybook_keys;

-- Sets a mark when the last one is an hour old, and turns the tables when it is time. Every replica may call it as often as it
-- likes. True when it turned. When a lock is not to be had at once (a backup reads the tables, say), nothing is changed and
-- the next call tries again, so that no append waits behind this.
CREATE FUNCTION event_store.tend_keys(p_retention interval) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '50ms'
AS $$
DECLARE
    v_newest event_store.key_mark;
    v_now    timestamptz := clock_timestamp();
BEGIN
    IF p_retention < interval '1 hour' THEN
        RAISE EXCEPTION 'idempotency keys must be kept for at least an hour, not %', p_retention
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT m.* INTO STRICT v_newest FROM event_store.key_mark AS m ORDER BY m.number DESC LIMIT 1;
    IF v_now - v_newest.marked_at NOT BETWEEN interval '0' AND interval '1 hour' THEN
        INSERT INTO event_store.key_mark (number, marked_at, counted)
        VALUES (v_newest.number + 1, v_now,
                least(greatest(v_now - v_newest.marked_at, interval '0'), interval '2 hours'))
        ON CONFLICT DO NOTHING;
    END IF;
    -- The older table has had no new keys since the first of the marks.
    IF (SELECT sum(m.counted) FROM event_store.key_mark AS m) < p_retention THEN
        RETURN false;
    END IF;
    RETURN event_store.turn_keys();
END
$$;

-- Empties the older table and makes it the current one, whatever its age: idempotency keys in it are forgotten. False when a
-- lock was not to be had at once.
CREATE FUNCTION event_store.turn_keys() RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '50ms'
AS $$
DECLARE
    v_current smallint;
    v_newest  bigint;
BEGIN
    PERFORM set_config('synchronous_commit', 'on', true);
    -- No append is under way in any partition from here on.
    PERFORM FROM event_store.log AS l ORDER BY l.partition FOR NO KEY UPDATE;
    SELECT max(l.key_table) INTO STRICT v_current FROM event_store.log AS l;
    IF v_current = 0 THEN
        TRUNCATE event_store.command_1;
    ELSE
        TRUNCATE event_store.command_0;
    END IF;
    UPDATE event_store.log SET key_table = 1 - v_current;
    SELECT max(m.number) INTO STRICT v_newest FROM event_store.key_mark AS m;
    DELETE FROM event_store.key_mark;
    INSERT INTO event_store.key_mark (number, counted) VALUES (v_newest + 1, '0');
    RETURN true;
EXCEPTION
    WHEN lock_not_available THEN
        RETURN false;
END
$$;

-- The two tables, the current one first, for operators.
CREATE FUNCTION event_store.key_tables()
RETURNS TABLE (
    is_current boolean,
    -- An estimate; -1 when the table was never analyzed.
    keys       bigint,
    bytes      bigint,
    -- Of the retention time, how much has passed since the tables took turns.
    counted    interval,
    turned_at  timestamptz
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT t.number = (SELECT max(l.key_table) FROM event_store.log AS l), c.reltuples::bigint,
           pg_total_relation_size(c.oid), marks.counted, marks.turned_at
    FROM (VALUES (0, 'event_store.command_0'::regclass), (1, 'event_store.command_1'::regclass)) AS t (number, relation)
    JOIN pg_class AS c ON c.oid = t.relation
    CROSS JOIN (SELECT sum(m.counted) AS counted, min(m.marked_at) AS turned_at FROM event_store.key_mark AS m) AS marks
    ORDER BY 1 DESC
$$;

ALTER FUNCTION event_store.tend_keys OWNER TO daybook_keys;
ALTER FUNCTION event_store.turn_keys OWNER TO daybook_keys;
ALTER FUNCTION event_store.key_tables OWNER TO daybook_keys;
REVOKE ALL ON FUNCTION event_store.tend_keys, event_store.turn_keys, event_store.key_tables FROM PUBLIC;
GRANT EXECUTE ON FUNCTION event_store.tend_keys, event_store.key_tables TO daybook_command;
