-- Tenants and the API keys of services and people's tools.

CREATE TABLE event_store.tenant (
    tenant_id  uuid        PRIMARY KEY,
    name       text        NOT NULL UNIQUE CHECK (name ~ '^[a-z0-9][a-z0-9-]{0,62}$'),
    -- All of a tenant lives in one partition, so that everything of one tenant is totally ordered.
    partition  integer     NOT NULL CHECK (partition >= 0),
    created_at timestamptz NOT NULL DEFAULT now()
);

-- A key is shown once and stored as the SHA-256 of its text: with 256 random bits there is nothing to stretch.
CREATE TABLE event_store.api_key (
    prefix        text        PRIMARY KEY CHECK (prefix ~ '^[A-Za-z0-9]{8}$'),
    secret_sha256 bytea       NOT NULL CHECK (octet_length(secret_sha256) = 32),
    tenant_id     uuid        NOT NULL REFERENCES event_store.tenant,
    name          text        NOT NULL,
    scopes        text[]      NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    expires_at    timestamptz,
    revoked_at    timestamptz
);

ALTER TABLE event_store.tenant ENABLE ROW LEVEL SECURITY;
ALTER TABLE event_store.tenant FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON event_store.tenant USING (tenant_id = event_store.current_tenant());
CREATE POLICY identity ON event_store.tenant TO daybook_identity USING (true);

ALTER TABLE event_store.api_key ENABLE ROW LEVEL SECURITY;
ALTER TABLE event_store.api_key FORCE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON event_store.api_key USING (tenant_id = event_store.current_tenant());
CREATE POLICY identity ON event_store.api_key TO daybook_identity USING (true);

GRANT SELECT ON event_store.tenant, event_store.api_key TO daybook_identity;

-- The tenant comes from the credential, so this look-up cannot be held by a tenant: it runs as a role of its own and
-- gives nothing but what belongs to one prefix, which is a name and no secret.
CREATE FUNCTION event_store.authenticate_api_key(key_prefix text)
RETURNS TABLE (tenant_id uuid, partition integer, name text, secret_sha256 bytea, scopes text[])
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ''
AS $$
    SELECT k.tenant_id, t.partition, k.name, k.secret_sha256, k.scopes
    FROM event_store.api_key AS k
    JOIN event_store.tenant AS t ON t.tenant_id = k.tenant_id
    WHERE k.prefix = key_prefix
      AND k.revoked_at IS NULL
      AND (k.expires_at IS NULL OR k.expires_at > now())
$$;
ALTER FUNCTION event_store.authenticate_api_key(text) OWNER TO daybook_identity;
REVOKE ALL ON FUNCTION event_store.authenticate_api_key(text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION event_store.authenticate_api_key(text)
    TO daybook_command, daybook_projector, daybook_query;
