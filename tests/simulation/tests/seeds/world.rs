//! The log and its network as the seed would have them: every answer may be delayed, lost or doubled.

use std::collections::HashMap;
use std::error::Error;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use daybook_command_svc::mailbox::ReadStream;
use daybook_event_store::{AppendError, Judgement, Log, NewCommand, RecordedEvent, Remembered};
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
const ZOMBIE_MAX: Duration = Duration::from_millis(200);

/// What happened in all worlds: a run proves nothing about what it never met.
#[derive(Debug, Default)]
pub(crate) struct Met {
    pub(crate) lost_before: AtomicU64,
    pub(crate) lost_after: AtomicU64,
    pub(crate) zombies: AtomicU64,
    pub(crate) doubled: AtomicU64,
    pub(crate) known_in_chains: AtomicU64,
    pub(crate) failed_loads: AtomicU64,
    pub(crate) cancelled: AtomicU64,
    pub(crate) refusals: AtomicU64,
    pub(crate) replays: AtomicU64,
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

    /// A server that works on an attempt long after its client gave it up.
    fn apply_later(&self, commands: &[NewCommand]) {
        let (world, commands, delay) = (self.clone(), commands.to_vec(), self.up_to(ZOMBIE_MAX));
        tokio::spawn(async move {
            sleep(delay).await;
            world.apply(&commands);
        });
    }
}

fn lost() -> AppendError {
    AppendError::Unknown(sqlx::Error::PoolTimedOut)
}

impl Log for World {
    async fn append(&self, _partition: i32, commands: &[NewCommand]) -> Result<Judgement, AppendError> {
        sleep(self.up_to(DELAY_MAX)).await;
        let met = self.met();
        if self.fault_one_in(12) {
            Met::count(&met.lost_before);
            sleep(ATTEMPT_TIMEOUT).await;
            return Err(lost());
        }
        if self.fault_one_in(12) {
            Met::count(&met.zombies);
            self.apply_later(commands);
            sleep(ATTEMPT_TIMEOUT).await;
            return Err(lost());
        }
        let judgement = self.apply(commands);
        if self.fault_one_in(12) {
            Met::count(&met.lost_after);
            sleep(ATTEMPT_TIMEOUT).await;
            return Err(lost());
        }
        if self.fault_one_in(12) {
            Met::count(&met.doubled);
            self.apply_later(commands);
        }
        sleep(self.up_to(DELAY_MAX)).await;
        Ok(judgement)
    }

    async fn remembered(
        &self,
        _partition: i32,
        _generation: Uuid,
        keys: &[(Uuid, Arc<str>)],
    ) -> Result<HashMap<usize, Remembered>, AppendError> {
        sleep(self.up_to(DELAY_MAX)).await;
        if self.fault_one_in(12) {
            return Err(lost());
        }
        Ok(self.model().remembered(keys))
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
