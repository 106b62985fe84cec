//! One batch into one generation of tables: load what is touched, fold, store, and advance the checkpoint.
//!
//! Rows and checkpoint change in one transaction, and the checkpoint changes by compare-and-set, so each event takes
//! effect exactly once, however often it is delivered and whoever else is at work. The rows are loaded before that
//! transaction: had anybody changed them since, the compare-and-set would fail.

use std::time::Instant;

use daybook_event_store::digest_of_all;
use daybook_read_model::{Advance, Generation, ReadModel};
use sqlx::PgConnection;
use thiserror::Error;

use crate::batch::Decoded;
use crate::checkpoint::{self, LEASE_CHECK_INTERVAL, Lease};
use crate::fold::{Changes, Poison, Reason, Rows};

/// Why a batch was not applied. After anything but [`ApplyError::Poison`] the runner has to be dropped: its connection
/// and what it believes about the checkpoint are not certain any more.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The lease is lost: another worker owns the checkpoint, its tables are gone, or the log is another one.
    #[error("the lease on the checkpoint is lost")]
    Fenced,
    /// The bus gave what the log does not hold: forged, or beyond the log's head. Nothing was changed.
    #[error("the log does not hold the events that came over the bus")]
    NotInLog,
    /// The next event cannot be applied; nothing was changed.
    #[error(transparent)]
    Poison(#[from] Poison),
    /// The events do not continue at the checkpoint.
    #[error("the events begin at position {actual} where {expected} is next, or have a hole")]
    Hole {
        /// The next position.
        expected: u64,
        /// The position that came.
        actual: u64,
    },
    /// The database did not do it. A commit may have been done all the same; the checkpoint tells.
    #[error("the database did not apply a batch")]
    Database(#[from] sqlx::Error),
}

/// Applies batches to one generation of a read model's tables, in one partition, for as long as its lease holds.
#[derive(Debug)]
pub struct Runner<M: ReadModel> {
    connection: PgConnection,
    lease: Lease,
    check_at: Instant,
    rows: Rows<M>,
    /// Insert rows of new keys without `ON CONFLICT`; twice as fast.
    trusts_new: bool,
}

impl<M: ReadModel> Runner<M> {
    /// Works from where the lease stands, over a connection of its own. Rows take up to `rows_bytes_max` bytes of memory.
    pub fn new(connection: PgConnection, lease: Lease, rows_bytes_max: usize) -> Self {
        let is_empty = lease.position == 0;
        Self {
            connection,
            lease,
            check_at: Instant::now() + LEASE_CHECK_INTERVAL,
            rows: Rows::new(rows_bytes_max, is_empty),
            trusts_new: true,
        }
    }

    /// The lease, with the checkpoint's position.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// Applies events that follow on the checkpoint, up to the first that came another way than those before it: each kind
    /// is compared with the log in its own way. And no more than have room for their rows. When one of them cannot be applied, those before it are, and the error comes
    /// with the next call, which begins at it. Returns how many were applied: at least one, unless there were none.
    pub async fn apply(&mut self, events: &[&Decoded]) -> Result<usize, ApplyError> {
        self.check_continues(events)?;
        let is_from_bus = |event: &Decoded| event.digest.is_some();
        let mut runs = events.chunk_by(|one, next| is_from_bus(one) == is_from_bus(next));
        let mut events = runs.next().unwrap_or_default();
        while !events.is_empty() {
            match self.attempt(events).await {
                Ok(count) => return Ok(count),
                Err(ApplyError::Poison(poison)) => {
                    self.rows.forget();
                    if self.distrust_new(&poison) {
                        continue;
                    }
                    let fine = self.fine_before(&poison);
                    if fine == 0 {
                        return Err(poison.into());
                    }
                    events = &events[..fine];
                }
                Err(error) => return Err(error),
            }
        }
        Ok(0)
    }

    fn check_continues(&self, events: &[&Decoded]) -> Result<(), ApplyError> {
        for (event, expected) in events.iter().zip(self.lease.position + 1..) {
            if event.position != expected {
                return Err(ApplyError::Hole {
                    expected,
                    actual: event.position,
                });
            }
        }
        Ok(())
    }

    /// When the database refuses a batch, a row may have been there that could not be: an operator set the checkpoint
    /// back. Then the batch is tried again, and from then on every row is looked for.
    fn distrust_new(&mut self, poison: &Poison) -> bool {
        matches!(poison.reason, Reason::Store(_)) && std::mem::replace(&mut self.trusts_new, false)
    }

    /// How many events come before the one that is poison. What the database refuses it refuses as a batch, so the
    /// culprit is looked for by halves.
    fn fine_before(&self, poison: &Poison) -> usize {
        let attempted = usize::try_from(poison.position - self.lease.position).unwrap_or(0);
        match poison.reason {
            Reason::Store(_) => attempted / 2,
            Reason::Decode(_) | Reason::Fold(_) => attempted.saturating_sub(1),
        }
    }

    /// Applies as many of the events as have room for their rows, or none. Returns how many.
    async fn attempt(&mut self, events: &[&Decoded]) -> Result<usize, ApplyError> {
        let count = self.load(events).await?;
        let events = &events[..count];
        self.rows.fold(events)?;
        let position = events.last().map_or(self.lease.position, |event| event.position);
        self.store(events, position).await?;
        self.lease.position = position;
        self.lease.failed = false;
        self.rows.keep();
        Ok(count)
    }

    /// Loads rows, and returns how many of the events can be folded with them: at least one.
    async fn load(&mut self, events: &[&Decoded]) -> Result<usize, sqlx::Error> {
        let missing = self.rows.missing(events);
        let (tables, bytes_max) = (self.lease.key.tables, self.rows.batch_bytes_max());
        let mut looked_up = 0;
        // What the first event needs is loaded whatever its size.
        while missing
            .events_before
            .get(looked_up)
            .is_some_and(|events| looked_up == 0 || *events == 0)
        {
            let keys = &missing.keys[looked_up..];
            let loaded = M::load(&mut self.connection, tables, keys, bytes_max).await?;
            let count = loaded.keys;
            self.rows.put_loaded(keys, loaded);
            looked_up += count;
        }
        let events_before = missing.events_before.get(looked_up).copied();
        Ok(events_before.unwrap_or(missing.events))
    }

    /// Everything that a batch changes, in one transaction: of one statement, where one does it.
    async fn store(&mut self, events: &[&Decoded], position: u64) -> Result<(), ApplyError> {
        let digests: Option<Vec<_>> = events.iter().map(|event| event.digest.as_ref()).collect();
        let advance = match digests {
            Some(digests) => Advance {
                digest: Some(digest_of_all(digests)),
                ..self.lease.advance_to(position)
            },
            // The connection that they were read on may lead to another server than this one.
            None => Advance {
                event_ids: Some(events.iter().map(|event| event.event_id).collect()),
                ..self.lease.advance_to(position)
            },
        };
        let changes = self.rows.changes();
        let (connection, trusts_new) = (&mut self.connection, self.trusts_new);
        let stored = if changes.is_empty() {
            advance.execute(connection).await
        } else if changes.fit_one_statement() {
            write(connection, advance.tables, &changes, trusts_new, Some(&advance)).await
        } else {
            write_in_transaction(connection, &changes, trusts_new, &advance).await
        };
        stored.map_err(|error| {
            if Advance::is_refused(&error) {
                return ApplyError::Fenced;
            }
            if Advance::is_refuted(&error) {
                return ApplyError::NotInLog;
            }
            let code = error.as_database_error().and_then(|error| error.code());
            match code.as_deref() {
                // The database refuses the data, rather than failing itself.
                Some(code) if code.starts_with("22") || code.starts_with("23") => {
                    let reason = Reason::Store(error);
                    ApplyError::Poison(Poison { position, reason })
                }
                _ => ApplyError::Database(error),
            }
        })
    }

    /// When it is to be asked next whether the lease is lost.
    pub fn check_at(&self) -> Instant {
        self.check_at
    }

    /// Asks whether the lease is held still.
    pub async fn holds_lease(&mut self) -> Result<bool, sqlx::Error> {
        self.check_at = Instant::now() + LEASE_CHECK_INTERVAL;
        checkpoint::is_held(&mut self.connection, &self.lease).await
    }

    /// Notes for operators why the projection does not go on.
    pub async fn fail(&mut self, poison: &Poison) -> Result<(), sqlx::Error> {
        let reason = chain(poison);
        checkpoint::fail(&mut self.connection, &self.lease, poison.position, &reason).await?;
        self.lease.failed = true;
        Ok(())
    }

    /// Gives the lease back and closes the connection.
    pub async fn release(mut self) -> Result<(), sqlx::Error> {
        checkpoint::release(&mut self.connection, &self.lease).await?;
        sqlx::Connection::close(self.connection).await
    }
}

/// Writes changes of several kinds, a statement each, and takes everything back when one of them fails.
async fn write_in_transaction<M: ReadModel>(
    connection: &mut PgConnection,
    changes: &Changes<'_, M>,
    trusts_new: bool,
    advance: &Advance,
) -> Result<(), sqlx::Error> {
    let mut transaction = checkpoint::begin_advance(connection, advance).await?;
    match write(&mut transaction, advance.tables, changes, trusts_new, None).await {
        Ok(()) => transaction.commit().await,
        Err(error) => {
            transaction.rollback().await?;
            Err(error)
        }
    }
}

/// Writes what a batch changes, in one statement for each kind of change that there is.
async fn write<M: ReadModel>(
    connection: &mut PgConnection,
    tables: Generation,
    changes: &Changes<'_, M>,
    trusts_new: bool,
    advance: Option<&Advance>,
) -> Result<(), sqlx::Error> {
    let Changes { new, changed } = changes;
    if trusts_new && !new.is_empty() {
        M::insert(connection, tables, new, advance).await?;
    } else if !new.is_empty() {
        M::store(connection, tables, new, advance).await?;
    }
    if !changed.is_empty() {
        M::store(connection, tables, changed, advance).await?;
    }
    Ok(())
}

/// An error with all its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
