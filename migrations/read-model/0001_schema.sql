-- The read models: what queries read. All of it is derived from the log and can be thrown away and built again.
--
-- The projector is the only one that writes here. A rebuild fills a second set of tables beside the live one, so tables
-- are made and dropped while the system runs: by functions that run as daybook_read_model, to whom everything here
-- belongs and as whom nobody can log in. The projector writes rows and calls those functions. It owns nothing, so that
-- whoever has its password cannot change what an administrator's `migrate` runs.
--
-- The projector's connections set synchronous_commit = off, deliberately. Rows and the checkpoint that says which
-- events they include commit together; a crash of the server loses the tail of both, and the lost events are folded
-- again from the log. The checkpoint cannot get ahead of the log by it: an event is seen by others only after it has
-- been flushed, and the write-ahead log is flushed in order. It is a setting of the connections and not of the role,
-- because a role's settings belong to the whole server, and a role's settings in a database are not copied with it.
-- The functions in 0002 that answer an operator switch it on again for their own transaction.
GRANT USAGE, CREATE ON SCHEMA read_model TO daybook_read_model;
GRANT USAGE ON SCHEMA read_model TO daybook_projector, daybook_query;

-- The migrations that follow run as daybook_read_model, so that what they make belongs to it. Each notes that it was
-- applied while it still does.
GRANT INSERT ON read_model.migration TO daybook_read_model;

-- A service compares the newest version with the one that it was built for before it starts to work.
GRANT SELECT (version, success) ON read_model.migration TO daybook_projector, daybook_query;

SET LOCAL ROLE daybook_read_model;

-- "(o.a, o.b) < ('x', 'y')": the first columns of some against as many values; nothing where there are no values.
CREATE FUNCTION read_model.comparison(p_columns text[], p_operator text, p_values text[]) RETURNS text
LANGUAGE sql IMMUTABLE SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('(%s) %s (%s)', string_agg(format('o.%I', c.name), ', ' ORDER BY c.number), p_operator,
                  string_agg(quote_literal(c.value), ', ' ORDER BY c.number))
    FROM unnest(p_columns[:cardinality(p_values)], p_values) WITH ORDINALITY AS c (name, value, number)
    HAVING count(*) > 0
$$;

-- A page of a tenant's rows, from an index over the tenant and `p_columns`. The first of them have the values `p_given`; the
-- next one, where there are values in `p_each`, has any of those; the others are the order. Of that order the first column is
-- bounded by `p_from` and `p_before`, and the page begins behind the row that has the values `p_after` there.
--
-- The planner has no choice, because what it knows about a growing table is old, and wrong about values that belong together
-- (nearly all orders are delivered, and those that are not are the newest): sorting is forbidden, and no two indexes give
-- the same order. Each value of `p_each` is a scan of its own, of a page: a condition over several would be one scan that is in no
-- order. (To merge them row by row reads less, but each would be planned, which takes longer than to read some pages.) In the
-- direction of the scan only the tightest bound is given: it would begin at a looser one, and read on to where the page begins.
--
-- Every value is a literal, so that the function is the same for all tables; it is planned anew for each call.
CREATE FUNCTION read_model.page(
    p_view anyelement, p_tenant uuid, p_columns text[], p_given text[], p_each text[], p_from text, p_before text,
    p_descending boolean, p_after text[], p_limit bigint)
RETURNS SETOF anyelement
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET enable_incremental_sort = off SET jit = off
AS $$
DECLARE
    v_columns text[] := p_columns[cardinality(p_given) + least(cardinality(p_each), 1) + 1:];
    -- Nothing where there is no such bound.
    v_from    text   := read_model.comparison(v_columns, '>=', array_remove(ARRAY[p_from], NULL));
    v_before  text   := read_model.comparison(v_columns, '<', array_remove(ARRAY[p_before], NULL));
    v_where   text;
    v_order   text;
    v_scans   text;
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);

    IF p_after IS NOT NULL AND p_descending THEN
        v_before := read_model.comparison(v_columns, '<', p_after);
    ELSIF p_after IS NOT NULL THEN
        v_from := read_model.comparison(v_columns, '>', p_after);
    END IF;
    v_where := concat_ws(' AND ',
        format('o.tenant_id = %L', p_tenant), read_model.comparison(p_columns, '=', p_given), v_from, v_before);
    SELECT 'ORDER BY ' || string_agg(format('o.%I %s', c.name, CASE WHEN p_descending THEN 'DESC' ELSE 'ASC' END), ', '
                                     ORDER BY c.number) || ' LIMIT ' || p_limit
    INTO STRICT v_order
    FROM unnest(v_columns) WITH ORDINALITY AS c (name, number);

    v_scans := format('SELECT o.* FROM %s AS o WHERE %s', pg_typeof(p_view), v_where);
    IF cardinality(p_each) > 0 THEN
        v_scans := format('SELECT o.* FROM unnest(%L::text[]) AS e (value) CROSS JOIN LATERAL (%s AND o.%I = e.value %s) AS o',
                          p_each, v_scans, p_columns[cardinality(p_given) + 1], v_order);
    END IF;
    RETURN QUERY EXECUTE concat_ws(' ', v_scans, v_order);
END
$$;
REVOKE ALL ON FUNCTION read_model.comparison, read_model.page FROM PUBLIC;
GRANT EXECUTE ON FUNCTION read_model.comparison, read_model.page TO daybook_query;
