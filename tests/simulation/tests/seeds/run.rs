//! One seed: several processes, their callers, and what must be true of the log afterwards.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use daybook_command_svc::mailbox::{Envelope, HandleError, LoadShares, MailboxMetrics, Mailboxes, Outcome};
use daybook_command_svc::partitions::{Partition, Partitions};
use daybook_domain::aggregate::Aggregate as _;
use daybook_domain::event::Event as _;
use daybook_domain::ids::{CustomerId, OrderId, PaymentId, Reason, Sku};
use daybook_domain::money::{Currency, Money};
use daybook_domain::order::{self, Command, NewLine};
use daybook_event_store::{
    Appender, AppenderOptions, BatchLimits, Metadata, NotAdmitted, Receipt, RecordedEvent,
};
use daybook_simulation::meaning;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::world::{Met, World};
use daybook_simulation::model::JudgedBy;

const TENANT: Uuid = Uuid::from_u128(1);

/// Within this time callers begin.
const BEGIN_WITHIN: Duration = Duration::from_millis(60);

/// An answer that takes longer never comes.
const ANSWER_WITHIN: Duration = Duration::from_secs(600);

/// A command as a caller sends it, again and again under one key.
#[derive(Debug, Clone)]
struct Sent {
    key: Arc<str>,
    order: OrderId,
    command: Command,
    expected_version: Option<u64>,
}

