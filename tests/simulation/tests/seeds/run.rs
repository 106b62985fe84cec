//! One seed: several processes, their callers, and what each of them was told.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::ensure;
use daybook_command_svc::mailbox::{
    Envelope, HandleError, Identity, Item, MailboxMetrics, Mailboxes, NewBatch, OfBatch, Outcome, Together,
    load_shares,
};
use daybook_command_svc::partitions::{Partition, Partitions};
use daybook_domain::ids::{CustomerId, OrderId, PaymentId, Reason, Sku};
use daybook_domain::money::{Currency, Money};
use daybook_domain::order::{self, Command, NewLine};
use daybook_event_store::{Appender, AppenderOptions, BatchLimits, Metadata};
use daybook_simulation::model::JudgedBy;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::judge;
use crate::world::{Met, World};

pub(crate) const TENANT: Uuid = Uuid::from_u128(1);

/// Within this time callers begin.
const BEGIN_WITHIN: Duration = Duration::from_millis(60);

/// How often a caller sends a command, at the most.
const SENDS_MAX: u32 = 4;

/// An answer that takes longer never comes.
const ANSWER_WITHIN: Duration = Duration::from_secs(600);

/// How long after the last fault nothing of it is left.
const HEALED_WITHIN: Duration = Duration::from_secs(5);

/// A command as a caller sends it, again and again under one key.
#[derive(Debug, Clone)]
pub(crate) struct Sent {
    pub(crate) key: Arc<str>,
    pub(crate) order: OrderId,
    pub(crate) command: Command,
    pub(crate) expected_version: Option<u64>,
}

impl Sent {
    /// Other content gives another fingerprint. The order's id is not part of it where the service makes it.
    pub(crate) fn fingerprint(&self) -> i64 {
        let mut hash = DefaultHasher::new();
        match &self.command {
            Command::Place { lines, .. } => format!("{lines:?}").hash(&mut hash),
            other => format!("{} {other:?}", self.order).hash(&mut hash),
        }
        self.expected_version.hash(&mut hash);
        hash.finish().cast_signed()
    }

    fn envelope(&self) -> Envelope<Command> {
        let metadata = Metadata {
            idempotency_key: self.key.to_string(),
            ..Metadata::default()
        };
        Envelope {
            partition: 0,
            tenant_id: TENANT,
            stream_id: self.order.to_string().into(),
            key: Arc::clone(&self.key),
            fingerprints: vec![self.fingerprint()],
            expected_version: self.expected_version,
            metadata: metadata.encode(),
            request_bytes: 100,
            command: self.command.clone(),
        }
    }
}

/// Commands that are sent together, again and again under the same keys.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    pub(crate) key: Arc<str>,
    pub(crate) together: Together,
    pub(crate) items: Vec<Sent>,
}

impl Batch {
    fn to_record(&self) -> NewBatch<Command> {
        let items = self.items.iter().map(|sent| Item::Valid(sent.envelope()));
        NewBatch {
            partition: 0,
            tenant_id: TENANT,
            identity: Identity {
                key: Arc::clone(&self.key),
                fingerprints: vec![1],
            },
            together: self.together,
            items: items.collect(),
        }
    }
}

/// What came of one send.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) sent: Sent,
    /// `None` when the caller went away.
    pub(crate) answer: Option<Result<Outcome, HandleError>>,
    /// The newest position when it was sent and when it was answered.
    pub(crate) head: RangeInclusive<u64>,
}

impl Told {
    /// Whether the caller was told that nothing was recorded.
    pub(crate) fn is_refused(&self) -> bool {
        use HandleError::{Contended, KeyReused, NotAdmitted, NotFound, VersionConflict};
        matches!(
            self.answer,
            Some(Err(VersionConflict { .. }
                | KeyReused
                | NotFound
                | NotAdmitted(_)
                | Contended))
        )
    }

    fn is_known(&self) -> bool {
        matches!(self.answer, Some(Ok(_))) || self.is_refused()
    }

    fn count(&self, met: &Met) {
        match &self.answer {
            None => Met::count(&met.cancelled),
            Some(Ok(outcome)) => {
                if outcome.is_replay {
                    Met::count(&met.replays);
                }
                if outcome.receipt.rejection.is_some() {
                    Met::count(&met.refusals);
                }
            }
            Some(Err(_)) if self.is_refused() => Met::count(&met.not_recorded),
            Some(Err(_)) => Met::count(&met.unknown),
        }
    }
}

/// Those who send commands.
#[derive(Clone)]
struct Callers {
    world: World,
    processes: Arc<[Mailboxes<order::State>]>,
    told: Arc<Mutex<Vec<Told>>>,
}

