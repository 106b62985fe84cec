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
            -- As it is shown. Under row-level security no index of numerics is searched: their comparisons are not
            -- leakproof.
            shown_ordered_minor bigint GENERATED ALWAYS AS (
                greatest(least(ordered_minor, 9223372036854775807), -9223372036854775808)::bigint) STORED
        );

        -- A busy customer's row changes with every batch, and it is replaced rather than updated: the new one is
        -- inserted under its own position, the old one deleted by its place. The newest comes first, so it is the first
        -- that a probe of a key meets, however many dead ones a snapshot that somebody holds keeps behind it. (A row
        -- updated in place is a chain of them, which every update walks.)
        CREATE UNIQUE INDEX %2$I ON read_model.%1$I (tenant_id, customer_id, currency, position DESC);
    $ddl$, 'customer_totals_g' || p_generation, 'customer_totals_g' || p_generation || '_customer_id');
END
$create$;

-- What `customer_totals::ACCESS_PATHS` says, beside the index that is there from the start: who ordered most in a currency.
-- Known limit: while somebody holds a snapshot (a backup), a busy customer's earlier amounts stand behind its newest one, and this
-- list reads past them.
CREATE FUNCTION read_model.index_customer_totals(p_generation integer) RETURNS SETOF text
LANGUAGE plpgsql IMMUTABLE SECURITY INVOKER SET search_path = pg_catalog, pg_temp
AS $index$
BEGIN
    RETURN QUERY
    SELECT format('CREATE INDEX IF NOT EXISTS %1$s_ordered_minor ON read_model.%1$s '
                  '(tenant_id, currency, shown_ordered_minor, customer_id)', 'customer_totals_g' || p_generation);
END
$index$;

REVOKE ALL ON FUNCTION read_model.create_customer_totals, read_model.index_customer_totals FROM PUBLIC;

SELECT read_model.introduce('customer_totals');

-- A row for each currency. Each is found by a probe of its key, and none by going through the rows of the customer: most of
-- those may be dead. One plan for all calls, as in read_model.find_orders.
CREATE FUNCTION read_model.find_customer_totals(p_tenant uuid, p_customer text)
RETURNS SETOF read_model.customer_totals
-- As many as a customer has currencies, and as a page has customers: the default estimate of 1,000 each looks like a million rows.
LANGUAGE plpgsql STABLE SECURITY INVOKER ROWS 2 SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
    v_totals   read_model.customer_totals;
    v_currency text := '';
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    LOOP
        SELECT t.* INTO v_totals FROM read_model.customer_totals AS t
        WHERE t.tenant_id = p_tenant AND t.customer_id = p_customer AND t.currency > v_currency
        ORDER BY t.currency, t.position DESC LIMIT 1;
        EXIT WHEN NOT FOUND;
        RETURN NEXT v_totals;
        v_currency := v_totals.currency;
    END LOOP;
END
$$;

-- The ids of the tenant's customers from `p_from` on and before `p_before`, at most `p_limit` of them. Each is found by a
-- probe of its own, because between two customers may be thousands of dead rows of the first.
CREATE FUNCTION read_model.list_customer_ids(p_tenant uuid, p_from text, p_before text, p_limit bigint)
RETURNS SETOF text
LANGUAGE plpgsql STABLE SECURITY INVOKER ROWS 100 SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
    v_from text := p_from;
    v_id   text;
BEGIN
    PERFORM set_config('daybook.tenant_id', p_tenant::text, true);
    FOR _ IN 1..p_limit LOOP
        SELECT t.customer_id INTO v_id FROM read_model.customer_totals AS t
        WHERE t.tenant_id = p_tenant AND t.customer_id >= v_from AND t.customer_id < p_before
        ORDER BY t.customer_id, t.currency, t.position DESC LIMIT 1;
        EXIT WHEN NOT FOUND;
        RETURN NEXT v_id;
        -- The least text that is greater.
        v_from := v_id || chr(1);
    END LOOP;
END
$$;
REVOKE ALL ON FUNCTION read_model.find_customer_totals, read_model.list_customer_ids FROM PUBLIC;
GRANT EXECUTE ON FUNCTION read_model.find_customer_totals, read_model.list_customer_ids TO daybook_query;