impl Sent {
    /// Other content gives another fingerprint. The order's id is not part of it where the service makes it.
    fn fingerprint(&self) -> i64 {
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

/// What callers were told.
#[derive(Default)]
struct Ledger(Mutex<Vec<(Sent, Receipt)>>);

struct Process {
    mailboxes: Mailboxes<order::State>,
}

/// Runs one seed and checks the log that it leaves.
///
/// # Errors
/// What is wrong with it.
pub(crate) async fn seed(seed: u64, judged_by: JudgedBy, met: &Arc<Met>) -> anyhow::Result<()> {
    let world = World::new(seed, judged_by, Arc::clone(met));
    let (mut processes, mut appending) = (Vec::new(), JoinSet::new());
    for _ in 0..2 + world.below(2) {
        let options = AppenderOptions {
            commands_max: 128,
            bytes_max: 1 << 20,
            batch: BatchLimits {
                commands_max: 1 + world.below(6) as usize,
                ..AppenderOptions::default().batch
            },
            retry_for: Duration::from_millis(u64::from(world.below(300))),
        };
        let (appender, task) = Appender::new(world.clone(), 0, options, None);
        appending.spawn(task);
        let streams = Arc::new(world.clone());
        let partitions: Partitions = [Partition {
            streams,
            loads: Arc::new(LoadShares::new(2)),
            appender,
        }]
        .into_iter()
        .collect();
        let mailboxes = Mailboxes::new(partitions, Arc::new(MailboxMetrics::default()));
        processes.push(Process { mailboxes });
    }
    let ledger = Arc::new(Ledger::default());
    let orders: Vec<OrderId> = (1..=1 + u128::from(world.below(2)))
        .map(|number| OrderId::from_uuid(Uuid::from_u128(number)))
        .collect();
    call(&world, &processes, &ledger, &orders).await?;

    // Whatever happened, each process goes on once its answers come.
    world.heal();
    sleep(Duration::from_secs(5)).await;
    for (process, order) in processes
        .iter()
        .flat_map(|one| orders.iter().map(move |order| (one, *order)))
    {
        let sent = Sent {
            key: Uuid::from_u128(rand::random()).to_string().into(),
            order,
            command: Command::Confirm,
            expected_version: None,
        };
        match process.mailboxes.handle(sent.envelope()).await {
            Ok(outcome) => note(&world, &ledger, sent, outcome),
            Err(HandleError::NotFound) => {
                let id = order.to_string();
                ensure!(
                    world.model().page(TENANT, &id, 1, 1).is_empty(),
                    "{id} is there and was not found"
                );
            }
            Err(error) => bail!("after healing, order {order} answers: {error:?}"),
        }
    }
    drop(processes);
    while let Some(ended) = appending.join_next().await {
        ended?;
    }
    check(&world, &ledger)
}

/// Has callers send commands to whichever process they like, go away, and send again.
async fn call(
    world: &World,
    processes: &[Process],
    ledger: &Arc<Ledger>,
    orders: &[OrderId],
) -> anyhow::Result<()> {
    let mut sent_before: Vec<Sent> = Vec::new();
    let mut callers = JoinSet::new();
    for number in 0..8 + world.below(16) {
        let sent = match world.below(6) {
            0 if !sent_before.is_empty() => again(world, &sent_before, orders),
            _ => new(world, orders, number),
        };
        sent_before.push(sent.clone());
        let (world, ledger, begin) = (world.clone(), Arc::clone(ledger), world.up_to(BEGIN_WITHIN));
        let mailboxes: Vec<_> = processes
            .iter()
            .map(|process| process.mailboxes.clone())
            .collect();
        callers.spawn(async move {
            sleep(begin).await;
            timeout(ANSWER_WITHIN, caller(&world, &mailboxes, &ledger, sent))
                .await
                .context("a caller was never answered")?
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    Ok(())
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

/// Sends until there is an answer, or gives up.
async fn caller(
    world: &World,
    mailboxes: &[Mailboxes<order::State>],
    ledger: &Ledger,
    sent: Sent,
) -> anyhow::Result<()> {
    for _ in 0..4 {
        let process = world.below(u32::try_from(mailboxes.len())?) as usize;
        let handled = mailboxes[process].handle(sent.envelope());
        let handled = if world.one_in(4) {
            timeout(world.up_to(Duration::from_millis(40)), handled).await
        } else {
            Ok(handled.await)
        };
        match handled {
            Ok(Ok(outcome)) => {
                note(world, ledger, sent, outcome);
                return Ok(());
            }
            Ok(Err(
                HandleError::VersionConflict { .. }
                | HandleError::KeyReused
                | HandleError::NotFound
                | HandleError::NotAdmitted(NotAdmitted::Full | NotAdmitted::TenantShareFull),
            )) => return Ok(()),
            Ok(Err(HandleError::Load(_) | HandleError::Unanswered(_) | HandleError::Contended)) => {
                Met::count(&world.met().unknown);
            }
            Ok(Err(error @ (HandleError::NoPartition | HandleError::Panicked(_)))) => {
                return Err(error.into());
            }
            Err(_elapsed) => {
                Met::count(&world.met().cancelled);
                if world.one_in(2) {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

fn note(world: &World, ledger: &Ledger, sent: Sent, outcome: Outcome) {
    if outcome.is_replay {
        Met::count(&world.met().replays);
    }
    if outcome.receipt.rejection.is_some() {
        Met::count(&world.met().refusals);
    }
    let mut ledger = ledger.0.lock().expect("no test panics with it");
    ledger.push((sent, outcome.receipt));
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

/// The log means something, and everybody was told the truth about it.
fn check(world: &World, ledger: &Ledger) -> anyhow::Result<()> {
    let model = world.model();
    meaning::log(&model.events)?;
    let mut by_key = HashMap::<String, Vec<&RecordedEvent>>::new();
    for event in &model.events {
        by_key
            .entry(event.decoded_metadata().idempotency_key)
            .or_default()
            .push(event);
    }
    let ledger = ledger.0.lock().expect("no test panics with it");
    let mut first_answers = HashMap::<&str, &Receipt>::new();
    for (sent, receipt) in ledger.iter() {
        let first = *first_answers.entry(&sent.key).or_insert(receipt);
        ensure!(
            first == receipt,
            "{} was answered {first:?} and {receipt:?}",
            sent.key
        );
        let events = by_key.get(&*sent.key).map_or(&[][..], Vec::as_slice);
        ensure!(
            events.len() == receipt.event_count as usize,
            "{} was told {} events and has {}",
            sent.key,
            receipt.event_count,
            events.len()
        );
        for (event, position) in events.iter().zip(receipt.first_position..) {
            ensure!(
                event.position == position,
                "{} was told another position",
                sent.key
            );
        }
        if let Some(rejection) = &receipt.rejection {
            refused_rightly(&model.events, sent, receipt, rejection)?;
        }
        ensure!(
            model.remembered_under(TENANT, &sent.key).is_some(),
            "{} is not remembered",
            sent.key
        );
    }
    Ok(())
}

/// A remembered refusal is what the domain says of the command in the state that the receipt names.
fn refused_rightly(
    events: &[RecordedEvent],
    sent: &Sent,
    receipt: &Receipt,
    rejection: &str,
) -> anyhow::Result<()> {
    let before = events.iter().filter(|event| {
        *event.stream_id == *receipt.stream_id && event.stream_version <= receipt.stream_version
    });
    let mut state = order::State::default();
    for event in before {
        let event = order::Event::decode(&event.event_type, event.schema_version, &event.payload)?;
        state = state.evolve(&event);
    }
    let decided = state.decide(sent.command.clone());
    let refused = decided.err().context("the domain grants what was refused")?;
    let refused = serde_json::to_string(&refused)?;
    ensure!(
        refused == rejection,
        "{} was refused with {rejection}, not with {refused}",
        sent.key
    );
    Ok(())
}
