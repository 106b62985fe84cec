//! Orders' whole lives in the log: placed, confirmed, paid, shipped, delivered. A log of a shop that has run for a while
//! looks like this, and not like an import.

use daybook_domain::aggregate::Aggregate as _;
use daybook_domain::ids::{CustomerId, OrderId, PaymentId, ShipmentId, Sku};
use daybook_domain::money::{Currency, Money};
use daybook_domain::order::{Command, Event, NewLine, State};
use daybook_event_store::{Appender, AppenderOptions, NewCommand, Verdict};
use daybook_tests::log;
use daybook_tests::stack::Stack;
use tokio::task::JoinSet;
use uuid::Uuid;

/// How many orders live; each has five events.
const ORDERS: u64 = 60_000;

/// Orders that are appended at once.
const IN_FLIGHT: usize = 1_024;

/// What an order of two articles at ten dollars costs.
const TOTAL_MINOR: i64 = 2_000;

/// Appends the lives through the log itself, in the order in which the orders were placed.
pub(crate) async fn append(stack: &Stack) -> anyhow::Result<()> {
    let log = stack.servers.database.log().await?;
    let (appender, appending) = Appender::new(log, 0, AppenderOptions::default(), None);
    let task = tokio::spawn(appending);
    let mut under_way = JoinSet::new();
    for number in 0..ORDERS {
        let (appender, command) = (appender.clone(), command(stack.tenant.tenant_id, number)?);
        under_way.spawn(async move { log::append_one(&appender, command).await });
        while under_way.len() >= IN_FLIGHT {
            accepted(under_way.join_next().await)?;
        }
    }
    while let Some(verdict) = under_way.join_next().await {
        accepted(Some(verdict))?;
    }
    drop(appender);
    task.await?;
    Ok(())
}

type Joined = Result<anyhow::Result<Verdict>, tokio::task::JoinError>;

fn accepted(verdict: Option<Joined>) -> anyhow::Result<()> {
    let verdict = verdict.transpose()?.transpose()?;
    anyhow::ensure!(matches!(verdict, Some(Verdict::Appended(_))), "{verdict:?}");
    Ok(())
}

fn command(tenant_id: Uuid, number: u64) -> anyhow::Result<NewCommand> {
    let order_id = OrderId::from_uuid(Uuid::now_v7());
    let events = life(order_id, number)?.iter().map(log::encoded).collect();
    Ok(log::command(tenant_id, &order_id.to_string(), None, events))
}

fn life(order_id: OrderId, number: u64) -> anyhow::Result<Vec<Event>> {
    let currency = Currency::parse("USD")?;
    let shipment_id = ShipmentId::parse("shipment-1")?;
    let commands = [
        Command::Place {
            order_id,
            reference: None,
            customer_id: CustomerId::parse(&format!("life-{}", number / 3))?,
            currency,
            lines: vec![NewLine {
                sku: Sku::parse("CD")?,
                quantity: 2,
                unit_price_minor: TOTAL_MINOR / 2,
            }],
            shipping_address: None,
            expected_total_minor: None,
        },
        Command::Confirm,
        Command::RecordPayment {
            payment_id: PaymentId::parse("payment-1")?,
            amount: Money::new(TOTAL_MINOR, currency),
        },
        Command::Ship {
            shipment_id: shipment_id.clone(),
            lines: Vec::new(),
            carrier: None,
            tracking_number: None,
        },
        Command::RecordDelivery { shipment_id },
    ];
    let (mut state, mut events) = (State::default(), Vec::new());
    for command in commands {
        for event in state.decide(command)? {
            state = state.evolve(&event);
            events.push(event);
        }
    }
    Ok(events)
}
