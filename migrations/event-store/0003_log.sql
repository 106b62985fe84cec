-- The log: the one thing that is true. Everything else is derived from it and can be thrown away.
--
-- Every event has a position in its partition: 1, 2, 3, … without holes and in commit order, because an append holds the
-- partition's row of `log` from the moment it takes positions until it has committed. The same number is the primary
-- key here, the sequence of the JetStream message, the checkpoint of every projection and the consistency token.
--
-- `partition` leads every key, so that the tables can be distributed by it.
--
-- `log` and `command` have no CHECK: Postgres parses one anew for every statement that writes, which cost a lone append
-- an eighth of its time. Only the append function writes them, from values that its caller's types hold.

CREATE TABLE event_store.log (
    partition   integer     PRIMARY KEY,
    -- New after every restore: what carries another generation (a message, a checkpoint) belongs to a log that is gone.
    generation  uuid        NOT NULL DEFAULT gen_random_uuid(),
    -- The position of the newest event.
    head        bigint      NOT NULL DEFAULT 0,
    -- When the newest event was recorded. Never decreases, whatever the clock does, so that time can be searched by
    -- position.
    recorded_at timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 50);

CREATE TABLE event_store.event (
    partition      integer     NOT NULL,
    position       bigint      NOT NULL,
    tenant_id      uuid        NOT NULL,
    category       text        COLLATE "C" NOT NULL,
    stream_id      text        COLLATE "C" NOT NULL,
    -- 1, 2, 3, … within the stream.
    stream_version bigint      NOT NULL,
    event_id       uuid        NOT NULL,
    event_type     text        COLLATE "C" NOT NULL,
    schema_version integer     NOT NULL,
    -- json and not jsonb: it keeps the bytes as they were written, and inserts 1.7 times as fast.
    payload        json        NOT NULL,
    metadata       json        NOT NULL,
    recorded_at    timestamptz NOT NULL,
    PRIMARY KEY (partition, position),
    CONSTRAINT event_stream_version_key UNIQUE (partition, tenant_id, stream_id, stream_version)
);

CREATE TABLE event_store.stream (
    partition integer NOT NULL,
    tenant_id uuid    NOT NULL,
    stream_id text    COLLATE "C" NOT NULL,
    category  text    COLLATE "C" NOT NULL,
    -- The number of the stream's events.
    version   bigint  NOT NULL,
    PRIMARY KEY (partition, tenant_id, stream_id)
) WITH (fillfactor = 80);

-- What was answered to a command, for as long as the log lives: its events and its receipt commit together.
CREATE TABLE event_store.command (
    partition      integer     NOT NULL,
    tenant_id      uuid        NOT NULL,
    -- The caller's idempotency key.
    key            text        COLLATE "C" NOT NULL,
    -- SHA-256 of the command's content: the same key with other content is refused.
    fingerprint    bytea       NOT NULL,
    -- The receipt.
    stream_id      text        COLLATE "C" NOT NULL,
    stream_version bigint      NOT NULL,
    first_position bigint,
    event_count    integer     NOT NULL,
    -- The domain's refusal, where there was one: it is remembered like a success.
    rejection      json,
    recorded_at    timestamptz NOT NULL,
    PRIMARY KEY (partition, tenant_id, key)
);

-- Nobody has the privilege to rewrite events; this says so even to those who own the table.
CREATE FUNCTION event_store.refuse_rewriting() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'events are never rewritten: % on event_store.% is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation';
END
$$;
CREATE TRIGGER event_is_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON event_store.event
    FOR EACH STATEMENT EXECUTE FUNCTION event_store.refuse_rewriting();

ALTER TABLE event_store.event ENABLE ROW LEVEL SECURITY;
ALTER TABLE event_store.event FORCE ROW LEVEL SECURITY;
ALTER TABLE event_store.stream ENABLE ROW LEVEL SECURITY;
ALTER TABLE event_store.stream FORCE ROW LEVEL SECURITY;
ALTER TABLE event_store.command ENABLE ROW LEVEL SECURITY;
ALTER TABLE event_store.command FORCE ROW LEVEL SECURITY;

CREATE POLICY own_tenant ON event_store.event USING (tenant_id = event_store.current_tenant());
CREATE POLICY own_tenant ON event_store.stream USING (tenant_id = event_store.current_tenant());
CREATE POLICY own_tenant ON event_store.command USING (tenant_id = event_store.current_tenant());
CREATE POLICY every_tenant ON event_store.event TO daybook_append, daybook_publisher, daybook_projector USING (true);
CREATE POLICY every_tenant ON event_store.stream TO daybook_append USING (true);
CREATE POLICY every_tenant ON event_store.command TO daybook_append USING (true);

GRANT SELECT ON event_store.log TO daybook_command, daybook_publisher, daybook_projector, daybook_query;
GRANT SELECT ON event_store.event TO daybook_command, daybook_publisher, daybook_projector, daybook_query;
GRANT SELECT, UPDATE ON event_store.log TO daybook_append;
GRANT SELECT, INSERT ON event_store.event TO daybook_append;
GRANT SELECT, INSERT, UPDATE ON event_store.stream TO daybook_append;
GRANT SELECT, INSERT ON event_store.command TO daybook_append;

-- The default is one partition.
INSERT INTO event_store.log (partition) VALUES (0);
