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

GRANT SELECT, UPDATE ON event_store.current_key_table TO daybook_keys;
GRANT SELECT, INSERT, DELETE ON event_store.key_mark TO daybook_keys;
GRANT TRUNCATE ON event_store.command_0, event_store.command_1 TO daybook_keys;

-- How much of the retention time has passed since the tables took turns: since then the older one has had no new keys.
CREATE FUNCTION event_store.counted_since_turn() RETURNS interval
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp
AS 'SELECT sum(m.counted) FROM event_store.key_mark AS m';

-- What became of a call that might have turned the tables.
CREATE TYPE event_store.key_turn AS ENUM (
    'turned',
    -- The older table holds keys that must be kept, or another replica has just looked.
    'early',
    -- It was time, and somebody holds the older table (a backup, say). Nothing was changed, so that no append waits.
    'in_use'
);

-- Sets a mark when the last one is an hour old, and turns the tables when it is time. Every replica may call it as often as it
-- likes.
CREATE FUNCTION event_store.tend_keys(p_retention interval) RETURNS event_store.key_turn
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '50ms'
AS $$
DECLARE
    v_newest event_store.key_mark;
    v_now    timestamptz := clock_timestamp();
BEGIN
    IF p_retention IS NULL OR p_retention < interval '1 day' THEN
        RAISE EXCEPTION 'idempotency keys must be kept for at least a day, not %', p_retention
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    -- Another replica is at it.
    IF NOT pg_try_advisory_xact_lock(hashtext('event_store.tend_keys')) THEN
        RETURN 'early';
    END IF;
    SELECT m.* INTO STRICT v_newest FROM event_store.key_mark AS m ORDER BY m.number DESC LIMIT 1;
    IF v_now - v_newest.marked_at NOT BETWEEN interval '0' AND interval '1 hour' THEN
        INSERT INTO event_store.key_mark (number, marked_at, counted)
        VALUES (v_newest.number + 1, v_now,
                least(greatest(v_now - v_newest.marked_at, interval '0'), interval '2 hours'));
    END IF;
    RETURN event_store.turn_keys(p_retention);
END
$$;

-- Empties the older table and makes it the current one, if it has had no new keys for the retention time: with none, the
-- keys in it are forgotten whatever their age.
--
-- Only the older table is locked. An append that has looked for keys holds it until its end, so what it writes goes into the
-- table that was current when it looked; one that has not yet looked waits, and then sees the turn.
CREATE FUNCTION event_store.turn_keys(p_retention interval DEFAULT '0') RETURNS event_store.key_turn
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET lock_timeout = '50ms'
AS $$
DECLARE
    v_older  smallint;
    v_newest bigint;
BEGIN
    PERFORM set_config('synchronous_commit', 'on', true);
    IF event_store.counted_since_turn() < p_retention THEN
        RETURN 'early';
    END IF;
    SELECT 1 - t.key_table INTO STRICT v_older FROM event_store.current_key_table AS t;
    IF v_older = 0 THEN
        LOCK TABLE event_store.command_0 IN ACCESS EXCLUSIVE MODE;
    ELSE
        LOCK TABLE event_store.command_1 IN ACCESS EXCLUSIVE MODE;
    END IF;
    -- Whoever waited for somebody who turned them finds the count at nothing, or the other table the older.
    IF event_store.counted_since_turn() < p_retention
       OR NOT EXISTS (SELECT FROM event_store.current_key_table AS t WHERE t.key_table = 1 - v_older) THEN
        RETURN 'early';
    END IF;
    IF v_older = 0 THEN
        TRUNCATE event_store.command_0;
    ELSE
        TRUNCATE event_store.command_1;
    END IF;
    UPDATE event_store.current_key_table SET key_table = v_older;
    SELECT max(m.number) INTO STRICT v_newest FROM event_store.key_mark AS m;
    DELETE FROM event_store.key_mark;
    INSERT INTO event_store.key_mark (number, counted) VALUES (v_newest + 1, '0');
    RETURN 'turned';
EXCEPTION
    WHEN lock_not_available THEN
        RETURN 'in_use';
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
    SELECT t.number = current.key_table, c.reltuples::bigint,
           pg_total_relation_size(c.oid), marks.counted, marks.turned_at
    FROM (VALUES (0, 'event_store.command_0'::regclass), (1, 'event_store.command_1'::regclass)) AS t (number, relation)
    JOIN pg_class AS c ON c.oid = t.relation
    CROSS JOIN event_store.current_key_table AS current
    CROSS JOIN (SELECT sum(m.counted) AS counted, min(m.marked_at) AS turned_at FROM event_store.key_mark AS m) AS marks
    ORDER BY 1 DESC
$$;

ALTER FUNCTION event_store.tend_keys OWNER TO daybook_keys;
ALTER FUNCTION event_store.turn_keys OWNER TO daybook_keys;
ALTER FUNCTION event_store.key_tables OWNER TO daybook_keys;
ALTER FUNCTION event_store.counted_since_turn OWNER TO daybook_keys;
REVOKE ALL ON FUNCTION event_store.tend_keys, event_store.turn_keys, event_store.key_tables, event_store.counted_since_turn
    FROM PUBLIC;
GRANT EXECUTE ON FUNCTION event_store.tend_keys, event_store.key_tables TO daybook_command;
