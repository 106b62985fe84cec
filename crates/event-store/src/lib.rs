//! The log in Postgres: append, read, idempotency.
//!
//! Every event has a *position* in its partition: 1, 2, 3, … without holes, in commit order. [`Appender`] gives
//! positions out by group commit: one call of one SQL function (`event_store.append`) appends the events of many
//! commands in one short transaction. The function judges each command by the event that it was decided on, and looks
//! for its idempotency key, so its verdict is final, whatever the caller believed.
//!
//! The crate carries bytes, a type name and metadata; it knows nothing of the domain, and nothing else writes the log.

mod answers;
mod append;
mod appender;
mod attempts;
mod command;
mod digest;
mod document;
mod event;
pub mod keys;
mod lineage;
mod log;
mod queue;
mod read;
mod stored_key;

pub use daybook_postgres::reconnect;

pub use append::{AppendError, JudgedChain, Judgement, append, chains, groups};
pub use appender::{Answer, Appender, AppenderMetrics, AppenderOptions, Committed, Permit, Unanswered};
pub use command::{Decision, Intent, NewCommand, NewEvent, Newest, Receipt, Verdict};
pub use digest::{Digest, digest_of_all};
pub use document::EventDocument;
pub use event::{Metadata, RecordedEvent};
pub use lineage::{Attached, Epoch, EpochId, Lineage, SeenEpoch, Witnesses};
pub use log::{Log, PostgresLog, Remembered};
pub use queue::{BatchLimits, NotAdmitted};
pub use read::{
    Direction, EventStore, LogHead, NotAppendable, ReadError, TailPage, TailRange, TenantRange, may_go_on,
};

/// The migrations of the schema `event_store`; run by `daybook migrate`, never by a service.
pub fn migrator() -> sqlx::migrate::Migrator {
    let mut migrator = sqlx::migrate!("../../migrations/event-store");
    migrator.create_schema("event_store");
    migrator.dangerous_set_table_name("event_store.migration");
    migrator
}

/// The newest migration that this build knows; a service refuses to work on an older schema.
pub fn schema_version() -> i64 {
    migrator()
        .iter()
        .map(|migration| migration.version)
        .max()
        .unwrap_or(0)
}

/// Every SQL statement of this crate, by name, for the test that prepares each against the migrated schema.
pub const STATEMENTS: &[(&str, &str)] = &[
    ("append", append::APPEND),
    ("receipts", log::RECEIPTS),
    ("attach", lineage::ATTACH),
    ("epochs", lineage::EPOCHS),
    ("own_session", log::OWN_SESSION),
    ("end_session", log::END_SESSION),
    ("tend_keys", keys::TEND),
    ("turn_keys", keys::TURN),
    ("key_tables", keys::TABLES),
    ("read_stream", read::READ_STREAM),
    ("read_events", read::READ_EVENTS),
    ("read_log", read::READ_LOG),
    ("read_tail", read::READ_TAIL),
    ("read_tenant", read::READ_TENANT),
    ("head", read::HEAD),
    ("partitions", read::PARTITIONS),
    ("check_append", read::CHECK_APPEND),
    ("limit_statements", daybook_postgres::LIMIT_STATEMENTS),
];
