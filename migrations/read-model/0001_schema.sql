-- The read models: what queries read. All of it is derived from the log and can be thrown away and built again.
--
-- The projector is the only one that writes here. A rebuild fills a second set of tables beside the live one, so tables
-- are made and dropped while the system runs: by functions that run as daybook_read_model, to whom everything here
-- belongs and as whom nobody can log in. The projector writes rows and calls those functions. It owns nothing, so that
-- whoever has its password cannot change what an administrator's `migrate` runs.
--
-- The projector's connections set synchronous_commit = off, deliberately. Rows and the checkpoint that says which
-- events they include commit together; a crash of the server loses the tail of both, and the lost events are folded
-- again from the log. The checkpoint cannot get ahead of the log by it: an event is seen by others only after it has
-- been flushed, and the write-ahead log is flushed in order. It is a setting of the connections and not of the role,
-- because a role's settings belong to the whole server, and a role's settings in a database are not copied with it.
-- The functions in 0002 that answer an operator switch it on again for their own transaction.
GRANT USAGE, CREATE ON SCHEMA read_model TO daybook_read_model;
GRANT USAGE ON SCHEMA read_model TO daybook_projector, daybook_query;

-- The migrations that follow run as daybook_read_model, so that what they make belongs to it. Each notes that it was
-- applied while it still does.
GRANT INSERT ON read_model.migration TO daybook_read_model;

-- A service compares the newest version with the one that it was built for before it starts to work.
GRANT SELECT (version, success) ON read_model.migration TO daybook_projector, daybook_query;
