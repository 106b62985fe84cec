//! Stock items: how much of an article there is, and for which orders it is kept back.
//!
//! An item is registered once for its article, goods are received, kept back for an order (reserved), given free again
//! (released) or sent out (dispatched), and what a count or a loss says is adjusted.
//!
//! Guarantees, whatever commands come in whatever order: nothing is ever below zero; what is reserved is the sum of what
//! is reserved for each order, and never more than is on hand; only what was reserved for an order is dispatched for it.
//!
//! A reservation belongs to an order and is there once: an order with several lines of an article reserves their sum. So
//! a reservation that is sent again long after its idempotency key was forgotten is refused while the first one stands.
//! What was released or dispatched is not remembered, or a busy item would grow with every order that it ever served; who
//! reserves has to know that it was done with.

mod events;
mod rejection;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::events::{Adjusted, Dispatched, Event, Received, Registered, Released, Reserved};
pub use self::rejection::Rejection;

use crate::aggregate::{Aggregate, tree_bytes};
use crate::ids::{OrderId, Reason, Reference, Sku, StockItemId};

/// The most articles that one command moves; the least is one.
pub const QUANTITY_MAX: u32 = 1_000_000_000;
/// The most articles on hand.
pub const ON_HAND_MAX: u64 = 1_000_000_000_000;
/// The most orders that an item is reserved for at one time.
pub const RESERVATIONS_MAX: usize = 100_000;

/// The commands of a stock item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Register an article, of which there is nothing yet.
    Register {
        /// The article.
        sku: Sku,
    },
    /// Record that goods came in.
    Receive {
        /// How many, 1 to [`QUANTITY_MAX`].
        quantity: u32,
        /// The delivery note, say.
        reference: Option<Reference>,
    },
    /// Keep articles back for an order that has none reserved.
    Reserve {
        /// The order.
        order_id: OrderId,
        /// How many, 1 to [`QUANTITY_MAX`].
        quantity: u32,
    },
    /// Give free what was kept back for an order.
    Release {
        /// The order.
        order_id: OrderId,
        /// How many; all that is reserved for the order when absent.
        quantity: Option<u32>,
        /// Why.
        reason: Option<Reason>,
    },
    /// Record that what was kept back for an order went out.
    Dispatch {
        /// The order.
        order_id: OrderId,
        /// How many; all that is reserved for the order when absent.
        quantity: Option<u32>,
    },
    /// Correct what is on hand, after a count, a loss or a find.
    Adjust {
        /// How many more, or less, there are: not zero, and at most [`QUANTITY_MAX`] either way.
        change: i64,
        /// Why.
        reason: Reason,
    },
}

/// The state of a stock item: nothing until it is registered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    item: Option<StockItem>,
}

/// A stock item that was registered, as far as the rules look at it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StockItem {
    /// How many there are, reserved ones included.
    pub on_hand: u64,
    /// How many of them are reserved, over all orders.
    pub reserved: u64,
    /// How many are reserved for each order; never zero.
    pub reservations: BTreeMap<OrderId, u32>,
}

impl Aggregate for State {
    const CATEGORY: &'static str = "stock_item";
    const PLURAL: &'static str = "stock-items";

    type Id = StockItemId;
    type Command = Command;
    type Event = Event;
    type Rejection = Rejection;

    /// A granted command gives one event. Costs the logarithm of the number of reservations.
    fn decide(&self, command: Command) -> Result<Vec<Event>, Rejection> {
        let event = match (&self.item, command) {
            (None, Command::Register { sku }) => Ok(Registered::of(sku).into()),
            (None, _) => Err(Rejection::StockItemNotFound),
            (Some(_), Command::Register { .. }) => Err(Rejection::StockItemAlreadyExists),
            (Some(item), Command::Receive { quantity, reference }) => item.receive(quantity, reference),
            (Some(item), Command::Reserve { order_id, quantity }) => item.reserve(order_id, quantity),
            (
                Some(item),
                Command::Release {
                    order_id,
                    quantity,
                    reason,
                },
            ) => item.release(order_id, quantity, reason),
            (Some(item), Command::Dispatch { order_id, quantity }) => item.dispatch(order_id, quantity),
            (Some(item), Command::Adjust { change, reason }) => item.adjust(change, reason),
        }?;
        Ok(vec![event])
    }

    fn evolve(self, event: &Event) -> Self {
        let item = match (self.item, event) {
            (None, Event::Registered(_)) => Some(StockItem::default()),
            (None, _) => None,
            (Some(item), event) => Some(item.after(event)),
        };
        Self { item }
    }

    fn opens(command: &Command) -> bool {
        matches!(command, Command::Register { .. })
    }

    fn heap_bytes(&self) -> usize {
        let reservations = self.item.as_ref().map_or(0, |item| item.reservations.len());
        tree_bytes::<OrderId, u32>(reservations)
    }
}

impl State {
    /// The item, once it was registered.
    pub fn item(&self) -> Option<&StockItem> {
        self.item.as_ref()
    }
}

