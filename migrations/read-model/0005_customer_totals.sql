-- Customer totals: what a customer has bought, paid and got back, in each currency.

CREATE FUNCTION read_model.create_customer_totals(p_generation integer) RETURNS void
LANGUAGE plpgsql SECURITY INVOKER SET search_path = ''
AS $create$
BEGIN
    EXECUTE format($ddl$
        CREATE TABLE read_model.%1$I (
            tenant_id      uuid    NOT NULL,
            customer_id    text    COLLATE "C" NOT NULL,
            currency       text    COLLATE "C" NOT NULL,
            -- The position of the event that last changed the row.
            position       bigint  NOT NULL,
            orders_placed  bigint  NOT NULL,
            orders_closed  bigint  NOT NULL,
            items_ordered  bigint  NOT NULL,
            -- Single amounts fit 64 bits, sums of them need not.
            ordered_minor  numeric NOT NULL,
            paid_minor     numeric NOT NULL,
            refunded_minor numeric NOT NULL,
            PRIMARY KEY (tenant_id, customer_id, currency)
        -- A busy customer's row is written many times a second, and no index knows of it: with room on the page the new
        -- versions stay there (HOT updates) and are cleared away by the next one.
        ) WITH (fillfactor = 50);

        ALTER TABLE read_model.%1$I ENABLE ROW LEVEL SECURITY;
        ALTER TABLE read_model.%1$I FORCE ROW LEVEL SECURITY;
        CREATE POLICY own_tenant ON read_model.%1$I FOR SELECT TO daybook_query
            USING (tenant_id = event_store.current_tenant());
        CREATE POLICY every_tenant ON read_model.%1$I TO daybook_projector USING (true) WITH CHECK (true);
        GRANT SELECT ON read_model.%1$I TO daybook_query;
    $ddl$, 'customer_totals_g' || p_generation);
END
$create$;

-- Totals are found by their customer alone: no further index.
CREATE FUNCTION read_model.index_customer_totals(p_generation integer) RETURNS SETOF text
LANGUAGE plpgsql IMMUTABLE SECURITY INVOKER SET search_path = ''
AS $$
BEGIN
    RETURN;
END
$$;

REVOKE ALL ON FUNCTION read_model.create_customer_totals, read_model.index_customer_totals FROM PUBLIC;
GRANT EXECUTE ON FUNCTION read_model.create_customer_totals, read_model.index_customer_totals TO daybook_projector;

SELECT read_model.introduce('customer_totals');

-- One plan for all calls, as in read_model.find_orders.
CREATE FUNCTION read_model.find_customer_totals(p_tenant uuid, p_customer text)
RETURNS SETOF read_model.customer_totals
LANGUAGE plpgsql STABLE SECURITY INVOKER SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
AS $$
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    RETURN QUERY
        SELECT t.* FROM read_model.customer_totals AS t
        WHERE t.tenant_id = p_tenant AND t.customer_id = p_customer
        ORDER BY t.currency;
END
$$;
REVOKE ALL ON FUNCTION read_model.find_customer_totals FROM PUBLIC;
GRANT EXECUTE ON FUNCTION read_model.find_customer_totals TO daybook_query;
