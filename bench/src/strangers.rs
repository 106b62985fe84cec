//! A flood of invented keys beside a caller who is known.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use bytes::Bytes;
use daybook_service::identity::generate_api_key;
use daybook_tests::client::{Caller, channel};
use daybook_tests::orders::place;
use daybook_tests::refusal::code;
use daybook_tests::stack::Stack;
use daybook_tests::{metrics, raw};
use futures::FutureExt as _;
use tonic::transport::Channel;

use crate::load::Load;
use crate::report::{Goal, Report};
use crate::{Options, load};

/// Requests with invented keys, per second.
const STRANGERS_PER_SECOND: u64 = 5_000;

/// Commands of the caller who is known, per second.
const COMMANDS_PER_SECOND: u64 = 500;

/// Connections that the strangers share.
const CONNECTIONS: usize = 8;

/// The pause between two looks at readiness.
const READINESS_PAUSE: Duration = Duration::from_millis(50);

pub(crate) async fn measure(options: &Options, stack: &Stack, report: &mut Report) -> anyhow::Result<()> {
    let caller = stack.caller()?;
    let url = stack.command.url();
    let channels: Vec<Channel> = (0..CONNECTIONS)
        .map(|_| channel(&url))
        .collect::<Result<_, _>>()?;
    let channels: Arc<[Channel]> = channels.into();
    for _ in 0..options.runs {
        let quiet = known_caller(options, &caller).await?;
        let readiness = watch_readiness(stack);
        let flooded = async {
            let flood = strangers(options, Arc::clone(&channels));
            tokio::try_join!(known_caller(options, &caller), flood)
        };
        let (known, _) = tokio::select! {
            both = flooded => both?,
            never = readiness => match never? {},
        };
        let (before, during) = (quiet.quantile_ms(0.99), known.quantile_ms(0.99));
        report.note("PlaceOrder at 500/s, p99", before, "ms", Goal::None);
        report.note(
            "the same beside 5,000 requests/s with invented keys, p99",
            during,
            "ms",
            Goal::AtMost(2.0 * before),
        );
    }
    Ok(())
}

async fn known_caller(options: &Options, caller: &Caller) -> anyhow::Result<Load> {
    let send = || {
        let caller = caller.clone();
        async move { Ok(caller.send_place(place("", "customer-1")).await.map(drop)?) }.boxed()
    };
    load::open(COMMANDS_PER_SECOND, options.duration(), send).await
}

async fn strangers(options: &Options, channels: Arc<[Channel]>) -> anyhow::Result<Load> {
    let send = || {
        let key = generate_api_key();
        let channel = channels[usize::from(key.sha256[0]) % CONNECTIONS].clone();
        async move {
            let authorization = format!("Bearer {}", key.plain);
            let path = "/daybook.orders.v1.OrderService/PlaceOrder";
            let answer = raw::call(&channel, path, Some(&authorization), Bytes::new()).await;
            let code = answer.map_or_else(|status| code(&status), |_| "an order".to_owned());
            let is_refused = ["UNAUTHENTICATED", "OVERLOADED"].contains(&code.as_str());
            ensure!(is_refused, "an invented key was answered with {code}");
            Ok(())
        }
        .boxed()
    };
    load::open(STRANGERS_PER_SECOND, options.duration(), send).await
}

/// Looks at readiness for ever; fails when the service is not ready.
async fn watch_readiness(stack: &Stack) -> anyhow::Result<std::convert::Infallible> {
    let mut looks = tokio::time::interval(READINESS_PAUSE);
    loop {
        looks.tick().await;
        metrics::ready(stack.command.admin).await?;
    }
}
