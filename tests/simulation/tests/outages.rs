//! Mailboxes and the appender while one kind of answer does not come, on paused time.

use std::collections::HashMap;
use std::error::Error;
use std::future::pending;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use daybook_command_svc::mailbox::{
    Envelope, HandleError, Identity, Item, MailboxMetrics, Mailboxes, NewBatch, OfBatch, ReadStream,
    Together, load_shares,
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

/// A batch under the key "batch".
fn batch(together: Together, content: i64, items: Vec<Item<Command>>) -> NewBatch<Command> {
    NewBatch {
        partition: 0,
        tenant_id: TENANT,
        identity: identity("batch", content),
        together,
        items,
    }
}

fn identity(key: &str, content: i64) -> Identity {
    Identity {
        key: key.into(),
        fingerprints: vec![content],
    }
}

/// Places an order of its own at this price, under a key of its own.
fn item(number: u128, unit_price_minor: i64) -> Item<Command> {
    let order_id = OrderId::from_uuid(Uuid::from_u128(number));
    let command = Command::Place {
        order_id,
        reference: None,
        customer_id: text("ada"),
        currency: text("EUR"),
        lines: vec![NewLine {
            unit_price_minor,
            ..line(2)
        }],
        shipping_address: None,
        expected_total_minor: None,
    };
    Item::Valid(Envelope {
        stream_id: order_id.to_string().into(),
        ..send(&format!("batch/{number:02}"), command)
    })
}

/// What a newer program makes of an item that an older one took: a rule refuses it, or it is not even valid.
fn refused(number: u128) -> Item<Command> {
    item(number, i64::MAX)
}

fn invalid(number: u128) -> Item<Command> {
    Item::Invalid(identity(&format!("batch/{number:02}"), 1))
}

#[tokio::test(start_paused = true)]
async fn a_batch_whose_answer_was_lost_is_answered_as_it_was_recorded_however_strict_the_next_program_is()
-> anyhow::Result<()> {
    for together in [Together::AllOrNothing, Together::EachByItself] {
        let log = Failing::new();
        let placed = vec![item(0, 1), item(1, 1), item(2, 1)];
        let first = log.process().handle_together(batch(together, 1, placed)).await?;
        for stricter in [
            vec![item(0, 1), refused(1), item(2, 1)],
            vec![item(0, 1), invalid(1), item(2, 1)],
            vec![refused(0), invalid(1), invalid(2)],
            vec![invalid(0), invalid(1), invalid(2)],
        ] {
            let again = batch(together, 1, stricter);
            let again = log.process().handle_together(again).await?;
            for (first, again) in first.iter().zip(&again) {
                let (OfBatch::Recorded(first), OfBatch::Recorded(again)) = (first, again) else {
                    panic!("{first:?} was recorded, and the answer is {again:?}")
                };
                assert!(again.is_replay && again.receipt == first.receipt, "{again:?}");
            }
        }
        assert_eq!(log.model().events.len(), 3);
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_batch_of_which_a_refusal_is_all_that_is_recorded_has_its_key_for_itself() -> anyhow::Result<()> {
    let log = Failing::new();
    let process = log.process();
    let together = Together::AllOrNothing;
    let first = || batch(together, 1, vec![item(0, 1), refused(1)]);
    for is_replay in [false, true] {
        let told = process.handle_together(first()).await?;
        let [OfBatch::NotDone, OfBatch::Recorded(refusal)] = &told[..] else {
            panic!("{told:?}")
        };
        assert!(
            refusal.receipt.rejection.is_some() && refusal.is_replay == is_replay,
            "{refusal:?}"
        );
    }
    for other in [vec![item(0, 1)], vec![invalid(0)]] {
        let told = process.handle_together(batch(together, 2, other)).await;
        assert!(matches!(told, Err(HandleError::KeyReused)), "{told:?}");
    }
    assert!(log.model().events.is_empty());
    // What is invalid leaves nothing behind.
    let log = Failing::new();
    let process = log.process();
    let told = process
        .handle_together(batch(together, 1, vec![item(0, 1), invalid(1)]))
        .await?;
    assert!(
        matches!(told[..], [OfBatch::NotDone, OfBatch::NotDone]),
        "{told:?}"
    );
    assert!(log.model().keys.is_empty());
    let told = process
        .handle_together(batch(together, 2, vec![item(0, 1)]))
        .await?;
    assert!(matches!(told[..], [OfBatch::Recorded(_)]), "{told:?}");
    Ok(())
}
