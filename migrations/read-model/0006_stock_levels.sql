-- Stock levels: how much there is of each article, one short row per stock item.

SET LOCAL ROLE daybook_read_model;

CREATE FUNCTION read_model.create_stock_levels(p_generation integer) RETURNS void
LANGUAGE plpgsql SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $create$
BEGIN
    EXECUTE format($ddl$
        CREATE TABLE read_model.%1$I (
            tenant_id     uuid        NOT NULL,
            stock_item_id text        COLLATE "C" NOT NULL,
            sku           text        COLLATE "C" NOT NULL,
            -- The number of the stock item's events so far.
            version       bigint      NOT NULL,
            -- The position of the event that last changed the row.
            position      bigint      NOT NULL,
            on_hand       bigint      NOT NULL,
            reserved      bigint      NOT NULL,
            updated_at    timestamptz NOT NULL,
            -- A busy item's row is replaced, not updated: see read_model.create_customer_totals.
            PRIMARY KEY (tenant_id, stock_item_id, position)
        );
    $ddl$, 'stock_levels_g' || p_generation);
END
$create$;

-- The list is by article, which is unique within a tenant. Of an article the newest row comes first, and dead ones after it.
CREATE FUNCTION read_model.index_stock_levels(p_generation integer) RETURNS SETOF text
LANGUAGE plpgsql IMMUTABLE SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $index$
BEGIN
    RETURN QUERY
    SELECT format('CREATE INDEX IF NOT EXISTS %1$s_sku ON read_model.%1$s (tenant_id, sku, position DESC)',
                  'stock_levels_g' || p_generation);
END
$index$;

REVOKE ALL ON FUNCTION read_model.create_stock_levels, read_model.index_stock_levels FROM PUBLIC;

SELECT read_model.introduce('stock_levels');

-- Tenant and rows in one call, with one plan for all calls: see read_model.find_orders.
CREATE FUNCTION read_model.find_stock_level(p_tenant uuid, p_stock_item_id text)
RETURNS SETOF read_model.stock_levels
LANGUAGE plpgsql STABLE SECURITY INVOKER
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    RETURN QUERY
        SELECT s.* FROM read_model.stock_levels AS s
        WHERE s.tenant_id = p_tenant AND s.stock_item_id = p_stock_item_id
        ORDER BY s.position DESC LIMIT 1;
END
$$;

-- A page of a tenant's stock items by article, beginning after `p_after_sku`; at the first one when that is ''. Each is
-- found by a probe of its own, because between two articles may be thousands of dead rows of the first.
CREATE FUNCTION read_model.list_stock_levels(p_tenant uuid, p_after_sku text, p_limit bigint)
RETURNS SETOF read_model.stock_levels
LANGUAGE plpgsql STABLE SECURITY INVOKER
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
    v_level read_model.stock_levels;
    v_after text := p_after_sku;
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    FOR _ IN 1..p_limit LOOP
        SELECT s.* INTO v_level FROM read_model.stock_levels AS s
        WHERE s.tenant_id = p_tenant AND s.sku > v_after
        ORDER BY s.sku, s.position DESC LIMIT 1;
        EXIT WHEN NOT FOUND;
        RETURN NEXT v_level;
        v_after := v_level.sku;
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION read_model.find_stock_level, read_model.list_stock_levels FROM PUBLIC;
GRANT EXECUTE ON FUNCTION read_model.find_stock_level, read_model.list_stock_levels TO daybook_query;