impl StockItem {
    /// How many can still be reserved.
    pub fn available(&self) -> u64 {
        self.on_hand.saturating_sub(self.reserved)
    }

    fn receive(&self, quantity: u32, reference: Option<Reference>) -> Result<Event, Rejection> {
        check_quantity(quantity)?;
        Ok(Received {
            quantity,
            reference,
            on_hand: self.on_hand_after(i64::from(quantity))?,
        }
        .into())
    }

    fn reserve(&self, order_id: OrderId, quantity: u32) -> Result<Event, Rejection> {
        check_quantity(quantity)?;
        if let Some(&reserved) = self.reservations.get(&order_id) {
            return Err(Rejection::StockAlreadyReserved { order_id, reserved });
        }
        let available = self.available();
        if u64::from(quantity) > available {
            return Err(Rejection::InsufficientStock { quantity, available });
        }
        if self.reservations.len() >= RESERVATIONS_MAX {
            return Err(Rejection::TooManyReservations);
        }
        Ok(Reserved {
            order_id,
            quantity,
            reserved: self.reserved.saturating_add(u64::from(quantity)),
        }
        .into())
    }

    fn release(
        &self,
        order_id: OrderId,
        quantity: Option<u32>,
        reason: Option<Reason>,
    ) -> Result<Event, Rejection> {
        let (quantity, order_reserved) = self.take(order_id, quantity)?;
        Ok(Released {
            order_id,
            quantity,
            order_reserved,
            reserved: self.reserved.saturating_sub(u64::from(quantity)),
            reason,
        }
        .into())
    }

    fn dispatch(&self, order_id: OrderId, quantity: Option<u32>) -> Result<Event, Rejection> {
        let (quantity, order_reserved) = self.take(order_id, quantity)?;
        Ok(Dispatched {
            order_id,
            quantity,
            order_reserved,
            on_hand: self.on_hand.saturating_sub(u64::from(quantity)),
            reserved: self.reserved.saturating_sub(u64::from(quantity)),
        }
        .into())
    }

    fn adjust(&self, change: i64, reason: Reason) -> Result<Event, Rejection> {
        if change == 0 || change.unsigned_abs() > u64::from(QUANTITY_MAX) {
            return Err(Rejection::AdjustmentOutOfRange { change });
        }
        let on_hand = self.on_hand_after(change)?;
        if on_hand < self.reserved {
            return Err(Rejection::AdjustmentBelowReserved {
                change,
                on_hand: self.on_hand,
                reserved: self.reserved,
            });
        }
        Ok(Adjusted {
            change,
            on_hand,
            reason,
        }
        .into())
    }

    /// The quantity taken of an order's reservation, which is all of it unless one is given, and the quantity left.
    fn take(&self, order_id: OrderId, quantity: Option<u32>) -> Result<(u32, u32), Rejection> {
        let Some(&reserved) = self.reservations.get(&order_id) else {
            return Err(Rejection::ReservationNotFound { order_id });
        };
        let quantity = quantity.unwrap_or(reserved);
        check_quantity(quantity)?;
        let left = reserved.checked_sub(quantity);
        let left = left.ok_or(Rejection::QuantityExceedsReservation {
            order_id,
            quantity,
            reserved,
        })?;
        Ok((quantity, left))
    }

    fn on_hand_after(&self, change: i64) -> Result<u64, Rejection> {
        let (on_hand, reserved) = (self.on_hand, self.reserved);
        match on_hand.checked_add_signed(change) {
            Some(after) if after <= ON_HAND_MAX => Ok(after),
            None if change < 0 => Err(Rejection::AdjustmentBelowReserved {
                change,
                on_hand,
                reserved,
            }),
            Some(_) | None => Err(Rejection::StockTooHigh { change, on_hand }),
        }
    }

    fn after(mut self, event: &Event) -> Self {
        match event {
            // An item is registered once; a second time says nothing new.
            Event::Registered(_) => {}
            Event::Received(received) => self.on_hand = received.on_hand,
            Event::Reserved(reserved) => {
                self.reserve_for(reserved.order_id, reserved.quantity);
                self.reserved = reserved.reserved;
            }
            Event::Released(released) => {
                self.reserve_for(released.order_id, released.order_reserved);
                self.reserved = released.reserved;
            }
            Event::Dispatched(dispatched) => {
                self.reserve_for(dispatched.order_id, dispatched.order_reserved);
                self.reserved = dispatched.reserved;
                self.on_hand = dispatched.on_hand;
            }
            Event::Adjusted(adjusted) => self.on_hand = adjusted.on_hand,
        }
        self
    }

    fn reserve_for(&mut self, order_id: OrderId, quantity: u32) {
        if quantity == 0 {
            self.reservations.remove(&order_id);
        } else {
            self.reservations.insert(order_id, quantity);
        }
    }
}

fn check_quantity(quantity: u32) -> Result<(), Rejection> {
    if (1..=QUANTITY_MAX).contains(&quantity) {
        Ok(())
    } else {
        Err(Rejection::StockQuantityOutOfRange { quantity })
    }
}
