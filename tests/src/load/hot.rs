//! All callers on the same few orders, through several services of which one is killed now and then.
//!
//! An order is placed (again and again, by callers who do not know that it is there), gets lines, loses lines, has
//! quantities and its address changed and is paid in part, by all callers at once. Then it is confirmed or cancelled,
//! paid, shipped, delivered, sent back and refunded, and a new order takes its place. One command in five is given up:
//! its deadline is a few milliseconds, or its caller goes away.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use daybook_proto::orders::v1::{ChangeLineQuantityRequest, PlaceOrderRequest};
use tonic::Status;

use super::{Load, PATIENCE, Worker};
use crate::command::{self, Command};
use crate::ledger::{Ledger, Outcome};
use crate::metrics;
use crate::orders::{new_order_id, place};
use crate::stack::Backend;

/// Orders that are hot at one time.
pub const ORDERS: usize = 50;

/// Callers of each command service.
const CALLERS_PER_SERVICE: usize = 48;

/// Commands that an order gets while it can change.
const CHANGES: u32 = 340;

/// Commands in which it is confirmed or cancelled, paid, shipped, delivered, sent back and refunded.
const CLOSING: u32 = 60;

/// The largest payment of a closing order, as a power of two; what is left is paid by smaller ones.
const PAYMENT_POWER_MAX: u32 = 17;

/// Commands that the others accept while one service is down.
const COMMANDS_WHILE_DOWN: usize = 50;

/// What a race did.
#[derive(Debug)]
pub struct Raced {
    /// What every caller was told.
    pub ledger: Ledger,
    /// How often a service was killed.
    pub kills: usize,
    /// Commands that a service decided again, as far as the services that were not killed know.
    pub retries: f64,
    /// For how long callers sent commands.
    pub took: Duration,
}

/// Sends commands to hot orders until so many are answered. After each `commands_per_kill` that are accepted a command
/// service is killed and started again, each in its turn. In the end every service is stopped in order, so that nothing is under way any more.
///
/// # Errors
/// When no command is accepted for a while, or a service does not come back.
pub async fn race(backend: &mut Backend, commands: usize, commands_per_kill: usize) -> anyhow::Result<Raced> {
    let load = Load::on_hot_orders(&backend.callers()?, CALLERS_PER_SERVICE, ORDERS);
    let started = tokio::time::Instant::now();
    let mut kills = 0;
    while load.tally().answered() < commands {
        load.progress(commands_per_kill).await?;
        let turn = kills % backend.commands.len();
        backend.commands[turn].service.kill().await?;
        kills += 1;
        if backend.commands.len() > 1 {
            load.progress(COMMANDS_WHILE_DOWN).await?;
        }
        backend.commands[turn].service.restart().await?;
    }
    let mut retries = 0.0;
    for service in &backend.commands {
        retries += metrics::sum(service.admin, "daybook_mailbox_retries_total").await?;
    }
    let took = started.elapsed();
    let ledger = load.stop().await;
    // What callers have given up may still be on its way; a service that stops in order ends it.
    for service in &mut backend.commands {
        service.service.restart().await?;
    }
    Ok(Raced {
        ledger,
        kills,
        retries,
        took,
    })
}

/// The orders that are hot.
pub(super) struct Orders {
    places: Vec<Mutex<Hot>>,
    turns: AtomicU64,
}

/// An order, and how many commands it got.
struct Hot {
    order_id: String,
    commands: u32,
    /// The number of the newest line, as far as one can tell from outside.
    newest_line: u32,
}

impl Hot {
    fn new() -> Self {
        Self {
            order_id: new_order_id(),
            commands: 0,
            newest_line: 2,
        }
    }
}

/// The next command that an order gets.
struct Turn {
    order_id: String,
    /// Which command of the order it is, from 0.
    number: u32,
    newest_line: u32,
    /// Scattered bits that follow from the number of the turn.
    dice: u64,
}

impl Orders {
    pub(super) fn new(orders: usize) -> Self {
        Self {
            places: (0..orders).map(|_| Mutex::new(Hot::new())).collect(),
            turns: AtomicU64::new(0),
        }
    }

    fn turn(&self) -> Turn {
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        let dice = BuildHasherDefault::<DefaultHasher>::default().hash_one(turn);
        let place = usize::try_from(turn).expect("64 bits") % self.places.len();
        let mut hot = self.places[place].lock().unwrap_or_else(PoisonError::into_inner);
        if hot.commands == CHANGES + CLOSING {
            *hot = Hot::new();
        }
        let number = hot.commands;
        hot.commands += 1;
        let turn = Turn {
            order_id: hot.order_id.clone(),
            number,
            newest_line: hot.newest_line,
            dice,
        };
        hot.newest_line += u32::from(turn.kind() == Kind::AddLine);
        turn
    }
}

/// What a command does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Place,
    AddLine,
    RemoveLine,
    ChangeQuantity,
    ChangeAddress,
    Pay,
    Expect,
    Close(u32),
}

