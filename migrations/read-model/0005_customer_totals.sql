-- Customer totals: what a customer has bought, paid and got back, in each currency.

SET LOCAL ROLE daybook_read_model;

CREATE FUNCTION read_model.create_customer_totals(p_generation integer) RETURNS void
LANGUAGE plpgsql SECURITY INVOKER SET search_path = pg_catalog, pg_temp
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
            -- A busy customer's row changes with every batch, and it is replaced rather than updated: the new one is
            -- inserted under its own position, the old one deleted by its place. So the newest is the first that a probe
            -- from the end of a key meets, however many dead ones a snapshot that somebody holds keeps behind it. (A row
            -- updated in place is a chain of them, which every update walks.)
            PRIMARY KEY (tenant_id, customer_id, currency, position)
        );

        ALTER TABLE read_model.%1$I ENABLE ROW LEVEL SECURITY;
        ALTER TABLE read_model.%1$I FORCE ROW LEVEL SECURITY;
        CREATE POLICY own_tenant ON read_model.%1$I FOR SELECT TO daybook_query
            USING (tenant_id = event_store.current_tenant());
        CREATE POLICY every_tenant ON read_model.%1$I TO daybook_projector USING (true) WITH CHECK (true);
        GRANT SELECT ON read_model.%1$I TO daybook_query;
        GRANT SELECT, INSERT, UPDATE, DELETE ON read_model.%1$I TO daybook_projector;
    $ddl$, 'customer_totals_g' || p_generation);
END
$create$;

-- Totals are found by their customer alone: no further index.
CREATE FUNCTION read_model.index_customer_totals(p_generation integer) RETURNS SETOF text
LANGUAGE plpgsql IMMUTABLE SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN;
END
$$;

REVOKE ALL ON FUNCTION read_model.create_customer_totals, read_model.index_customer_totals FROM PUBLIC;

SELECT read_model.introduce('customer_totals');

-- A row for each currency, the last currency first. Each is found by a probe from the end of its key, and none by going
-- through the rows of the customer: most of those may be dead. One plan for all calls, as in read_model.find_orders.
CREATE FUNCTION read_model.find_customer_totals(p_tenant uuid, p_customer text)
RETURNS SETOF read_model.customer_totals
LANGUAGE plpgsql STABLE SECURITY INVOKER SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
    v_totals read_model.customer_totals;
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    SELECT t.* INTO v_totals FROM read_model.customer_totals AS t
    WHERE t.tenant_id = p_tenant AND t.customer_id = p_customer
    ORDER BY t.currency DESC, t.position DESC LIMIT 1;
    WHILE FOUND LOOP
        RETURN NEXT v_totals;
        SELECT t.* INTO v_totals FROM read_model.customer_totals AS t
        WHERE t.tenant_id = p_tenant AND t.customer_id = p_customer AND t.currency < v_totals.currency
        ORDER BY t.currency DESC, t.position DESC LIMIT 1;
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION read_model.find_customer_totals FROM PUBLIC;
GRANT EXECUTE ON FUNCTION read_model.find_customer_totals TO daybook_query;
