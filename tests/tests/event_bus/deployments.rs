//! Two deployments in one NATS account: neither meets what is the other's.

use std::time::Duration;

use daybook_event_bus::consume::{Reader, ReaderOptions};
use daybook_event_bus::publish::PublisherOptions;
use daybook_event_bus::replica::{self, RequestError};
use daybook_event_bus::signal::{self, Applied};
use daybook_event_bus::{Bus, Deployment};
use futures::{FutureExt as _, Stream, StreamExt as _};
use uuid::Uuid;

use super::{DEADLINE, PARTITION, Stack, connected, read_to};

/// A connection of each, with every right in the account: their names alone keep them apart.
async fn buses(stack: &Stack) -> anyhow::Result<[Bus; 2]> {
    let url = stack.nats.url();
    Ok([
        connected(&url, &Deployment::default()).await?,
        connected(&url, &"other".parse()?).await?,
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn each_deployment_has_its_stream_of_its_log() -> anyhow::Result<()> {
    let stacks = [Stack::start().await?, Stack::start().await?];
    let buses = buses(&stacks[0]).await?;
    let mut publishers = Vec::new();
    for (stack, bus) in stacks.iter().zip(&buses) {
        let publishing = stack.publisher_on(bus.clone(), PublisherOptions::default());
        publishing.tell(stack.commit(10).await?);
        publishing.published(10).await?;
        publishers.push(publishing);
    }
    for ((stack, bus), publishing) in stacks.iter().zip(buses).zip(&publishers) {
        publishing.tell(stack.commit(10).await?);
        publishing.published(20).await?;
        let mut reader = Reader::new(bus, stack.store.clone(), PARTITION, 0, ReaderOptions::default());
        assert_eq!(read_to(&mut reader, 20).await?, stack.log().await?);
        assert_eq!(reader.metrics().from_log.get(), 0);
        assert_eq!(publishing.handle.metrics().rebuilt.get(), 0);
    }
    Ok(())
}

/// What comes from a subscription that may not have reached the server yet: it is sent until something comes.
async fn received<T>(
    subscription: &mut (impl Stream<Item = T> + Unpin),
    send: impl AsyncFn(),
) -> anyhow::Result<Option<T>> {
    let received = async {
        loop {
            send().await;
            let patience = Duration::from_millis(20);
            if let Ok(next) = tokio::time::timeout(patience, subscription.next()).await {
                return next;
            }
        }
    };
    Ok(tokio::time::timeout(DEADLINE, received).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_deployment_receives_the_signals_of_the_other() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let [bus, other] = buses(&stack).await?;
    let applied = |position| Applied {
        log_epoch: 1,
        projection: "order_list".to_owned(),
        partition: PARTITION,
        log_generation: Uuid::nil(),
        position,
    };
    let mut progress = signal::subscribe(&bus).await?;
    let mut work = signal::subscribe_freed(&bus).await?;
    let mut replicas = replica::announcements(&bus).await?;
    let first = received(&mut progress, async || signal::announce(&bus, &applied(1)).await).await?;
    assert_eq!(first, Some(applied(1)));

    // What the other one sends has passed the server when its own last message has come back.
    let mut echo = replica::announcements(&other).await?;
    signal::announce(&other, &applied(2)).await;
    signal::announce_freed(&other).await;
    received(&mut echo, async || replica::announce(&other, Vec::new()).await).await?;

    // So anything of it would come before this.
    signal::announce(&bus, &applied(3)).await;
    let mut next = Some(applied(1));
    while next == Some(applied(1)) {
        next = tokio::time::timeout(DEADLINE, progress.next()).await?;
    }
    assert_eq!(next, Some(applied(3)));
    assert_eq!(work.next().now_or_never(), None);
    assert_eq!(replicas.next().now_or_never(), None);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_not_forwarded_to_a_replica_of_another_deployment() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let [bus, other] = buses(&stack).await?;
    let replica = Uuid::from_u128(7);
    let mut commands = replica::commands(&bus, replica).await?;
    let send = async |bus: &Bus| replica::request(bus, replica, Vec::new(), Duration::from_millis(20)).await;
    received(&mut commands, async || drop(send(&bus).await)).await?;

    let refused = send(&other).await;
    assert!(matches!(refused, Err(RequestError::NobodyListens)), "{refused:?}");
    Ok(())
}