impl Turn {
    fn kind(&self) -> Kind {
        if let Some(closing) = self.number.checked_sub(CHANGES) {
            return Kind::Close(closing);
        }
        // Every fortieth: the first one places the order, the others find that it is there.
        if self.number.is_multiple_of(40) {
            return Kind::Place;
        }
        match self.dice % 16 {
            0..5 => Kind::AddLine,
            5..9 => Kind::RemoveLine,
            9..13 => Kind::ChangeQuantity,
            13 => Kind::ChangeAddress,
            14 => Kind::Pay,
            _ => Kind::Expect,
        }
    }

    /// A small number, another one for each use.
    fn small(&self, usage: u32, below: u32) -> u32 {
        u32::try_from((self.dice >> (8 * usage)) % u64::from(below)).expect("it is below a u32")
    }

    /// One of the newest lines, but never the first two, so that there is always one.
    fn recent_line(&self) -> u32 {
        self.newest_line.saturating_sub(self.small(1, 6)).max(3)
    }
}

pub(super) async fn run(worker: Worker, orders: std::sync::Arc<Orders>) {
    while !worker.stop.is_cancelled() {
        let turn = orders.turn();
        let (id, number) = (turn.order_id.as_str(), turn.number);
        let quantity = turn.small(2, 9) + 1;
        match turn.kind() {
            Kind::Place => worker.send_hot(&turn, place_again(&turn)).await,
            Kind::AddLine => {
                worker
                    .send_hot(&turn, command::add_line(id, "MC", quantity, 500))
                    .await
            }
            Kind::RemoveLine => {
                worker
                    .send_hot(&turn, command::remove_line(id, turn.recent_line()))
                    .await
            }
            Kind::ChangeQuantity => worker.send_hot(&turn, change_quantity(&turn, quantity)).await,
            Kind::ChangeAddress => worker.send_hot(&turn, command::change_address(id, "Rome")).await,
            // Two commands for each payment, of which the second is refused.
            Kind::Pay => {
                worker
                    .send_hot(&turn, command::pay(id, &format!("part-{}", number / 20), 1))
                    .await
            }
            Kind::Expect => {
                let stale = command::change_quantity(id, quantity).expecting((number / 2).into());
                worker.send_hot(&turn, stale).await;
            }
            Kind::Close(step) => worker.close(&turn, step).await,
        }
    }
}

/// The lines of one caller are not those of another: an order that was decided on the wrong opening shows it.
fn place_again(turn: &Turn) -> PlaceOrderRequest {
    let mut request = place(&turn.order_id, "customer-1");
    request.lines[0].quantity = turn.small(2, 9) + 1;
    request.lines.truncate(1 + turn.small(3, 2) as usize);
    request.expected_total_minor = None;
    request
}

fn change_quantity(turn: &Turn, quantity: u32) -> ChangeLineQuantityRequest {
    let line_number = match turn.small(3, 2) {
        0 => 1,
        _ => turn.recent_line(),
    };
    ChangeLineQuantityRequest {
        line_number,
        ..command::change_quantity(&turn.order_id, quantity)
    }
}

impl Worker {
    /// One step of the end of an order's life. Steps overtake each other, and some come for nothing.
    async fn close(&self, turn: &Turn, step: u32) {
        let id = turn.order_id.as_str();
        let name = |kind: &str, number: u32| format!("{kind}-{number}");
        match step {
            0 if turn.dice.is_multiple_of(8) => self.send_hot(turn, command::cancel(id)).await,
            0 => self.send_hot(turn, command::confirm(id)).await,
            // Twice, since a large payment that comes late exceeds what is left.
            1..=36 => {
                let power = PAYMENT_POWER_MAX - (step - 1) % (PAYMENT_POWER_MAX + 1);
                let payment = command::pay(id, &name("whole", step), 1 << power);
                self.send_hot(turn, payment).await;
            }
            37..=40 => {
                self.send_hot(turn, command::ship(id, &name("parcel", step), &[(1, 1)]))
                    .await
            }
            41 => {
                self.send_hot(turn, command::ship(id, &name("parcel", step), &[]))
                    .await
            }
            42..=46 => {
                self.send_hot(turn, command::deliver(id, &name("parcel", step - 5)))
                    .await
            }
            47..=50 => {
                let back = command::request_return(id, &name("back", step), &[(1, 1)]);
                self.send_hot(turn, back).await;
            }
            51..=54 => {
                self.send_hot(turn, command::receive_return(id, &name("back", step - 4)))
                    .await
            }
            55..=58 => {
                self.send_hot(turn, command::refund(id, &name("refund", step), 1))
                    .await
            }
            _ => self.send_hot(turn, command::cancel(id)).await,
        }
    }

    /// Sends a command as a caller of this kind does: one in five has no patience at first.
    async fn send_hot<C: Command>(&self, turn: &Turn, command: C) {
        let moment = Duration::from_millis(1 + u64::from(turn.small(4, 8)));
        let answer = match turn.small(5, 10) {
            0 => command.clone().send(self.caller.commands(), moment).await,
            1 => {
                let call = command.clone().send(self.caller.commands(), PATIENCE);
                let gone = |_| Err(Status::cancelled("the caller went away"));
                tokio::time::timeout(moment, call).await.unwrap_or_else(gone)
            }
            _ => {
                self.send(&command).await;
                return;
            }
        };
        if self.ledger.note(&command, &answer) == Outcome::Unknown && self.is_careful {
            self.send(&command).await;
        }
    }
}
