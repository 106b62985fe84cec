//! The log and its network as the seed would have them: every request and answer may be delayed, lost or doubled.
//!
//! What holds of them is what `PostgresLog` sees to: an attempt that was given up may be committed late, but only before
//! the same process begins the next one.

use std::collections::HashMap;
use std::error::Error;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use daybook_command_svc::mailbox::ReadStream;
use daybook_event_store::{AppendError, EpochId, Judgement, Log, NewCommand, RecordedEvent, Remembered};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::sleep;
use uuid::Uuid;

use daybook_simulation::model::{JudgedBy, Model};

/// The longest way to the log and back, each.
const DELAY_MAX: Duration = Duration::from_millis(8);

/// How long an attempt to append may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(30);

/// How long a server may still work on an attempt that was given up.
const LATE_MAX: Duration = Duration::from_millis(200);

/// What happened in all worlds: a run proves nothing about what it never met.
#[derive(Debug, Default)]
pub(crate) struct Met {
    pub(crate) lost_before: AtomicU64,
    pub(crate) locked: AtomicU64,
    pub(crate) lost_after: AtomicU64,
    pub(crate) late: AtomicU64,
    pub(crate) doubled: AtomicU64,
    pub(crate) known_in_chains: AtomicU64,
    pub(crate) failed_loads: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) refusals: AtomicU64,
    pub(crate) replays: AtomicU64,
    pub(crate) not_recorded: AtomicU64,
    pub(crate) unknown: AtomicU64,
}

impl Met {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// One seed's world.
#[derive(Clone)]
pub(crate) struct World(Arc<Inner>);

struct Inner {
    model: Mutex<Model>,
    random: Mutex<StdRng>,
    has_faults: AtomicBool,
    met: Arc<Met>,
}

impl World {
    pub(crate) fn new(seed: u64, judged_by: JudgedBy, met: Arc<Met>) -> Self {
        Self(Arc::new(Inner {
            model: Mutex::new(Model::new(judged_by)),
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            has_faults: AtomicBool::new(true),
            met,
        }))
    }

    /// A process's session with the log.
    pub(crate) fn session(&self) -> Session {
        Session {
            world: self.clone(),
            late: Arc::default(),
        }
    }

    /// The position of the newest event.
    pub(crate) fn head(&self) -> u64 {
        self.model().events.len() as u64
    }

    pub(crate) fn model(&self) -> MutexGuard<'_, Model> {
        self.0.model.lock().expect("no test panics with it")
    }

    pub(crate) fn met(&self) -> &Met {
        &self.0.met
    }

    pub(crate) fn below(&self, bound: u32) -> u32 {
        self.0
            .random
            .lock()
            .expect("no test panics with it")
            .random_range(0..bound)
    }

    pub(crate) fn one_in(&self, number: u32) -> bool {
        self.below(number) == 0
    }

    pub(crate) fn up_to(&self, longest: Duration) -> Duration {
        let micros = u32::try_from(longest.as_micros()).expect("delays are short");
        Duration::from_micros(u64::from(self.below(micros)))
    }

    /// From now on every answer comes.
    pub(crate) fn heal(&self) {
        self.0.has_faults.store(false, Ordering::Relaxed);
    }

    fn fault_one_in(&self, number: u32) -> bool {
        self.0.has_faults.load(Ordering::Relaxed) && self.one_in(number)
    }

    fn apply(&self, commands: &[NewCommand]) -> Judgement {
        let judgement = self.model().append(commands);
        if !judgement.known.is_empty() && commands.len() > 1 {
            Met::count(&self.met().known_in_chains);
        }
        judgement
    }
}

/// One process's session with the log.
pub(crate) struct Session {
    world: World,
    /// An attempt that the server still works on, until it is committed or ended.
    late: Arc<Mutex<Option<Vec<NewCommand>>>>,
}

impl Session {
    /// Lets the server work on an attempt for some time more.
    fn apply_later(&self, commands: &[NewCommand]) {
        *self.late.lock().expect("no test panics with it") = Some(commands.to_vec());
        let (world, late, delay) = (
            self.world.clone(),
            Arc::clone(&self.late),
            self.world.up_to(LATE_MAX),
        );
        tokio::spawn(async move {
            sleep(delay).await;
            let late = late.lock().expect("no test panics with it").take();
            late.map(|commands| world.apply(&commands));
        });
    }

    /// Ends what is late: it is committed by now, or never.
    fn end_late(&self) {
        let late = self.late.lock().expect("no test panics with it").take();
        if let Some(commands) = late
            && self.world.one_in(2)
        {
            self.world.apply(&commands);
        }
    }
}

fn lost() -> AppendError {
    AppendError::Unknown(sqlx::Error::PoolTimedOut)
}

impl Log for Session {
    async fn append(&self, _partition: i32, commands: &[NewCommand]) -> Result<Judgement, AppendError> {
        let (world, met) = (&self.world, self.world.met());
        sleep(world.up_to(DELAY_MAX)).await;
        if world.fault_one_in(12) {
            Met::count(&met.lost_before);
            sleep(ATTEMPT_TIMEOUT).await;
            return Err(lost());
        }
        self.end_late();
        if world.fault_one_in(12) {
            Met::count(&met.locked);
            return Err(AppendError::Locked(sqlx::Error::PoolTimedOut));
        }
        if world.fault_one_in(12) {
            Met::count(&met.late);
            self.apply_later(commands);
            sleep(ATTEMPT_TIMEOUT).await;
            return Err(lost());
        }
        let judgement = world.apply(commands);
        if world.fault_one_in(12) {
            Met::count(&met.lost_after);
            sleep(ATTEMPT_TIMEOUT).await;
            return Err(lost());
        }
        if world.fault_one_in(12) {
            Met::count(&met.doubled);
            self.apply_later(commands);
        }
        sleep(world.up_to(DELAY_MAX)).await;
        Ok(judgement)
    }

    async fn remembered(
        &self,
        _partition: i32,
        _epoch: EpochId,
        keys: &[(Uuid, Arc<str>)],
    ) -> Result<HashMap<usize, Remembered>, AppendError> {
        sleep(self.world.up_to(DELAY_MAX)).await;
        if self.world.fault_one_in(12) {
            return Err(lost());
        }
        Ok(self.world.model().remembered(keys))
    }
}

impl ReadStream for World {
    fn read_page<'a>(
        &'a self,
        tenant_id: Uuid,
        _partition: i32,
        stream_id: &'a str,
        versions: RangeInclusive<u64>,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<RecordedEvent>, Box<dyn Error + Send + Sync>>> {
        async move {
            sleep(self.up_to(DELAY_MAX)).await;
            if self.fault_one_in(20) {
                Met::count(&self.met().failed_loads);
                return Err("the read was lost".into());
            }
            let page = self
                .model()
                .page(tenant_id, stream_id, *versions.start(), limit as usize);
            sleep(self.up_to(DELAY_MAX)).await;
            Ok(page)
        }
        .boxed()
    }
}