/// Runs one seed and judges what it leaves.
///
/// # Errors
/// What is wrong with it.
pub(crate) async fn seed(seed: u64, judged_by: JudgedBy, met: &Arc<Met>) -> anyhow::Result<judge::Digest> {
    let world = World::new(seed, judged_by, Arc::clone(met));
    let mut appending = JoinSet::new();
    let processes = (0..2 + world.below(2)).map(|_| process(&world, &mut appending));
    let callers = Callers {
        processes: processes.collect(),
        world: world.clone(),
        told: Arc::default(),
    };
    let orders: Vec<OrderId> = (1..=1 + u128::from(world.below(2)))
        .map(|number| OrderId::from_uuid(Uuid::from_u128(number)))
        .collect();
    let (unknown, batches) = callers.call(&orders).await?;

    // Whatever happened, everybody who asks is answered once answers come, and each process goes on.
    world.heal();
    sleep(HEALED_WITHIN).await;
    for sent in unknown {
        let is_known = callers.send(callers.any(), &sent, None).await?;
        ensure!(is_known, "what became of {} is not known after healing", sent.key);
    }
    for batch in &batches {
        let is_known = callers.send_batch(callers.any(), batch, None).await?;
        ensure!(is_known, "what became of {batch:?} is not known after healing");
    }
    for (process, order) in
        (0..callers.processes.len()).flat_map(|one| orders.iter().map(move |id| (one, *id)))
    {
        let sent = Sent {
            key: format!("confirm-{process}-{order}").into(),
            order,
            command: Command::Confirm,
            expected_version: None,
        };
        let is_known = callers.send(process, &sent, None).await?;
        ensure!(is_known, "process {process} does not go on after healing");
    }
    let Callers { processes, told, .. } = callers;
    drop(processes);
    while let Some(ended) = appending.join_next().await {
        ended?;
    }
    let told = std::mem::take(&mut *told.lock().unwrap_or_else(PoisonError::into_inner));
    judge::judge(&world.model(), &told, &batches)
}

fn process(world: &World, appending: &mut JoinSet<()>) -> Mailboxes<order::State> {
    let options = AppenderOptions {
        commands_max: 128,
        bytes_max: 1 << 20,
        batch: BatchLimits {
            commands_max: 1 + world.below(6) as usize,
            ..AppenderOptions::default().batch
        },
        retry_for: Duration::from_millis(u64::from(world.below(300))),
        ..AppenderOptions::default()
    };
    let (appender, task) = Appender::new(world.session(), 0, options, None);
    appending.spawn(task);
    let partition = Partition {
        streams: Arc::new(world.clone()),
        loads: load_shares(2),
        appender,
    };
    let partitions: Partitions = [partition].into_iter().collect();
    Mailboxes::new(partitions, usize::MAX, Arc::new(MailboxMetrics::default()))
}

impl Callers {
    /// Has callers send commands to whichever process they like, go away, and send again. What is left are commands whose
    /// callers gave up without knowing what became of them; and the batches, known or not.
    async fn call(&self, orders: &[OrderId]) -> anyhow::Result<(Vec<Sent>, Vec<Batch>)> {
        let world = &self.world;
        let mut sent_before: Vec<Sent> = Vec::new();
        let mut calls = JoinSet::new();
        for number in 0..8 + world.below(16) {
            let sent = match world.below(6) {
                0 if !sent_before.is_empty() => again(world, &sent_before, orders),
                _ => new(world, orders, number),
            };
            sent_before.push(sent.clone());
            let begin = world.up_to(BEGIN_WITHIN);
            calls.spawn(self.clone().send_until_known(sent, begin));
        }
        let batches: Vec<Batch> = (0..world.below(3))
            .map(|number| batch(world, orders, number))
            .collect();
        for batch in &batches {
            let begin = world.up_to(BEGIN_WITHIN);
            calls.spawn(self.clone().send_batch_until_known(batch.clone(), begin));
        }
        let mut unknown = Vec::new();
        while let Some(called) = calls.join_next().await {
            unknown.extend(called??);
        }
        Ok((unknown, batches))
    }

    /// Sends a batch until there is an answer, or gives up.
    async fn send_batch_until_known(self, batch: Batch, begin: Duration) -> anyhow::Result<Option<Sent>> {
        sleep(begin).await;
        for _ in 0..SENDS_MAX {
            let patience = self
                .world
                .one_in(4)
                .then(|| self.world.up_to(Duration::from_millis(40)));
            if self.send_batch(self.any(), &batch, patience).await? {
                break;
            }
        }
        Ok(None)
    }

    /// Sends a command until there is an answer, or gives up.
    async fn send_until_known(self, sent: Sent, begin: Duration) -> anyhow::Result<Option<Sent>> {
        sleep(begin).await;
        for _ in 0..SENDS_MAX {
            let patience = self
                .world
                .one_in(4)
                .then(|| self.world.up_to(Duration::from_millis(40)));
            if self.send(self.any(), &sent, patience).await? {
                return Ok(None);
            }
            if patience.is_some() && self.world.one_in(2) {
                break;
            }
        }
        Ok(Some(sent))
    }

    fn any(&self) -> usize {
        let processes = u32::try_from(self.processes.len()).expect("there are few");
        self.world.below(processes) as usize
    }

