//! One call of `event_store.append`: a batch of chains in, a judgement on each out.
//!
//! The rules are written beside the function, in `migrations/event-store/0005_append.sql`.

use std::collections::HashMap;
use std::ops::Range;

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArgumentBuffer, PgArguments, PgHasArrayType, PgRow, PgTypeInfo};
use sqlx::query::Query;
use sqlx::{Encode, FromRow as _, PgConnection, Postgres, Row as _, Type};
use thiserror::Error;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::command::{Decision, Intent, NewCommand, NewEvent, Newest};
use crate::lineage::EpochId;
use crate::stored_key::StoredKey;

/// Why a batch was not appended. When the connection broke, the batch may have been committed all the same; sending it
/// again is safe, since every command has a key.
#[derive(Debug, Error)]
pub enum AppendError {
    /// Postgres cannot store some of this data; nothing was written.
    #[error("the database cannot store the batch")]
    Refused(#[source] sqlx::Error),
    /// The partition's lock was not free in time; nothing was written.
    #[error("the partition is locked")]
    Locked(#[source] sqlx::Error),
    /// The outcome is unknown: the answer was lost, took too long, or never came.
    #[error("the database did not answer the append")]
    Unknown(#[source] sqlx::Error),
    /// The log goes on in another epoch than its newest, on the timeline of a server that was promoted; nothing was written.
    #[error("the epoch of the log is over")]
    EpochOver(#[source] sqlx::Error),
    /// The log that this process reaches was superseded: there is a later epoch elsewhere. Nothing was written.
    #[error("the log was superseded: its epoch is {epoch}, and there is {seen}")]
    Superseded {
        /// The log's newest epoch.
        epoch: i32,
        /// The epoch that was met elsewhere.
        seen: i32,
    },
    /// A key was known, and is not any more: its time is over.
    #[error("the key is no longer remembered")]
    Forgotten,
    /// The batch broke a rule that this program sees to; nothing was written.
    #[error("the batch contradicts the log; this is a fault of the program")]
    Contradiction(#[source] sqlx::Error),
}

/// SQLSTATEs `unique_violation` (a position, a version or a key is there already, which the append had ruled out) and
/// `raise_exception` (the batch does not fit together).
const CONTRADICTIONS: [&str; 2] = ["23505", "P0001"];

/// SQLSTATE `lock_not_available`.
const LOCKED: &str = "55P03";

/// The SQLSTATE of an append whose epoch is over.
const EPOCH_OVER: &str = "DBK03";

/// SQLSTATE classes that speak of the data: data exceptions, integrity constraints, limits of the program (a row that is
/// too long for an index).
const DATA_CLASSES: [&str; 3] = ["22", "23", "54"];

impl From<sqlx::Error> for AppendError {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|error| error.code());
        match code.as_deref() {
            Some(code) if CONTRADICTIONS.contains(&code) => Self::Contradiction(error),
            Some(LOCKED) => Self::Locked(error),
            Some(EPOCH_OVER) => Self::EpochOver(error),
            Some(code) if DATA_CLASSES.iter().any(|class| code.starts_with(class)) => Self::Refused(error),
            _ => Self::Unknown(error),
        }
    }
}

/// The log's judgement on a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// The epoch that it was recorded in.
    pub epoch: EpochId,
    /// When it was committed, by the database's clock.
    pub recorded_at: OffsetDateTime,
    /// One for each chain, in the order of the batch.
    pub chains: Vec<JudgedChain>,
    /// The commands whose keys are known, by their index in the batch.
    pub known: Vec<usize>,
}

/// The log's judgement on a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JudgedChain {
    /// The chain's commands before this index of the batch are written.
    pub written_end: usize,
    /// The newest event of the stream before the batch.
    pub newest: Newest,
    /// The position of the chain's first event.
    pub first_position: u64,
}

pub(crate) const APPEND: &str = "
    SELECT epoch, generation, recorded_at, written_end, newest_id, newest_version, newest_position, first_position, known
    FROM event_store.append(
        $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, $24, $25,
        $26)
";

/// From how many commands of one tenant in a batch on it is cheaper to ask first up to where there is anything of the
/// tenant's, than to look up each key and each stream.
const MANY_COMMANDS: usize = 8;

/// The chains of a batch, as ranges of its commands: runs of writes on one stream, and each question and each command
/// of a group by itself.
#[must_use]
pub fn chains(commands: &[NewCommand]) -> Vec<Range<usize>> {
    let mut chains: Vec<Range<usize>> = Vec::with_capacity(commands.len());
    for (index, command) in commands.iter().enumerate() {
        match chains.last_mut() {
            Some(chain) if continues(&commands[chain.start], command) => chain.end = index + 1,
            _ => chains.push(index..index + 1),
        }
    }
    chains
}

fn continues(first: &NewCommand, next: &NewCommand) -> bool {
    matches!(first.intent, Intent::Write(_))
        && matches!(next.intent, Intent::Write(_))
        && first.stream_id == next.stream_id
        && first.tenant_id == next.tenant_id
        && first.group.is_none()
        && next.group.is_none()
}

/// Which of the chains of a batch stand together or not at all.
#[must_use]
pub fn groups(commands: &[NewCommand], chains: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    for (chain, range) in chains.iter().enumerate() {
        let group = commands[range.start].group;
        match groups.last_mut() {
            _ if group.is_none() => {}
            Some(last) if last.end == chain && commands[chains[last.start].start].group == group => {
                last.end = chain + 1;
            }
            _ => groups.push(chain..chain + 1),
        }
    }
    groups
}

/// Appends a batch in one call. Each key and each stream's chain may be in it only once.
///
/// # Errors
/// See [`AppendError`].
pub async fn append(
    connection: &mut PgConnection,
    partition: i32,
    commands: &[NewCommand],
) -> Result<Judgement, AppendError> {
    let chains = chains(commands);
    let row = bind(partition, commands, &chains).fetch_one(connection).await?;
    judgement(&row).map_err(AppendError::Unknown)
}

/// Lays the batch out as the function's arrays: one element per tenant, chain, command and event.
fn bind<'q>(
    partition: i32,
    commands: &'q [NewCommand],
    chains: &'q [Range<usize>],
) -> Query<'q, Postgres, PgArguments> {
    let heads = || chains.iter().map(|chain| &commands[chain.start]);
    let tenants = Tenants::of(commands);
    let layout = Layout::of(commands, chains);
    let groups = groups(commands, chains);
    sqlx::query(APPEND)
        .bind(partition)
        .bind(tenants.ids)
        .bind(tenants.last_keys)
        .bind(tenants.last_streams)
        .bind(
            heads()
                .map(|head| tenants.ordinals[&head.tenant_id])
                .collect::<Vec<_>>(),
        )
        .bind(heads().map(|head| &*head.stream_id).collect::<Vec<_>>())
        .bind(heads().map(|head| head.category).collect::<Vec<_>>())
        .bind(heads().map(decided_on).collect::<Vec<_>>())
        .bind(column(chains, |chain| number(chain.start + 1)))
        .bind(column(chains, |chain| match commands[chain.start].intent {
            Intent::Write(_) => number(chain.end + 1),
            Intent::Ask => number(chain.start + 1),
        }))
        .bind(layout.chain_events)
        .bind(column(&groups, |group| number(group.start + 1)))
        .bind(column(&groups, |group| number(group.end + 1)))
        .bind(layout.command_chains)
        .bind(column(commands, |command| StoredKey::new(&command.key)))
        .bind(column(commands, |command| command.fingerprints.first().copied()))
        .bind(column(commands, |command| {
            decision(command).map(|decision| JsonText(&decision.metadata))
        }))
        .bind(column(commands, |command| number(events(command).len())))
        .bind(layout.events_before)
        .bind(column(commands, |command| {
            decision(command).and_then(|decision| decision.rejection.as_deref().map(JsonText))
        }))
        .bind(layout.event_commands)
        .bind(layout.event_indexes)
        .bind(event_column(commands, |event| event.event_id))
        .bind(event_column(commands, |event| event.event_type))
        .bind(event_column(commands, |event| event.schema_version.cast_signed()))
        .bind(event_column(commands, |event| JsonText(&event.payload)))
}

