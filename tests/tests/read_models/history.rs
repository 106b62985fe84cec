//! Events as the log would have them.

use daybook_domain::event::Event as _;
use daybook_domain::ids::{OrderId, Sku, StockItemId};
use daybook_domain::order::{self, Confirmed, Line, Placed};
use daybook_domain::stock::Registered;
use daybook_read_model::{Body, Event};
use time::{Duration, OffsetDateTime, macros::datetime};
use uuid::Uuid;

pub(crate) const TENANT: Uuid = Uuid::from_u128(1);
pub(crate) const OTHER_TENANT: Uuid = Uuid::from_u128(2);

pub(crate) fn order_id(number: u32) -> String {
    OrderId::from_uuid(Uuid::from_u128(number.into())).to_string()
}

/// When an order is placed: several at the same moment, so that their ids decide.
pub(crate) fn placed_at(number: u32) -> OffsetDateTime {
    datetime!(2024-05-01 12:00:00.000001 UTC) + Duration::seconds(i64::from(number / 7))
}

fn event(tenant_id: Uuid, number: u32, version: u64, body: order::Event) -> Event {
    let occurred_at = placed_at(number) + Duration::minutes(i64::from(number % 11) * (version as i64 - 1));
    Event {
        partition: 0,
        position: u64::from(number) * 10 + version,
        tenant_id,
        stream_id: order_id(number),
        stream_version: version,
        event_id: Uuid::nil(),
        event_type: body.event_type().to_owned(),
        recorded_at: occurred_at,
        occurred_at,
        metadata: "{}".into(),
        body: Ok(Body::Order(body)),
    }
}

/// One of 50 customers places an order; one of 100 totals.
pub(crate) fn placed(tenant_id: Uuid, number: u32) -> Event {
    let unit_price_minor = i64::from(number.wrapping_mul(7_919) % 100);
    let placed = Placed {
        order_id: order_id(number).parse().expect("an order's id"),
        customer_id: format!("c{}", number % 50).parse().expect("a valid id"),
        reference: number
            .is_multiple_of(2)
            .then(|| "web-1".parse().expect("a valid reference")),
        currency: "EUR".parse().expect("a currency"),
        lines: vec![Line {
            line_number: 1,
            sku: "TEA".parse().expect("a valid article"),
            quantity: 1,
            unit_price_minor,
        }],
        shipping_address: None,
        total_minor: unit_price_minor,
        item_count: 1,
    };
    event(tenant_id, number, 1, placed.into())
}

pub(crate) fn confirmed(tenant_id: Uuid, number: u32) -> Event {
    let Ok(Body::Order(order::Event::Placed(placed))) = placed(tenant_id, number).body else {
        unreachable!("it is placed")
    };
    let confirmed = Confirmed {
        customer_id: placed.customer_id,
        currency: placed.currency,
        total_minor: placed.total_minor,
        item_count: placed.item_count,
    };
    event(tenant_id, number, 2, confirmed.into())
}

/// A stock item of this article is registered.
pub(crate) fn registered(tenant_id: Uuid, sku: &str) -> Event {
    let sku: Sku = sku.parse().expect("a valid article");
    let stock_item_id = StockItemId::of(&sku);
    let registered = Registered { stock_item_id, sku };
    Event {
        stream_id: stock_item_id.to_string(),
        event_type: "stock_item.registered".to_owned(),
        body: Ok(Body::Stock(registered.into())),
        ..placed(tenant_id, 0)
    }
}

/// So many orders, of which every third is confirmed.
pub(crate) fn history(tenant_id: Uuid, numbers: std::ops::Range<u32>) -> Vec<Event> {
    numbers
        .flat_map(|number| {
            let confirmed = number.is_multiple_of(3).then(|| confirmed(tenant_id, number));
            [Some(placed(tenant_id, number)), confirmed]
        })
        .flatten()
        .collect()
}

/// The same, with a stock item beside each order.
pub(crate) fn whole_history(tenant_id: Uuid, numbers: std::ops::Range<u32>) -> Vec<Event> {
    let items = numbers.clone().map(|number| Event {
        position: u64::from(number) * 10 + 5,
        ..registered(tenant_id, &format!("ART-{number}"))
    });
    let mut events: Vec<_> = history(tenant_id, numbers).into_iter().chain(items).collect();
    events.sort_by_key(|event| event.position);
    events
}
