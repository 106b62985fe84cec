-- Tenants, and the API keys of their services and people's tools; and those of the deployment's operators.

CREATE TABLE event_store.tenant (
    tenant_id  uuid        PRIMARY KEY,
    -- What the log's tables call it by, to be small: it stands in each row and each index there. It never leaves the database.
    number     integer     NOT NULL GENERATED ALWAYS AS IDENTITY UNIQUE,
    name       text        NOT NULL UNIQUE CHECK (name ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    -- All of a tenant lives in one partition, so that everything of one tenant is totally ordered.
    partition  integer     NOT NULL CHECK (partition >= 0),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- A key is shown once and stored as the SHA-256 of its text: with 256 random bits there is nothing to stretch.
CREATE TABLE event_store.api_key (
    prefix        text        PRIMARY KEY CHECK (prefix ~ '^[A-Za-z0-9]{8}$'),
    secret_sha256 bytea       NOT NULL CHECK (octet_length(secret_sha256) = 32),
    -- NULL for a key of the deployment's, which belongs to no tenant.
    tenant_id     uuid        REFERENCES event_store.tenant,
    name          text        NOT NULL,
    scopes        text[]      NOT NULL CHECK (array_position(scopes, NULL) IS NULL),
    created_at    timestamptz NOT NULL DEFAULT now(),
    expires_at    timestamptz,
    revoked_at    timestamptz,

    -- Projections and tenants are the deployment's to operate: a rebuild costs every tenant. Conversely an operator has no
    -- tenant whose data could be read or written.
    CONSTRAINT api_key_scopes_of_its_kind CHECK (
        CASE
            WHEN tenant_id IS NULL THEN scopes <@ ARRAY['projections:operate', 'tenants:admin']
            ELSE NOT scopes && ARRAY['projections:operate', 'tenants:admin']
        END
    )
);

ALTER TABLE event_store.tenant ENABLE ROW LEVEL SECURITY;
ALTER TABLE event_store.tenant FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON event_store.tenant USING (tenant_id = event_store.current_tenant());
CREATE POLICY identity ON event_store.tenant TO daybook_identity USING (true);
CREATE POLICY every_tenant ON event_store.tenant TO daybook_append, daybook_publisher, daybook_projector USING (true);

ALTER TABLE event_store.api_key ENABLE ROW LEVEL SECURITY;
ALTER TABLE event_store.api_key FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON event_store.api_key USING (tenant_id = event_store.current_tenant());
-- The owner of the table, whom row-level security holds as well, makes the deployment's keys.
CREATE POLICY deployment ON event_store.api_key FOR INSERT WITH CHECK (tenant_id IS NULL);
CREATE POLICY identity ON event_store.api_key TO daybook_identity USING (true);

GRANT SELECT ON event_store.tenant, event_store.api_key TO daybook_identity;
GRANT SELECT (tenant_id, number) ON event_store.tenant
    TO daybook_command, daybook_publisher, daybook_projector, daybook_query, daybook_append;

-- The number of the running transaction's tenant.
CREATE FUNCTION event_store.current_tenant_number() RETURNS integer
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS 'SELECT t.number FROM event_store.tenant AS t WHERE t.tenant_id = event_store.current_tenant()';

-- The tenant comes from the credential, so this look-up cannot be held by a tenant: it runs as a role of its own and
-- gives nothing but what belongs to the prefixes, which are names and no secrets. It takes many at once, so that a flood of
-- invented keys costs few statements.
CREATE FUNCTION event_store.authenticate_api_keys(prefixes text[])
RETURNS TABLE (prefix text, tenant_id uuid, partition integer, name text, secret_sha256 bytea, scopes text[])
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT k.prefix, k.tenant_id, t.partition, k.name, k.secret_sha256, k.scopes
    FROM event_store.api_key AS k
    LEFT JOIN event_store.tenant AS t ON t.tenant_id = k.tenant_id
    WHERE k.prefix = ANY (prefixes)
      AND k.revoked_at IS NULL
      AND (k.expires_at IS NULL OR k.expires_at > now())
$$;
ALTER FUNCTION event_store.authenticate_api_keys(text[]) OWNER TO daybook_identity;
REVOKE ALL ON FUNCTION event_store.authenticate_api_keys(text[]) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION event_store.authenticate_api_keys(text[])
    TO daybook_command, daybook_projector, daybook_query;
