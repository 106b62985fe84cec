//! Mailboxes and the appender while one kind of answer does not come, on paused time.

use std::collections::HashMap;
use std::error::Error;
use std::future::pending;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use daybook_command_svc::mailbox::{
    Envelope, HandleError, MailboxMetrics, Mailboxes, ReadStream, load_shares,
};
use daybook_command_svc::partitions::{Partition, Partitions};
use daybook_domain::ids::OrderId;
use daybook_domain::order::{Command, NewLine, State};
use daybook_event_store::{
    AppendError, Appender, AppenderOptions, EpochId, Judgement, Log, Metadata, NewCommand, RecordedEvent,
    Remembered,
};
use daybook_simulation::meaning;
use daybook_simulation::model::{JudgedBy, Model};
use futures::FutureExt as _;
use futures::future::{BoxFuture, join, join_all};
use tokio::time::timeout;
use uuid::Uuid;

const TENANT: Uuid = Uuid::from_u128(1);

/// How long a call to the log takes that fails.
const FAILS_AFTER: Duration = Duration::from_secs(3);

/// A log that answers at once, but for the calls that are to fail.
#[derive(Clone)]
struct Failing(Arc<Inner>);

struct Inner {
    model: Mutex<Model>,
    /// How many of the next reads of receipts fail.
    receipts: AtomicU32,
    /// How many of the next reads of streams fail.
    streams: AtomicU32,
    /// The tenants whose reads of streams never end, and how many those are.
    hanging: Mutex<HashMap<Uuid, usize>>,
}

impl Failing {
    fn new() -> Self {
        Self(Arc::new(Inner {
            model: Mutex::new(Model::new(JudgedBy::EventId)),
            receipts: AtomicU32::new(0),
            streams: AtomicU32::new(0),
            hanging: Mutex::default(),
        }))
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        self.0.model.lock().expect("no test panics with it")
    }

    fn hanging(&self) -> MutexGuard<'_, HashMap<Uuid, usize>> {
        self.0.hanging.lock().expect("no test panics with it")
    }

    /// Counts a read that never ends, if it is one.
    fn hangs(&self, tenant_id: Uuid) -> bool {
        let mut hanging = self.hanging();
        let reads = hanging.get_mut(&tenant_id);
        reads.map(|reads| *reads += 1).is_some()
    }

    /// A process with a mailbox for each order.
    fn process(&self) -> Mailboxes<State> {
        let (appender, appending) = Appender::new(self.clone(), 0, AppenderOptions::default(), None);
        tokio::spawn(appending);
        let partition = Partition {
            streams: Arc::new(self.clone()),
            loads: load_shares(4),
            appender,
        };
        let partitions: Partitions = [partition].into_iter().collect();
        Mailboxes::new(partitions, usize::MAX, Arc::new(MailboxMetrics::default()))
    }
}

/// Takes one failure, if there is one left.
fn fails(left: &AtomicU32) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
        .is_ok()
}

impl Log for Failing {
    async fn append(&self, _partition: i32, commands: &[NewCommand]) -> Result<Judgement, AppendError> {
        Ok(self.model().append(commands))
    }

    async fn remembered(
        &self,
        _partition: i32,
        _epoch: EpochId,
        keys: &[(Uuid, Arc<str>)],
    ) -> Result<HashMap<usize, Remembered>, AppendError> {
        if fails(&self.0.receipts) {
            tokio::time::sleep(FAILS_AFTER).await;
            return Err(AppendError::Unknown(sqlx::Error::PoolTimedOut));
        }
        Ok(self.model().remembered(keys))
    }
}

impl ReadStream for Failing {
    fn read_page<'a>(
        &'a self,
        tenant_id: Uuid,
        _partition: i32,
        stream_id: &'a str,
        versions: RangeInclusive<u64>,
        limit: u32,
    ) -> BoxFuture<'a, Result<Vec<RecordedEvent>, Box<dyn Error + Send + Sync>>> {
        async move {
            if self.hangs(tenant_id) {
                pending::<()>().await;
            }
            if fails(&self.0.streams) {
                tokio::time::sleep(FAILS_AFTER).await;
                return Err("the read failed".into());
            }
            let (from, limit) = (*versions.start(), limit as usize);
            Ok(self.model().page(tenant_id, stream_id, from, limit))
        }
        .boxed()
    }
}

fn text<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a valid text")
}

fn order() -> OrderId {
    OrderId::from_uuid(Uuid::from_u128(7))
}

fn line(quantity: u32) -> NewLine {
    NewLine {
        sku: text("PEN"),
        quantity,
        unit_price_minor: 100,
    }
}

fn place() -> Command {
    Command::Place {
        order_id: order(),
        reference: None,
        customer_id: text("ada"),
        currency: text("EUR"),
        lines: vec![line(1)],
        shipping_address: None,
        expected_total_minor: None,
    }
}

fn add(quantity: u32) -> Command {
    Command::AddLine { line: line(quantity) }
}

