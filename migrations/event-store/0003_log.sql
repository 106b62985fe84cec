-- The log: the one thing that is true. Everything else is derived from it and can be thrown away.
--
-- Every event has a position in its partition: 1, 2, 3, … without holes and in commit order, because an append holds the
-- partition's row of `log` from the moment it takes positions until it has committed. The same number is the primary
-- key here, the sequence of the JetStream message, the checkpoint of every projection and the consistency token.
--
-- The event table is the only truth about itself. The head of a partition is its newest event and a stream's version is
-- its newest event's, each one backward probe of an index that is there anyway. Nothing that an append touches is ever
-- updated: a row that every batch rewrites is a chain of dead versions as soon as anyone holds an old snapshot, and each
-- batch would walk along it.
--
-- `partition` leads every key, so that the tables can be distributed by it. Columns of fixed width come first, which saves
-- their padding. The hot tables have no CHECK: Postgres parses it anew for every statement that writes. Only the append
-- function writes them, from values that its caller's types hold.

CREATE TABLE event_store.log (
    partition  integer PRIMARY KEY,
    -- Of the newest epoch (0004), beside the lock, so that an append reads them with it.
    epoch      integer NOT NULL,
    generation uuid    NOT NULL,
    timeline   text    COLLATE "C" NOT NULL
);

CREATE TABLE event_store.event (
    position       bigint      NOT NULL,
    -- 1, 2, 3, … within the stream.
    stream_version bigint      NOT NULL,
    -- Never decreases along the positions, whatever the clock does, so that time can be searched by position.
    recorded_at    timestamptz NOT NULL,
    partition      integer     NOT NULL,
    tenant_number  integer     NOT NULL,
    schema_version integer     NOT NULL,
    -- Drawn at random for each decision: two decisions of one command on two states do not look alike.
    event_id       uuid        NOT NULL,
    category       text        COLLATE "C" NOT NULL,
    stream_id      text        COLLATE "C" NOT NULL,
    event_type     text        COLLATE "C" NOT NULL,
    -- json and not jsonb: it keeps the bytes as they were written, and inserts 1.7 times as fast.
    payload        json        NOT NULL,
    metadata       json        NOT NULL,
    -- Positions only ever grow: room between them would stay empty.
    PRIMARY KEY (partition, position) WITH (fillfactor = 100),
    CONSTRAINT event_stream_version_key UNIQUE (partition, tenant_number, stream_id, stream_version)
) WITH (
    -- A row of up to a page stays in it, and is not compressed while the partition is locked.
    toast_tuple_target = 8160,
    -- Rows are inserted and never change: what is vacuumed is frozen at once, and how much of it is due does not grow with
    -- the table.
    autovacuum_freeze_min_age = 0,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 2000000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 2000000
);

-- Idempotency keys: what was answered to each command. A row commits with the events of its command and is kept for at
-- least the retention time. There are exactly two tables, which take turns (0008); an append looks into both and writes
-- into one. A key is stored as bytes that sort as its text does: a zero byte and 16 bytes for a UUID in its usual form, a one
-- and the text for anything else. So keys keep the order that callers give them: time-ordered ones (UUIDv7) go to the end of
-- the index, and take half of the room.
CREATE TABLE event_store.command (
    -- The position of the command's first event; of a command without events, the newest event that it was decided on.
    position      bigint   NOT NULL,
    -- 64 bits of a keyed hash of the command's content: the same key with other content is refused.
    fingerprint   bigint   NOT NULL,
    partition     integer  NOT NULL,
    tenant_number integer  NOT NULL,
    event_count   integer  NOT NULL,
    key_table     smallint NOT NULL,
    key           bytea    NOT NULL,
    -- The receipt of a command without events, which has no event to read it from: a refusal by the domain that is
    -- remembered like a success, a command that changed nothing, or the key of a whole batch.
    outcome       json,
    PRIMARY KEY (partition, tenant_number, key, key_table)
) PARTITION BY LIST (key_table);
-- Which of the two takes new keys.
CREATE TABLE event_store.current_key_table (
    is_only_row boolean  PRIMARY KEY DEFAULT true CHECK (is_only_row),
    key_table   smallint NOT NULL CHECK (key_table IN (0, 1))
);
INSERT INTO event_store.current_key_table (key_table) VALUES (0);

DO $$
BEGIN
    FOR key_table IN 0..1 LOOP
        EXECUTE format(
            'CREATE TABLE event_store.command_%1$s PARTITION OF event_store.command FOR VALUES IN (%1$s) WITH (
                 autovacuum_freeze_min_age = 0,
                 autovacuum_vacuum_insert_scale_factor = 0,
                 autovacuum_vacuum_insert_threshold = 2000000,
                 autovacuum_analyze_scale_factor = 0,
                 autovacuum_analyze_threshold = 2000000)',
            key_table);
    END LOOP;
END
$$;

-- The text of a stored key, for people who read the table.
CREATE FUNCTION event_store.key_text(key bytea) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
RETURN CASE get_byte(key, 0)
    WHEN 0 THEN encode(substr(key, 2), 'hex')::uuid::text
    ELSE convert_from(substr(key, 2), 'UTF8')
END;
ALTER FUNCTION event_store.key_text OWNER TO daybook_functions;

-- Nobody has the privilege to rewrite events; this says so even to those who own the table.
CREATE FUNCTION event_store.refuse_rewriting() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'events are never rewritten: % on event_store.% is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'integrity_constraint_violation';
END
$$;
ALTER FUNCTION event_store.refuse_rewriting OWNER TO daybook_functions;
CREATE TRIGGER event_is_immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON event_store.event
    FOR EACH STATEMENT EXECUTE FUNCTION event_store.refuse_rewriting();

ALTER TABLE event_store.event ENABLE ROW LEVEL SECURITY;
ALTER TABLE event_store.event FORCE ROW LEVEL SECURITY;
ALTER TABLE event_store.command ENABLE ROW LEVEL SECURITY;
ALTER TABLE event_store.command FORCE ROW LEVEL SECURITY;
-- Policies of the whole do not hold for a part that is addressed by its own name: there, nobody sees anything.
ALTER TABLE event_store.command_0 ENABLE ROW LEVEL SECURITY;
ALTER TABLE event_store.command_0 FORCE ROW LEVEL SECURITY;
ALTER TABLE event_store.command_1 ENABLE ROW LEVEL SECURITY;
ALTER TABLE event_store.command_1 FORCE ROW LEVEL SECURITY;

CREATE POLICY own_tenant ON event_store.event USING (tenant_number = (SELECT event_store.current_tenant_number()));
CREATE POLICY own_tenant ON event_store.command USING (tenant_number = (SELECT event_store.current_tenant_number()));
CREATE POLICY every_tenant ON event_store.event TO daybook_append, daybook_publisher, daybook_projector USING (true);
CREATE POLICY every_tenant ON event_store.command TO daybook_append USING (true);

GRANT SELECT ON event_store.log TO daybook_command, daybook_publisher, daybook_projector, daybook_query, daybook_read_model;
GRANT SELECT ON event_store.event TO daybook_command, daybook_publisher, daybook_projector, daybook_query;
-- To lock a row takes the right to update it.
GRANT SELECT, UPDATE ON event_store.log TO daybook_append;
GRANT SELECT, INSERT ON event_store.event TO daybook_append;
GRANT SELECT, INSERT ON event_store.command TO daybook_append;
GRANT SELECT ON event_store.current_key_table TO daybook_append;