/// One tenant's part of a batch.
struct OfTenant<'a> {
    commands: usize,
    last_key: StoredKey<'a>,
    last_stream: &'a str,
}

/// The columns that name the tenants of a batch, those with many commands first.
struct Tenants<'a> {
    ids: Vec<Uuid>,
    /// The last keys of the tenants with many commands.
    last_keys: Vec<StoredKey<'a>>,
    last_streams: Vec<&'a str>,
    /// Which place each tenant has, from 1.
    ordinals: HashMap<Uuid, i32>,
}

impl<'a> Tenants<'a> {
    fn of(commands: &'a [NewCommand]) -> Self {
        let mut by_id = HashMap::<Uuid, OfTenant<'a>>::new();
        for command in commands {
            let (key, stream) = (StoredKey::new(&command.key), &*command.stream_id);
            let tenant = by_id.entry(command.tenant_id).or_insert(OfTenant {
                commands: 0,
                last_key: key,
                last_stream: stream,
            });
            tenant.commands += 1;
            tenant.last_key = tenant.last_key.max(key);
            tenant.last_stream = tenant.last_stream.max(stream);
        }
        let mut tenants: Vec<_> = by_id.into_iter().collect();
        tenants.sort_by_key(|(_, tenant)| tenant.commands < MANY_COMMANDS);
        let many = || {
            tenants
                .iter()
                .map(|(_, tenant)| tenant)
                .take_while(|tenant| tenant.commands >= MANY_COMMANDS)
        };
        Self {
            last_keys: many().map(|tenant| tenant.last_key).collect(),
            last_streams: many().map(|tenant| tenant.last_stream).collect(),
            ids: column(&tenants, |(id, _)| *id),
            ordinals: tenants
                .iter()
                .zip(1..)
                .map(|((id, _), ordinal)| (*id, ordinal))
                .collect(),
        }
    }
}

