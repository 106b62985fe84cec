-- The order list: one short row per order, for lists with filters and sorting.

SET LOCAL ROLE daybook_read_model;

CREATE FUNCTION read_model.create_order_list(p_generation integer) RETURNS void
LANGUAGE plpgsql SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $create$
BEGIN
    EXECUTE format($ddl$
        CREATE TABLE read_model.%1$I (
            tenant_id   uuid        NOT NULL,
            order_id    text        COLLATE "C" NOT NULL,
            -- The number of the order's events so far.
            version     bigint      NOT NULL,
            -- The position of the event that last changed the row.
            position    bigint      NOT NULL,
            status      text        COLLATE "C" NOT NULL,
            reference   text        COLLATE "C",
            customer_id text        COLLATE "C" NOT NULL,
            currency    text        COLLATE "C" NOT NULL,
            total_minor bigint      NOT NULL,
            item_count  bigint      NOT NULL,
            placed_at   timestamptz NOT NULL,
            updated_at  timestamptz NOT NULL,
            PRIMARY KEY (tenant_id, order_id)
        );

        ALTER TABLE read_model.%1$I ENABLE ROW LEVEL SECURITY;
        ALTER TABLE read_model.%1$I FORCE ROW LEVEL SECURITY;
        CREATE POLICY own_tenant ON read_model.%1$I FOR SELECT TO daybook_query
            USING (tenant_id = event_store.current_tenant());
        CREATE POLICY every_tenant ON read_model.%1$I TO daybook_projector USING (true) WITH CHECK (true);
        GRANT SELECT ON read_model.%1$I TO daybook_query;
        GRANT SELECT, INSERT, UPDATE, DELETE ON read_model.%1$I TO daybook_projector;
    $ddl$, 'order_list_g' || p_generation);
END
$create$;

-- An index for every sort, ending in the order's id, so that a page begins where the last one ended (a keyset). The
-- first two serve the filters that leave little over, in the order that lists mostly have; with another sort they find
-- what there is to sort.
CREATE FUNCTION read_model.index_order_list(p_generation integer) RETURNS SETOF text
LANGUAGE plpgsql IMMUTABLE SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $index$
BEGIN
    RETURN QUERY
    SELECT format('CREATE INDEX IF NOT EXISTS %1$s_%2$s ON read_model.%1$s (tenant_id, %3$s)',
                  'order_list_g' || p_generation, i.name, i.columns)
    FROM (VALUES
        (1, 'status',      'status, placed_at, order_id'),
        (2, 'customer_id', 'customer_id, placed_at, order_id'),
        (3, 'updated_at',  'updated_at, order_id'),
        (4, 'total_minor', 'total_minor, order_id'),
        (5, 'placed_at',   'placed_at, order_id')
    ) AS i (number, name, columns)
    ORDER BY i.number;
END
$index$;

REVOKE ALL ON FUNCTION read_model.create_order_list, read_model.index_order_list FROM PUBLIC;

SELECT read_model.introduce('order_list');

-- A page of a tenant's orders. A filter that is NULL (no statuses: empty) lets everything pass. `p_sort` is the name of
-- a column, and the page begins after the order that has the given value there and the given id: `p_after_moment` where
-- the column holds times, `p_after_amount` where it holds amounts.
--
-- The statement is put together from the conditions that there are, and planned for their values: a plan that has to
-- serve every filter at once ("OR the filter is NULL") cannot use an index for any. Every value is a parameter but the
-- status, which is a literal so that the planner knows how common it is. Several statuses are several ordered scans
-- put together, because no index is ordered by time across them.
--
-- No bitmap scans: they read all that is left of the list and sort it, which looks cheap while the statistics of a
-- growing table are old, or there are none yet.
CREATE FUNCTION read_model.list_orders(
    p_tenant uuid, p_statuses text[], p_customer text, p_placed_after timestamptz, p_placed_before timestamptz,
    p_sort text, p_descending boolean, p_after_moment timestamptz, p_after_amount bigint, p_after_order text,
    p_limit bigint)
RETURNS SETOF read_model.order_list
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = pg_catalog, pg_temp SET enable_bitmapscan = off
AS $$
DECLARE
    v_comparison text := CASE WHEN p_descending THEN '<' ELSE '>' END;
    v_direction  text := CASE WHEN p_descending THEN 'DESC' ELSE 'ASC' END;
    v_order      text;
    v_where      text;
    v_scans      text;
BEGIN
    IF p_sort NOT IN ('placed_at', 'updated_at', 'total_minor') THEN
        RAISE EXCEPTION 'orders cannot be sorted by %', p_sort USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);

    v_order := format('ORDER BY o.%1$I %2$s, o.order_id %2$s LIMIT $8', p_sort, v_direction);
    v_where := concat_ws(' AND ',
        'WHERE o.tenant_id = $1',
        CASE WHEN p_customer IS NOT NULL THEN 'o.customer_id = $2' END,
        CASE WHEN p_placed_after IS NOT NULL THEN 'o.placed_at >= $3' END,
        CASE WHEN p_placed_before IS NOT NULL THEN 'o.placed_at < $4' END,
        CASE WHEN p_after_moment IS NOT NULL THEN format('(o.%I, o.order_id) %s ($5, $7)', p_sort, v_comparison) END,
        CASE WHEN p_after_amount IS NOT NULL THEN format('(o.%I, o.order_id) %s ($6, $7)', p_sort, v_comparison) END);

    IF cardinality(p_statuses) = 0 THEN
        v_scans := format('SELECT o.* FROM read_model.order_list AS o %s', v_where);
    ELSE
        SELECT string_agg(
            format('(SELECT o.* FROM read_model.order_list AS o %s AND o.status = %L %s)', v_where, s.status, v_order),
            ' UNION ALL ')
        INTO STRICT v_scans
        FROM (SELECT DISTINCT unnest(p_statuses) AS status) AS s;
    END IF;

    RETURN QUERY EXECUTE format('SELECT o.* FROM (%s) AS o %s', v_scans, v_order)
        USING p_tenant, p_customer, p_placed_after, p_placed_before, p_after_moment, p_after_amount, p_after_order,
              p_limit;
END
$$;
REVOKE ALL ON FUNCTION read_model.list_orders FROM PUBLIC;
GRANT EXECUTE ON FUNCTION read_model.list_orders TO daybook_query;
