//! New commands on one aggregate beside callers that repeat old ones.

use daybook_proto::orders::v1::ChangeLineQuantityRequest;
use daybook_tests::client::Caller;
use daybook_tests::command;
use daybook_tests::orders::{new_order_id, place};
use daybook_tests::stack::Backend;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::commands::CALLERS_OF_ONE;
use crate::load::{Load, Refused};
use crate::report::{Goal, Report};
use crate::{Options, load, servers};

pub(crate) async fn measure(options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let backend = Backend::on(servers().await?, 1).await?;
    let caller = backend.caller()?;
    for _ in 0..options.runs {
        let order_id = new_order_id();
        caller.send(place(&order_id, "hot")).await?;
        let mut old = Vec::new();
        for _ in 0..CALLERS_OF_ONE {
            let change = command::change_quantity(&order_id, 2);
            caller.send(change.clone()).await?;
            old.push(change);
        }
        let refused = Refused::default();
        let alone = new_commands(options, &caller, &order_id, &refused).await?;
        let stop = CancellationToken::new();
        let mut repeats = JoinSet::new();
        for change in old {
            repeats.spawn(repeat(caller.clone(), change, refused.clone(), stop.clone()));
        }
        let beside = new_commands(options, &caller, &order_id, &refused).await?;
        stop.cancel();
        repeats.join_all().await;
        report.note(
            "new commands on one aggregate beside 64 callers that repeat old ones, of alone",
            beside.rate() / alone.rate() * 100.0,
            "%",
            Goal::AtLeast(40.0),
        );
        report.note(
            "new and repeated commands that were refused",
            refused.count() as f64,
            "commands",
            Goal::AtMost(0.0),
        );
    }
    Ok(())
}

async fn new_commands(
    options: &Options,
    caller: &Caller,
    order_id: &str,
    refused: &Refused,
) -> anyhow::Result<Load> {
    let (order_id, refused) = (order_id.to_owned(), refused.clone());
    let change = move |(caller, quantity): (Caller, u32)| {
        let (order_id, refused) = (order_id.clone(), refused.clone());
        async move {
            let change = command::change_quantity(&order_id, quantity % 1_000 + 1);
            refused.note(&caller.send(change).await);
            Ok((caller, quantity + 1))
        }
    };
    load::closed(
        CALLERS_OF_ONE,
        options.duration(),
        |_| (caller.clone(), 1),
        change,
    )
    .await
}

async fn repeat(
    caller: Caller,
    change: ChangeLineQuantityRequest,
    refused: Refused,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        refused.note(&caller.send(change.clone()).await);
    }
}
