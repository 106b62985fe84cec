//! A long stream that nobody has in memory, and callers who wait for less time than it takes to load.

use std::time::{Duration, Instant};

use daybook_domain::aggregate::Aggregate as _;
use daybook_domain::ids::{CustomerId, OrderId, Sku};
use daybook_domain::order::{Command, Event, NewLine, State};
use daybook_tests::command::Command as _;
use daybook_tests::stack::Backend;
use daybook_tests::{command, log, metrics, wait};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::batches::Batches;
use crate::report::{Goal, Report};
use crate::{Options, servers};

/// Events of the stream for each second of `--seconds`: 200,000 with the default.
const EVENTS_PER_SECOND: u64 = 40_000;

/// Events in one append.
const CHUNK_EVENTS: usize = 1_000;

/// Callers that ask at once.
const CALLERS: usize = 64;

/// How long each of them waits.
const PATIENCE: Duration = Duration::from_millis(50);

/// For how long they go on asking, before the call that counts.
const ASKING: Duration = Duration::from_secs(3);

pub(crate) async fn measure(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let backend = Backend::on(servers().await?, 1).await?;
    let mut batches = Batches::connect(&backend.servers).await?;
    let admin = backend.commands[0].admin;
    for _ in 0..options.runs {
        let order_id = OrderId::from_uuid(Uuid::now_v7());
        let history = history(order_id, EVENTS_PER_SECOND * options.seconds)?;
        let mut newest = None;
        for events in history.chunks(CHUNK_EVENTS) {
            let (decided_on, events) = (newest, events.iter().map(log::encoded).collect::<Vec<_>>());
            newest = events.last().map(|event| event.event_id);
            let append = log::command(
                backend.tenant.tenant_id,
                &order_id.to_string(),
                decided_on,
                events,
            );
            batches.append(&[append]).await?;
        }
        let before = metrics::sum(admin, "daybook_mailbox_loads_total").await?;
        let (id, end) = (order_id.to_string(), Instant::now() + ASKING);
        let mut asking = JoinSet::new();
        for _ in 0..CALLERS {
            let (caller, id) = (backend.caller()?, id.clone());
            asking.spawn(async move {
                while Instant::now() < end {
                    let change = command::change_quantity(&id, 2);
                    // While the stream is loaded nobody is answered in time, and nobody needs to be.
                    drop(change.send(caller.commands(), PATIENCE).await);
                }
            });
        }
        asking.join_all().await;
        let (caller, change) = (backend.caller()?, command::change_quantity(&id, 3));
        let asked = Instant::now();
        let answer = wait::value("a call for the long stream is answered", async || {
            Ok(caller.send(change.clone()).await.ok())
        });
        // Where it never is, the figure is how long it was waited for.
        drop(answer.await);
        let answered = asked.elapsed();
        let loads = metrics::sum(admin, "daybook_mailbox_loads_total").await? - before;
        report.note(
            "stream of 200,000 events, callers with 50 ms deadlines: loads",
            loads,
            "loads",
            Goal::AtMost(1.0),
        );
        report.note(
            "the same, a call 3 s later is answered after",
            answered.as_secs_f64() * 1_000.0,
            "ms",
            Goal::AtMost(PATIENCE.as_millis() as f64),
        );
    }
    Ok(())
}

/// An order whose quantity was changed all the time.
fn history(order_id: OrderId, events: u64) -> anyhow::Result<Vec<Event>> {
    let place = Command::Place {
        order_id,
        reference: None,
        customer_id: CustomerId::parse("patient")?,
        currency: "USD".parse()?,
        lines: vec![NewLine {
            sku: Sku::parse("CD")?,
            quantity: 1,
            unit_price_minor: 1_177,
        }],
        shipping_address: None,
        expected_total_minor: None,
    };
    let changes = (1..events).map(|number| Command::ChangeQuantity {
        line_number: 1,
        quantity: u32::try_from(number % 1_000 + 1).expect("a quantity is small"),
    });
    let (mut state, mut history) = (State::default(), Vec::new());
    for command in std::iter::once(place).chain(changes) {
        for event in state.decide(command)? {
            state = state.evolve(&event);
            history.push(event);
        }
    }
    Ok(history)
}
