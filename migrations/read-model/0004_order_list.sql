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
            -- Rises where the total falls: an index has one direction, and a sort may have two ("-placed_at,total_minor").
            mirrored_total_minor bigint GENERATED ALWAYS AS (-total_minor) STORED,
            item_count  bigint      NOT NULL,
            placed_at   timestamptz NOT NULL,
            -- The same once more. Among orders of one customer or currency lists are sorted by this, so that the index of all
            -- orders by time, with most rows thrown away, is no way to answer them (see read_model.page).
            placed_at_within timestamptz GENERATED ALWAYS AS (placed_at) STORED,
            updated_at  timestamptz NOT NULL,
            PRIMARY KEY (tenant_id, order_id)
        -- An event that changes neither the status nor the total touches no index: with room on the page the new version
        -- stays there (a HOT update).
        ) WITH (fillfactor = 70);
    $ddl$, 'order_list_g' || p_generation);
END
$create$;

-- What `order_list::ACCESS_PATHS` says: each list that the contract allows is one of these, read from any place in it. Every
-- one but that of references has the status, which most events change that change any of these columns. Nothing that changes
-- with every event is in any of them (`updated_at`, `version`, `position`): such an event would write all of them.
--
-- Known limit: an order that has left a status leaves a dead entry there until it is vacuumed. While somebody holds a snapshot
-- (a backup), whoever lists a status that orders only pass through reads past all that have left it since.
CREATE FUNCTION read_model.index_order_list(p_generation integer) RETURNS SETOF text
LANGUAGE plpgsql IMMUTABLE SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $index$
BEGIN
    RETURN QUERY
    SELECT format('CREATE INDEX IF NOT EXISTS %1$s_%2$s ON read_model.%1$s (tenant_id, %3$s) %4$s',
                  'order_list_g' || p_generation, i.name, i.columns, i.condition)
    FROM (VALUES
        (1, 'customer_id', 'customer_id, status, placed_at_within, order_id', ''),
        (2, 'currency',    'currency, status, placed_at_within, order_id', ''),
        (3, 'total_minor', 'currency, status, total_minor, placed_at, order_id', ''),
        (4, 'placed_at',   'status, placed_at, mirrored_total_minor, order_id', ''),
        (5, 'status',      'status, placed_at, order_id', ''),
        (6, 'reference',   'reference, order_id', 'WHERE reference IS NOT NULL')
    ) AS i (number, name, columns, condition)
    ORDER BY i.number;
END
$index$;

REVOKE ALL ON FUNCTION read_model.create_order_list, read_model.index_order_list FROM PUBLIC;

SELECT read_model.introduce('order_list');

-- Those of the orders that the tenant has, by id.
CREATE FUNCTION read_model.find_listed_orders(p_tenant uuid, p_order_ids text[])
RETURNS SETOF read_model.order_list
LANGUAGE plpgsql STABLE SECURITY INVOKER SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
AS $$
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    RETURN QUERY
        SELECT o.* FROM read_model.order_list AS o
        WHERE o.tenant_id = p_tenant AND o.order_id = ANY (p_order_ids);
END
$$;

-- Those of the orders that their tenants have, by tenant and id: one tenant after the other, each within row-level security, in
-- one statement.
CREATE FUNCTION read_model.find_listed_orders_of(p_tenants uuid[], p_order_ids text[])
RETURNS SETOF read_model.order_list
LANGUAGE plpgsql STABLE SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_tenant    uuid;
    v_order_ids text[];
BEGIN
    FOR v_tenant, v_order_ids IN
        SELECT w.tenant_id, array_agg(w.order_id) FROM unnest(p_tenants, p_order_ids) AS w (tenant_id, order_id) GROUP BY w.tenant_id
    LOOP
        RETURN QUERY SELECT o.* FROM read_model.find_listed_orders(v_tenant, v_order_ids) AS o;
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION read_model.find_listed_orders, read_model.find_listed_orders_of FROM PUBLIC;
GRANT EXECUTE ON FUNCTION read_model.find_listed_orders, read_model.find_listed_orders_of TO daybook_query;
