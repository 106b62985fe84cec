//! This process among the replicas of the projector: the table `read_model.replica`, and what this one is to work on.
//!
//! A replica lives as long as one session of its own does. It asks something over that session a few times a second, and
//! the server ends a session that has been silent for [`SILENCE_MAX`]: so a replica that was killed is gone at once, and
//! one that was stopped, or whose machine vanished, a moment later. Nothing is written to stay alive, so a snapshot that
//! somebody holds costs nothing here; and no clock is read, so none that jumps does any harm. (If the server's own clock is
//! set back in just that moment, its keepalive ends the session a little later.) It costs two short statements at each
//! look, however many replicas there are.
//!
//! A lease is good while its owner lives. What a replica sees of the others (`share`) tells it what to take and what to
//! give back; the fence decides.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use daybook_event_bus::Bus;
use daybook_event_bus::signal;
use daybook_postgres::{LOOKUP_TIMEOUT, within};
use futures::{FutureExt as _, Stream, StreamExt as _};
use sqlx::{FromRow, PgConnection};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::database::Connector;
use crate::projections;
use crate::sharing::{Member, Work, share};

/// How often a replica looks at the others, which is also its sign of life.
const LOOK_INTERVAL: Duration = Duration::from_millis(400);

/// How long a replica may be silent: how soon another one takes over from one that was stopped or whose machine vanished. (One
/// that was killed is gone at once.) Long enough for a machine that is so busy that it misses a few looks: to lose all leases
/// helps it least.
pub const SILENCE_MAX: Duration = Duration::from_secs(4);

/// The pause between a hint and the look for it: what else is freed in the same moment is seen as well.
const HINT_PAUSE: Duration = Duration::from_millis(20);

/// The pause between two looks for a hint, however many hints there are: whoever may publish can send any number.
const HINTED_LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The pause before a session that was lost is made again: how soon a database that is back is used.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

const JOIN: &str = "
    INSERT INTO read_model.replica (id, projections, partitions, pid, session_started_at)
    SELECT $1, $2, $3, a.pid, a.backend_start
    FROM pg_catalog.pg_stat_activity AS a
    WHERE a.pid = pg_catalog.pg_backend_pid()
";

const MEMBERS: &str = "
    SELECT r.id, r.projections, r.partitions, r.lives FROM read_model.replica_state AS r ORDER BY r.id
";

const WORK: &str = "
    SELECT f.projection, f.partition, f.owner, f.generation = p.live_generation AS is_live
    FROM read_model.projection AS p
    JOIN read_model.fence AS f ON f.projection = p.name
    WHERE f.generation = p.live_generation
       OR EXISTS (SELECT FROM read_model.rebuild AS r
                  WHERE r.projection = f.projection AND r.generation = f.generation AND r.status = 'running')
    ORDER BY f.projection, f.partition
";

const FORGET: &str = "
    DELETE FROM read_model.replica AS r
    WHERE r.id IN (SELECT s.id FROM read_model.replica_state AS s WHERE NOT s.lives)
";

const LEAVE: &str = "DELETE FROM read_model.replica AS r WHERE r.id = $1";

/// Every SQL statement of this file, by name, for the test that prepares each against the migrated schema.
pub const STATEMENTS: &[(&str, &str)] = &[
    ("join", JOIN),
    ("members", MEMBERS),
    ("work", WORK),
    ("forget", FORGET),
    ("leave", LEAVE),
];

/// The work assigned to this replica.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Duties {
    /// This replica, as the owner of leases.
    pub owner: Uuid,
    /// The live tables: the partitions of each projection.
    pub live: BTreeMap<String, BTreeSet<i32>>,
    /// The live tables that others are to work on, while the lease is recorded as this replica's.
    pub surplus: BTreeMap<String, BTreeSet<i32>>,
    /// The projections with a rebuild that nobody else works on.
    pub rebuilds: BTreeSet<String>,
}

impl Duties {
    /// In whose name to hold the lease on a projection's live tables; `None` when that is not this replica's business.
    pub fn owner_of_live(&self, projection: &str, partition: i32) -> Option<Uuid> {
        let partitions = self.live.get(projection)?;
        partitions.contains(&partition).then_some(self.owner)
    }