    /// Sends a command to a process and notes what it is told; whether that tells what became of it.
    async fn send(&self, process: usize, sent: &Sent, patience: Option<Duration>) -> anyhow::Result<bool> {
        let asked_at = self.world.head();
        let handled = self.processes[process].handle(sent.envelope());
        let answer = timeout(patience.unwrap_or(ANSWER_WITHIN), handled).await.ok();
        ensure!(
            answer.is_some() || patience.is_some(),
            "{} was never answered",
            sent.key
        );
        let told = Told {
            sent: sent.clone(),
            answer,
            head: asked_at..=self.world.head(),
        };
        told.count(self.world.met());
        let is_known = told.is_known();
        self.told
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(told);
        Ok(is_known)
    }
}

impl Callers {
    /// Sends a batch to a process and notes what each of its commands is told; whether that tells what became of all.
    async fn send_batch(
        &self,
        process: usize,
        batch: &Batch,
        patience: Option<Duration>,
    ) -> anyhow::Result<bool> {
        let asked_at = self.world.head();
        let handled = self.processes[process].handle_together(batch.to_record());
        let answer = timeout(patience.unwrap_or(ANSWER_WITHIN), handled).await.ok();
        ensure!(
            answer.is_some() || patience.is_some(),
            "{batch:?} was never answered"
        );
        let head = asked_at..=self.world.head();
        let mut is_known = true;
        for (index, sent) in batch.items.iter().enumerate() {
            let answer = answer.as_ref().map(|answer| match answer {
                Ok(outcomes) => match &outcomes[index] {
                    OfBatch::Recorded(outcome) => Ok(outcome.clone()),
                    OfBatch::Refused(error) => Err(error.clone()),
                    // Nothing was recorded for it.
                    OfBatch::NotDone => Err(HandleError::Contended),
                },
                Err(error) => Err(error.clone()),
            });
            let told = Told {
                sent: sent.clone(),
                answer,
                head: head.clone(),
            };
            told.count(self.world.met());
            is_known &= told.is_known();
            self.told
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(told);
        }
        Ok(is_known)
    }
}

/// Orders that are placed together: new ones, and perhaps one that others place, too.
fn batch(world: &World, orders: &[OrderId], number: u32) -> Batch {
    let shared = world.one_in(2).then(|| orders[0]);
    let first = u128::from(1_000 + 10 * number);
    let new =
        (first..first + 1 + u128::from(world.below(3))).map(|id| OrderId::from_uuid(Uuid::from_u128(id)));
    let sent = |(index, order): (u32, OrderId)| Sent {
        key: format!("batch-{number}-{index}").into(),
        order,
        command: place(order, index),
        expected_version: None,
    };
    Batch {
        key: format!("batch-{number}").into(),
        together: match world.one_in(2) {
            true => Together::AllOrNothing,
            false => Together::EachByItself,
        },
        items: (0..).zip(new.chain(shared)).map(sent).collect(),
    }
}

fn new(world: &World, orders: &[OrderId], number: u32) -> Sent {
    let order = orders[world.below(u32::try_from(orders.len()).expect("there are few")) as usize];
    Sent {
        key: format!("key-{number}").into(),
        order,
        command: command(world, order, number),
        expected_version: world.one_in(6).then(|| u64::from(world.below(5))),
    }
}

/// A command that was sent before: the same, or one that opens another order, or, wrongly, with other content.
fn again(world: &World, sent_before: &[Sent], orders: &[OrderId]) -> Sent {
    let index = world.below(u32::try_from(sent_before.len()).expect("there are few"));
    let mut sent = sent_before[index as usize].clone();
    if let Command::Place { order_id, .. } = &mut sent.command {
        sent.order = *orders.last().expect("there is an order");
        *order_id = sent.order;
    } else if world.one_in(4) {
        sent.expected_version = Some(77);
    }
    sent
}

fn text<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a valid text")
}

fn line(number: u32) -> NewLine {
    NewLine {
        sku: text::<Sku>("PEN"),
        quantity: 1 + number % 3,
        unit_price_minor: 100,
    }
}

fn place(order_id: OrderId, number: u32) -> Command {
    Command::Place {
        order_id,
        reference: None,
        customer_id: text::<CustomerId>("ada"),
        currency: text::<Currency>("EUR"),
        lines: vec![line(number)],
        shipping_address: None,
        expected_total_minor: None,
    }
}

fn command(world: &World, order_id: OrderId, number: u32) -> Command {
    match world.below(14) {
        0..3 => place(order_id, number),
        3..8 => Command::AddLine { line: line(number) },
        8..10 => Command::ChangeQuantity {
            line_number: 1 + world.below(3),
            quantity: 1 + world.below(9),
        },
        10 => Command::RemoveLine {
            line_number: 1 + world.below(3),
        },
        11 => Command::Cancel {
            reason: text::<Reason>("no more"),
        },
        _ => Command::RecordPayment {
            payment_id: text::<PaymentId>(&format!("pay-{number}")),
            amount: Money::new(1 + i64::from(world.below(200)), text::<Currency>("EUR")),
        },
    }
}