/// The columns that say which command belongs to which chain, and which event to which command.
#[derive(Default)]
struct Layout {
    chain_events: Vec<i32>,
    command_chains: Vec<i32>,
    events_before: Vec<i32>,
    event_commands: Vec<i32>,
    event_indexes: Vec<i32>,
}

impl Layout {
    fn of(commands: &[NewCommand], chains: &[Range<usize>]) -> Self {
        let mut layout = Self::default();
        for (chain, range) in chains.iter().enumerate() {
            let mut index = 0;
            for command in range.clone() {
                layout.command_chains.push(number(chain + 1));
                layout.events_before.push(index);
                for _ in events(&commands[command]) {
                    layout.event_commands.push(number(command + 1));
                    layout.event_indexes.push(index);
                    index += 1;
                }
            }
            layout.chain_events.push(index);
        }
        layout
    }
}

fn decision(command: &NewCommand) -> Option<&Decision> {
    match &command.intent {
        Intent::Write(decision) => Some(decision),
        Intent::Ask => None,
    }
}

fn decided_on(command: &NewCommand) -> Option<Uuid> {
    decision(command).and_then(|decision| decision.decided_on)
}

pub(crate) fn events(command: &NewCommand) -> &[NewEvent] {
    decision(command).map_or(&[], |decision| &decision.events)
}

fn column<'a, S, T>(rows: &'a [S], value: impl Fn(&'a S) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

fn event_column<'a, T>(commands: &'a [NewCommand], value: impl Fn(&'a NewEvent) -> T) -> Vec<T> {
    commands.iter().flat_map(events).map(value).collect()
}

fn number(number: usize) -> i32 {
    i32::try_from(number).expect("a batch is bounded far below i32::MAX")
}

/// The numbers of `json` and `json[]`, the same in every Postgres (its `pg_type.dat`).
const JSON: Oid = Oid(114);
const JSON_ARRAY: Oid = Oid(199);

/// A JSON text on its way into a column of type `json`, which keeps it byte for byte; Postgres checks it.
struct JsonText<'a>(&'a str);

impl Type<Postgres> for JsonText<'_> {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(JSON)
    }
}

impl PgHasArrayType for JsonText<'_> {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(JSON_ARRAY)
    }
}

impl Encode<'_, Postgres> for JsonText<'_> {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }
}

fn judgement(row: &PgRow) -> Result<Judgement, sqlx::Error> {
    let ends: Vec<i32> = row.try_get("written_end")?;
    let ids: Vec<Option<Uuid>> = row.try_get("newest_id")?;
    let versions: Vec<i64> = row.try_get("newest_version")?;
    let positions: Vec<i64> = row.try_get("newest_position")?;
    let first_positions: Vec<i64> = row.try_get("first_position")?;
    let known: Option<Vec<i32>> = row.try_get("known")?;
    let chains = ends.iter().enumerate().map(|(chain, end)| JudgedChain {
        written_end: index(*end),
        newest: Newest {
            event_id: ids[chain],
            version: versions[chain].cast_unsigned(),
            position: positions[chain].cast_unsigned(),
        },
        first_position: first_positions[chain].cast_unsigned(),
    });
    Ok(Judgement {
        epoch: EpochId::from_row(row)?,
        recorded_at: row.try_get("recorded_at")?,
        chains: chains.collect(),
        known: known.unwrap_or_default().into_iter().map(index).collect(),
    })
}

/// From Postgres' counting, which starts at 1.
fn index(ordinal: i32) -> usize {
    usize::try_from(ordinal - 1).expect("ordinals start at 1")
}