    /// In whose name the lease on a projection's live tables is recorded; `None` when it is not, or rightly so.
    pub fn owner_of_surplus(&self, projection: &str, partition: i32) -> Option<Uuid> {
        let partitions = self.surplus.get(projection)?;
        partitions.contains(&partition).then_some(self.owner)
    }

    /// In whose name to run a projection's rebuild, when there is one to be run.
    pub fn owner_of_rebuild(&self, projection: &str) -> Option<Uuid> {
        self.rebuilds.contains(projection).then_some(self.owner)
    }
}

#[derive(FromRow)]
struct MemberRow {
    id: Uuid,
    projections: Vec<String>,
    partitions: Vec<i32>,
    lives: bool,
}

#[derive(FromRow)]
struct WorkRow {
    projection: String,
    partition: i32,
    owner: Option<Uuid>,
    is_live: bool,
}

/// Takes part until told to stop, and tells the workers, who are there for `partitions`, through `duties` what they are to
/// do. `freed` says that it is worth looking now, `reconnects` that the session leads to the wrong server. Without the database the workers go on with what they have: whether they
/// may, the fence decides.
pub async fn run(
    connector: Connector,
    bus: Bus,
    partitions: Vec<i32>,
    duties: watch::Sender<Duties>,
    mut freed: impl Stream<Item = ()> + Unpin,
    mut reconnects: watch::Receiver<Option<std::time::Instant>>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    while !shutdown.is_cancelled() {
        reconnects.mark_unchanged();
        let taking_part = take_part(&connector, &bus, &partitions, &duties, &mut freed, &shutdown);
        let taken_part = tokio::select! {
            taken_part = taking_part => taken_part,
            Ok(()) = reconnects.changed() => continue,
        };
        if let Err(error) = taken_part {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the session that shows that this replica lives is lost, and is made again"
            );
            let pause = tokio::time::sleep(RETRY_PAUSE);
            let _ = shutdown.run_until_cancelled(pause).await;
        }
    }
    Ok(())
}

/// Waits, but not for longer than the duties are those that were seen last.
pub(crate) async fn with_same_duties(duties: &watch::Receiver<Duties>, wait: impl Future<Output = ()>) {
    let mut duties = duties.clone();
    tokio::select! {
        // When the process stops, nobody tells of new ones.
        Ok(()) = duties.changed() => {}
        () = wait => {}
    }
}

/// Waits until this replica has lost its session and come back as another one: what it had begun before is void.
pub(crate) fn returned(mut duties: watch::Receiver<Duties>) -> impl Future<Output = ()> {
    let owner = duties.borrow().owner;
    async move {
        // When the process stops, nobody tells of new ones.
        if duties.wait_for(|duties| duties.owner != owner).await.is_err() {
            std::future::pending().await
        }
    }
}

/// Takes part over one session.
async fn take_part(
    connector: &Connector,
    bus: &Bus,
    partitions: &[i32],
    duties: &watch::Sender<Duties>,
    freed: &mut (impl Stream<Item = ()> + Unpin),
    shutdown: &CancellationToken,
) -> Result<(), sqlx::Error> {
    let mut session = connector.connect_as_replica(SILENCE_MAX).await?;
    let own = Uuid::now_v7();
    within(LOOKUP_TIMEOUT, join(&mut session, own, partitions)).await?;
    tracing::info!(replica.id = %own, "joined the replicas");
    let mut hinted_look_at = None;
    while !shutdown.is_cancelled() {
        let seen = within(LOOKUP_TIMEOUT, look(&mut session, own)).await?;
        duties.send_if_modified(|duties| std::mem::replace(duties, seen.clone()) != seen);
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            Some(()) = freed.next() => {
                let look_at = look_for_hint_at(Instant::now(), hinted_look_at);
                let _ = shutdown.run_until_cancelled(tokio::time::sleep_until(look_at)).await;
                while let Some(Some(())) = freed.next().now_or_never() {}
                hinted_look_at = Some(look_at);
            }
        }
    }
    // Its leases are free from now on. A batch that is under way is committed, or refused by the fence.
    within(LOOKUP_TIMEOUT, sqlx::query(LEAVE).bind(own).execute(&mut session)).await?;
    signal::announce_freed(bus).await;
    Ok(())
}

