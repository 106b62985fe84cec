-- Stock levels: how much there is of each article, one short row per stock item.

CREATE FUNCTION read_model.create_stock_levels(p_generation integer) RETURNS void
LANGUAGE plpgsql SECURITY INVOKER SET search_path = ''
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
            PRIMARY KEY (tenant_id, stock_item_id)
        -- A busy item is written over and over, and no index knows of what changes: with room on the page the new version
        -- stays there (a HOT update).
        ) WITH (fillfactor = 70);

        ALTER TABLE read_model.%1$I ENABLE ROW LEVEL SECURITY;
        ALTER TABLE read_model.%1$I FORCE ROW LEVEL SECURITY;
        CREATE POLICY own_tenant ON read_model.%1$I FOR SELECT TO daybook_query
            USING (tenant_id = event_store.current_tenant());
        CREATE POLICY every_tenant ON read_model.%1$I TO daybook_projector USING (true) WITH CHECK (true);
        GRANT SELECT ON read_model.%1$I TO daybook_query;
    $ddl$, 'stock_levels_g' || p_generation);
END
$create$;

-- The list is by article, which is unique within a tenant.
CREATE FUNCTION read_model.index_stock_levels(p_generation integer) RETURNS SETOF text
LANGUAGE plpgsql IMMUTABLE SECURITY INVOKER SET search_path = ''
AS $index$
BEGIN
    RETURN QUERY
    SELECT format('CREATE INDEX IF NOT EXISTS %1$s_sku ON read_model.%1$s (tenant_id, sku)',
                  'stock_levels_g' || p_generation);
END
$index$;

REVOKE ALL ON FUNCTION read_model.create_stock_levels, read_model.index_stock_levels FROM PUBLIC;
GRANT EXECUTE ON FUNCTION read_model.create_stock_levels, read_model.index_stock_levels TO daybook_projector;

SELECT read_model.introduce('stock_levels');

-- Tenant and rows in one call, with one plan for all calls: see read_model.find_orders.
CREATE FUNCTION read_model.find_stock_level(p_tenant uuid, p_stock_item_id text)
RETURNS SETOF read_model.stock_levels
LANGUAGE plpgsql STABLE SECURITY INVOKER SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
AS $$
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    RETURN QUERY
        SELECT s.* FROM read_model.stock_levels AS s
        WHERE s.tenant_id = p_tenant AND s.stock_item_id = p_stock_item_id;
END
$$;

-- A page of a tenant's stock items by article, beginning after `p_after_sku`; at the first one when that is ''.
--
-- No bitmap scan either: it would read all that is left of the list and sort it.
CREATE FUNCTION read_model.list_stock_levels(p_tenant uuid, p_after_sku text, p_limit bigint)
RETURNS SETOF read_model.stock_levels
LANGUAGE plpgsql STABLE SECURITY INVOKER
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    RETURN QUERY
        SELECT s.* FROM read_model.stock_levels AS s
        WHERE s.tenant_id = p_tenant AND s.sku > p_after_sku
        ORDER BY s.sku LIMIT p_limit;
END
$$;
REVOKE ALL ON FUNCTION read_model.find_stock_level, read_model.list_stock_levels FROM PUBLIC;
GRANT EXECUTE ON FUNCTION read_model.find_stock_level, read_model.list_stock_levels TO daybook_query;
