-- The event index: where in the log a tenant's events are, by what they are found by. One short row for each event of every
-- category, without what the log says anyway (payload, metadata): that is read by position.
--
-- It is a projection and not a set of indexes on the log, because it costs appends nothing, and because a filter that is added
-- later is a rebuild and not an index over everything that was ever recorded.

SET LOCAL ROLE daybook_read_model;

CREATE FUNCTION read_model.create_event_index(p_generation integer) RETURNS void
LANGUAGE plpgsql SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $create$
BEGIN
    EXECUTE format($ddl$
        CREATE TABLE read_model.%1$I (
            tenant_id      uuid        NOT NULL,
            -- A tenant lives in one partition of the log, so its positions say which event it is.
            position       bigint      NOT NULL,
            -- Which event the row is of, whatever the log has there by now: its history may have forked.
            event_id       uuid        NOT NULL,
            -- Never decreases along a tenant's positions.
            recorded_at    timestamptz NOT NULL,
            stream_id      text        COLLATE "C" NOT NULL,
            event_type     text        COLLATE "C" NOT NULL,
            -- What the metadata say; nothing where they do not, or in a form that cannot be searched for.
            actor          text        COLLATE "C",
            correlation_id text        COLLATE "C",
            -- The position once more. Among the events of one type, stream, actor or correlation lists are sorted by this, so that
            -- the key, with most rows thrown away, is no way to answer them (see read_model.page).
            position_within bigint GENERATED ALWAYS AS (position) STORED,
            PRIMARY KEY (tenant_id, position)
        ) WITH (
            -- Rows are inserted and never change, as those of the log.
            autovacuum_freeze_min_age = 0,
            autovacuum_vacuum_insert_scale_factor = 0,
            autovacuum_vacuum_insert_threshold = 2000000
        );
    $ddl$, 'event_index_g' || p_generation);
END
$create$;

-- What `event_index::ACCESS_PATHS` says, beside the key. That of streams is here although the log has one: that one is by version,
-- and a page is bounded by positions.
CREATE FUNCTION read_model.index_event_index(p_generation integer) RETURNS SETOF text
LANGUAGE plpgsql IMMUTABLE SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $index$
BEGIN
    RETURN QUERY
    SELECT format('CREATE INDEX IF NOT EXISTS %1$s_%2$s ON read_model.%1$s (tenant_id, %2$s, position_within) %3$s',
                  'event_index_g' || p_generation, i.name, i.condition)
    FROM (VALUES
        (1, 'correlation_id', 'WHERE correlation_id IS NOT NULL'),
        (2, 'stream_id',      ''),
        (3, 'event_type',     ''),
        (4, 'actor',          'WHERE actor IS NOT NULL')
    ) AS i (number, name, condition)
    ORDER BY i.number;
END
$index$;

REVOKE ALL ON FUNCTION read_model.create_event_index, read_model.index_event_index FROM PUBLIC;

SELECT read_model.introduce('event_index');

-- The position of the tenant's first event that was recorded then or later; NULL where there is none. Times never fall along the
-- positions, so it is found by halves, each by one probe of the key: some 35 of them for 10,000,000,000 events.
CREATE FUNCTION read_model.first_event_since(p_tenant uuid, p_moment timestamptz) RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY INVOKER SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
AS $$
DECLARE
    v_found  bigint;
    -- Nothing up to here was recorded since.
    v_before bigint := 0;
    v_middle bigint;
    v_event  read_model.event_index;
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    SELECT e.* INTO v_event FROM read_model.event_index AS e
    WHERE e.tenant_id = p_tenant ORDER BY e.position DESC LIMIT 1;
    IF v_event.recorded_at >= p_moment THEN
        v_found := v_event.position;
    END IF;
    WHILE v_before + 1 < v_found LOOP
        v_middle := v_before + (v_found - v_before) / 2;
        -- The newest event of the older half.
        SELECT e.* INTO v_event FROM read_model.event_index AS e
        WHERE e.tenant_id = p_tenant AND e.position > v_before AND e.position <= v_middle
        ORDER BY e.position DESC LIMIT 1;
        IF v_event.recorded_at >= p_moment THEN
            v_found := v_event.position;
        ELSE
            v_before := v_middle;
        END IF;
    END LOOP;
    RETURN v_found;
END
$$;
REVOKE ALL ON FUNCTION read_model.first_event_since FROM PUBLIC;
GRANT EXECUTE ON FUNCTION read_model.first_event_since TO daybook_query;
