//! Appends through `event-store`: the log alone, without a service in front of it.

use std::sync::Arc;

use daybook_event_store::{Appender, AppenderOptions, NewCommand, NewEvent, Verdict};
use daybook_tests::log;
use daybook_tests::orders::new_order_id;
use daybook_tests::stack::Servers;
use uuid::Uuid;

use crate::load::{self, Load};
use crate::report::{Goal, Report};
use crate::{Options, raw};

/// A payload of the usual size: an order of one line.
pub(crate) const PAYLOAD: &str = r#"{"order_id":"ord_01h455vb4pex5vsknk084sn02q","customer_id":"cdnow-00001","currency":"USD","lines":[{"line_number":1,"sku":"CD","quantity":2,"unit_price_minor":1177}],"total_minor":2354,"item_count":2}"#;

/// A way to append.
struct Shape {
    name: &'static str,
    in_flight: usize,
    events_each: usize,
}

const ONE: Shape = Shape {
    name: "append: one event each, own streams, 2,048 in flight",
    in_flight: 2_048,
    events_each: 1,
};
const TEN: Shape = Shape {
    name: "append: ten events each, own streams, 2,048 in flight",
    in_flight: 2_048,
    events_each: 10,
};
const LONE: Shape = Shape {
    name: "append: one writer",
    in_flight: 1,
    events_each: 1,
};
const CROWD: Shape = Shape {
    name: "append: 64 in flight",
    in_flight: 64,
    events_each: 1,
};

pub(crate) async fn measure(options: &Options, servers: &Servers, report: &mut Report) -> anyhow::Result<()> {
    let superuser = servers.database.superuser().await?;
    for _ in 0..options.runs {
        raw::settle(&superuser).await?;
        let (appender, appending) =
            Appender::new(servers.database.log().await?, 0, AppenderOptions::default(), None);
        let task = tokio::spawn(appending);
        let appender = Arc::new(appender);
        let lone = run(&LONE, options, servers, &appender).await?;
        report.note(
            "append: one writer, p50",
            lone.quantile_ms(0.5),
            "ms",
            Goal::AtMost(0.3),
        );
        if let Some(lone_insert) = report.median(raw::LONE_INSERT) {
            report.note(
                "append: one writer, p50, of a lone INSERT",
                lone.quantile_ms(0.5) / lone_insert * 100.0,
                "%",
                Goal::None,
            );
        }
        let crowd = run(&CROWD, options, servers, &appender).await?;
        report.note(
            "append: 64 in flight, p99",
            crowd.quantile_ms(0.99),
            "ms",
            Goal::AtMost(12.0),
        );
        report.note("append: 64 in flight", crowd.rate(), "appends/s", Goal::None);
        let one = run(&ONE, options, servers, &appender).await?.rate();
        report.note(ONE.name, one, "appends/s", Goal::AtLeast(75_000.0));
        let ten = run(&TEN, options, servers, &appender).await?.rate() * 10.0;
        report.note(TEN.name, ten, "events/s", Goal::AtLeast(60_000.0));
        if let Some(copy) = report.median(raw::COPY) {
            report.note(
                "append: one event each, of COPY",
                one / copy * 100.0,
                "%",
                Goal::AtLeast(45.0),
            );
            report.note(
                "append: ten events each, of COPY",
                ten / copy * 100.0,
                "%",
                Goal::AtLeast(80.0),
            );
        }
        drop(appender);
        task.await?;
    }
    Ok(())
}

async fn run(
    shape: &Shape,
    options: &Options,
    servers: &Servers,
    appender: &Arc<Appender>,
) -> anyhow::Result<Load> {
    let (tenant_id, events) = (Uuid::now_v7(), shape.events_each);
    servers.database.add_tenants(&[tenant_id]).await?;
    let append = move |appender: Arc<Appender>| async move {
        let verdict = log::append_one(&appender, command(tenant_id, events)).await?;
        anyhow::ensure!(matches!(verdict, Verdict::Appended(_)), "{verdict:?}");
        Ok(appender)
    };
    load::closed(
        shape.in_flight,
        options.duration(),
        |_| Arc::clone(appender),
        append,
    )
    .await
}

/// A command of this many events of the usual size, on a stream of its own.
pub(crate) fn command(tenant_id: Uuid, events: usize) -> NewCommand {
    let event = |_| NewEvent {
        event_type: "order.placed",
        schema_version: 2,
        ..log::event(PAYLOAD.to_owned())
    };
    log::command(tenant_id, &new_order_id(), None, (0..events).map(event).collect())
}
