-- Order details: each order in full, as one JSON document.

SET LOCAL ROLE daybook_read_model;

CREATE FUNCTION read_model.create_order_details(p_generation integer) RETURNS void
LANGUAGE plpgsql SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $create$
BEGIN
    EXECUTE format($ddl$
        CREATE TABLE read_model.%1$I (
            tenant_id uuid   NOT NULL,
            order_id  text   COLLATE "C" NOT NULL,
            -- The number of the order's events so far.
            version   bigint NOT NULL,
            -- The position of the event that last changed the row.
            position  bigint NOT NULL,
            -- json and not jsonb: it is read and written as a whole, and text is faster both ways.
            document  json   NOT NULL,
            PRIMARY KEY (tenant_id, order_id)
        -- An order is written several times within minutes, and no index knows of it: with room on the page the new
        -- version stays there (a HOT update).
        ) WITH (fillfactor = 70);
    $ddl$, 'order_details_g' || p_generation);
END
$create$;

-- Orders are found by their ids alone: no further index.
CREATE FUNCTION read_model.index_order_details(p_generation integer) RETURNS SETOF text
LANGUAGE plpgsql IMMUTABLE SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN;
END
$$;

REVOKE ALL ON FUNCTION read_model.create_order_details, read_model.index_order_details FROM PUBLIC;

SELECT read_model.introduce('order_details');

-- The tenant is set and the rows are read in one call: a statement in autocommit is a transaction of its own, so the
-- setting is local to it, and row-level security holds the read.
--
-- One plan for all calls, made once per session: planning would cost more than the look-up. It may be made while the
-- table is still small, where reading all of it looks cheap; hence no sequential scan.
CREATE FUNCTION read_model.find_orders(p_tenant uuid, p_order_ids text[])
RETURNS SETOF read_model.order_details
LANGUAGE plpgsql STABLE SECURITY INVOKER SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
AS $$
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    RETURN QUERY
        SELECT o.* FROM read_model.order_details AS o
        WHERE o.tenant_id = p_tenant AND o.order_id = ANY (p_order_ids);
END
$$;
REVOKE ALL ON FUNCTION read_model.find_orders FROM PUBLIC;
GRANT EXECUTE ON FUNCTION read_model.find_orders TO daybook_query;