/// When to look for a hint that comes `now`.
fn look_for_hint_at(now: Instant, last_hinted_look: Option<Instant>) -> Instant {
    let soonest = last_hinted_look.map_or(now, |last| last + HINTED_LOOK_INTERVAL);
    soonest.max(now + HINT_PAUSE)
}

/// Enters a replica that lives as long as this session, and works on these partitions.
pub async fn join(session: &mut PgConnection, id: Uuid, partitions: &[i32]) -> Result<(), sqlx::Error> {
    let names: Vec<&str> = projections::ALL
        .iter()
        .map(|projection| projection.name)
        .collect();
    let joining = sqlx::query(JOIN).bind(id).bind(names).bind(partitions);
    joining.execute(session).await.map(drop)
}

/// The work assigned to a replica now. An error when it is not among the replicas any more.
pub async fn look(session: &mut PgConnection, own: Uuid) -> Result<Duties, sqlx::Error> {
    let rows: Vec<MemberRow> = sqlx::query_as(MEMBERS).fetch_all(&mut *session).await?;
    if rows.iter().any(|member| !member.lives) {
        sqlx::query(FORGET).execute(&mut *session).await?;
    }
    let members: Vec<Member> = rows
        .into_iter()
        .filter(|member| member.lives)
        .map(|row| Member {
            id: row.id,
            projections: row.projections,
            partitions: row.partitions,
        })
        .collect();
    if !members.iter().any(|member| member.id == own) {
        return Err(sqlx::Error::RowNotFound);
    }
    let rows: Vec<WorkRow> = sqlx::query_as(WORK).fetch_all(session).await?;
    Ok(duties(own, &members, rows))
}

fn duties(own: Uuid, members: &[Member], rows: Vec<WorkRow>) -> Duties {
    let is_anothers = |owner: Option<Uuid>| {
        owner.is_some_and(|owner| owner != own && members.iter().any(|member| member.id == owner))
    };
    let (live, rebuilt): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.is_live);
    let taken: BTreeSet<&str> = rebuilt
        .iter()
        .filter(|row| is_anothers(row.owner))
        .map(|row| row.projection.as_str())
        .collect();
    let rebuilds = rebuilt
        .iter()
        .filter(|row| !taken.contains(row.projection.as_str()))
        .map(|row| row.projection.clone())
        .collect();
    let work: Vec<Work> = live
        .into_iter()
        .map(
            |WorkRow {
                 projection,
                 partition,
                 owner,
                 ..
             }| Work {
                projection,
                partition,
                owner,
            },
        )
        .collect();
    let mut duties = Duties {
        owner: own,
        live: by_projection(share(own, members, &work)),
        surplus: BTreeMap::new(),
        rebuilds,
    };
    let is_surplus = |work: &&Work| {
        work.owner == Some(own) && duties.owner_of_live(&work.projection, work.partition).is_none()
    };
    duties.surplus = by_projection(work.iter().filter(is_surplus));
    duties
}

fn by_projection<'w>(work: impl IntoIterator<Item = &'w Work>) -> BTreeMap<String, BTreeSet<i32>> {
    let mut partitions: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
    for work in work {
        let of_projection = partitions.entry(work.projection.clone()).or_default();
        of_projection.insert(work.partition);
    }
    partitions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_followed_at_once_and_a_flood_of_them_a_few_times_a_second() {
        let start = Instant::now();
        let after = |millis| start + Duration::from_millis(millis);
        assert_eq!(look_for_hint_at(start, None), after(20));
        assert_eq!(look_for_hint_at(after(21), Some(after(20))), after(120));
        assert_eq!(look_for_hint_at(after(110), Some(after(20))), after(130));
        assert_eq!(look_for_hint_at(after(1_000), Some(after(20))), after(1_020));
    }

    #[tokio::test(start_paused = true)]
    async fn new_duties_end_a_wait_once_and_the_end_of_the_process_does_not() {
        let (tell, mut duties) = watch::channel(Duties::default());
        tell.send_modify(|duties| duties.owner = Uuid::from_u128(1));
        with_same_duties(&duties, std::future::pending()).await;
        duties.mark_unchanged();
        drop(tell);
        let started = Instant::now();
        with_same_duties(&duties, tokio::time::sleep(LOOK_INTERVAL)).await;
        assert!(started.elapsed() >= LOOK_INTERVAL);
    }
}
