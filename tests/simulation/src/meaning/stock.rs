//! Which command on a stock item would produce an event.

use anyhow::ensure;
use daybook_domain::stock::{
    Adjusted, Command, Dispatched, Event, Received, Registered, Released, Reserved, State,
};

use super::Reproducible;

impl Reproducible for State {
    fn command(stream_id: &str, event: &Event) -> anyhow::Result<Command> {
        Ok(match event.clone() {
            Event::Registered(Registered { stock_item_id, sku }) => {
                ensure!(
                    stock_item_id.to_string() == stream_id,
                    "{stock_item_id} is in {stream_id}"
                );
                Command::Register { sku }
            }
            Event::Received(Received {
                quantity, reference, ..
            }) => Command::Receive { quantity, reference },
            Event::Reserved(Reserved {
                order_id, quantity, ..
            }) => Command::Reserve { order_id, quantity },
            Event::Released(Released {
                order_id,
                quantity,
                reason,
                ..
            }) => Command::Release {
                order_id,
                quantity: Some(quantity),
                reason,
            },
            Event::Dispatched(Dispatched {
                order_id, quantity, ..
            }) => Command::Dispatch {
                order_id,
                quantity: Some(quantity),
            },
            Event::Adjusted(Adjusted { change, reason, .. }) => Command::Adjust { change, reason },
        })
    }
}
