-- The read models: what queries read. All of it is derived from the log and can be thrown away and built again.
--
-- The projector is the only one that writes here. It makes and drops tables of its own (a rebuild fills a second set
-- beside the live one), so unlike the services in event_store it owns what it makes. It owns nothing else: the registry
-- of projections and their checkpoints belongs to whoever migrates.
--
-- The projector's connections set synchronous_commit = off, deliberately. Rows and the checkpoint that says which
-- events they include commit together; a crash of the server loses the tail of both, and the lost events are folded
-- again from the log. The checkpoint cannot get ahead of the log by it: an event is seen by others only after it has
-- been flushed, and the write-ahead log is flushed in order. It is a setting of the connections and not of the role,
-- because a role's settings belong to the whole server, and a role's settings in a database are not copied with it.
-- The functions in 0002 that answer an operator switch it on again for their own transaction.
GRANT USAGE, CREATE ON SCHEMA read_model TO daybook_projector;
GRANT USAGE ON SCHEMA read_model TO daybook_query;

-- What a service compares with the version that it was built for before it starts to work.
CREATE FUNCTION read_model.schema_version() RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = ''
AS 'SELECT max(version) FROM read_model.migration WHERE success';