/// A command for the order.
fn send(key: &str, command: Command) -> Envelope<Command> {
    let metadata = Metadata {
        idempotency_key: key.to_owned(),
        ..Metadata::default()
    };
    Envelope {
        partition: 0,
        tenant_id: TENANT,
        stream_id: order().to_string().into(),
        key: key.into(),
        fingerprints: vec![1],
        expected_version: None,
        metadata: metadata.encode(),
        request_bytes: 100,
        command,
    }
}

/// Another replica wrote, so one batch is decided at a time; and one command of the batch was recorded before.
#[tokio::test(start_paused = true)]
async fn an_aggregate_goes_on_while_a_receipt_cannot_be_read() -> anyhow::Result<()> {
    let log = Failing::new();
    let (one, other) = (log.process(), log.process());
    one.handle(send("place", place())).await?;
    other.handle(send("add", add(2))).await?;

    log.0.receipts.store(u32::MAX, Ordering::Relaxed);
    let new = timeout(FAILS_AFTER, one.handle(send("new", add(3))));
    let again = timeout(FAILS_AFTER, one.handle(send("add", add(2))));
    let (new, again) = join(new, again).await;
    assert!(again.is_err(), "its receipt cannot be read");
    assert_eq!(
        new??.receipt.stream_version, 3,
        "it waited for the receipt of another"
    );
    one.handle(send("next", add(4))).await?;

    log.0.receipts.store(0, Ordering::Relaxed);
    let again = one.handle(send("add", add(2))).await?;
    assert!(again.is_replay && again.receipt.stream_version == 2);
    meaning::log(&log.model().events)
}

/// What a known command was decided to write is in nobody's way, whether or not its receipt can be read.
#[tokio::test(start_paused = true)]
async fn the_right_version_is_taken_while_a_receipt_cannot_be_read() -> anyhow::Result<()> {
    for is_contended in [false, true] {
        let log = Failing::new();
        let one = log.process();
        one.handle(send("place", place())).await?;
        if is_contended {
            log.process().handle(send("add", add(2))).await?;
            // From now on one batch is decided at a time.
            let cut = one.handle_within(send("cut", add(9)).into(), 1).await;
            assert!(matches!(cut, Err(HandleError::Contended)), "{cut:?}");
        } else {
            one.handle(send("add", add(2))).await?;
        }

        log.0.receipts.store(u32::MAX, Ordering::Relaxed);
        let exact = Envelope {
            expected_version: Some(2),
            ..send("exact", add(3))
        };
        let again = timeout(FAILS_AFTER, one.handle(send("add", add(2))));
        let exact = timeout(FAILS_AFTER, one.handle(exact));
        let (again, exact) = join(again, exact).await;
        assert!(again.is_err(), "its receipt cannot be read");
        assert_eq!(exact??.receipt.stream_version, 3, "contended: {is_contended}");
        meaning::log(&log.model().events)?;
    }
    Ok(())
}

/// A load belongs to the mailbox: all callers wait for the same one.
#[tokio::test(start_paused = true)]
async fn a_load_that_fails_once_fails_nobody_who_still_waits() -> anyhow::Result<()> {
    let log = Failing::new();
    log.process().handle(send("place", place())).await?;

    log.0.streams.store(1, Ordering::Relaxed);
    let process = log.process();
    let commands = (1..=64).map(|number| process.handle(send(&format!("add-{number}"), add(number))));
    for answer in join_all(commands).await {
        answer?;
    }
    assert_eq!(log.model().events.len(), 65);

    // Nobody waits for the second read by then.
    log.0.streams.store(2, Ordering::Relaxed);
    let process = log.process();
    let gone = timeout(FAILS_AFTER / 2, process.handle(send("gone", add(1)))).await;
    tokio::time::sleep(FAILS_AFTER).await;
    assert!(gone.is_err());
    assert_eq!(
        log.0.streams.load(Ordering::Relaxed),
        1,
        "it was read again for nobody"
    );

    // A second failure in a row is told.
    log.0.streams.store(2, Ordering::Relaxed);
    let told = process.handle(send("told", add(1))).await;
    assert!(matches!(told, Err(HandleError::Load(_))), "{told:?}");
    meaning::log(&log.model().events)
}

/// Each tenant has begun as many loads as it may.
#[tokio::test(start_paused = true)]
async fn a_tenant_loads_while_the_loads_of_two_others_hang() -> anyhow::Result<()> {
    let log = Failing::new();
    log.process().handle(send("place", place())).await?;

    let others = [2, 3].map(Uuid::from_u128);
    log.hanging().extend(others.map(|tenant_id| (tenant_id, 0)));
    let process = log.process();
    for tenant_id in others {
        let loads = (1..=4).map(|number| {
            process.handle(Envelope {
                tenant_id,
                stream_id: format!("order-{number}").into(),
                ..send("add", add(2))
            })
        });
        let hang = timeout(FAILS_AFTER, join_all(loads)).await;
        assert!(hang.is_err(), "they answered: {hang:?}");
    }
    let reads = others.map(|tenant_id| log.hanging()[&tenant_id]);
    assert_eq!(reads, [2, 1], "each has half of the four places that is left");
    timeout(FAILS_AFTER, process.handle(send("add", add(2)))).await??;
    meaning::log(&log.model().events)
}
