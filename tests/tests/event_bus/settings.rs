//! A stream with other settings than ours is set right or left alone, and one that is not ours is never touched.

use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::stream::{Config, DiscardPolicy, StorageType};
use daybook_event_bus::publish::PublisherOptions;
use daybook_event_bus::{Deployment, message};
use daybook_tests::wait;
use uuid::Uuid;

use super::{PARTITION, Publishing, STREAM, Stack, read_to};

/// A stream of ours that holds ten events, and nobody who publishes.
async fn with_ten_events() -> anyhow::Result<Stack> {
    let stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(10).await?);
    publishing.published(10).await?;
    assert_eq!(publishing.handle.metrics().reconciled.get(), 0);
    publishing.stop().await?;
    Ok(stack)
}

async fn config(stack: &Stack) -> anyhow::Result<Config> {
    Ok(stack.raw_stream().await?.cached_info().config.clone())
}

async fn left_alone(publishing: &Publishing) -> anyhow::Result<()> {
    let metrics = publishing.handle.metrics();
    wait::until("a stream that is left alone", async || {
        // Twice: it is not given up at the first refusal.
        Ok(metrics.unusable.get() == 1 && metrics.resyncs.get() >= 2)
    })
    .await?;
    assert_eq!(metrics.rebuilt.get(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_does_not_take_what_is_published_for_another_generation() -> anyhow::Result<()> {
    let stack = with_ten_events().await?;
    let late = stack.commit(1).await?.events.remove(0);
    let of_another = message::encode(&late, Uuid::from_u128(7), &Deployment::default());
    let jetstream = stack.jetstream().await?;
    let published =
        jetstream.publish_with_headers(of_another.subject, of_another.headers, of_another.payload);
    let refused = published.await?.await.err().map(|error| error.kind());
    assert_eq!(refused, Some(PublishErrorKind::StreamNotFound));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_with_our_settings_stays_as_it_is() -> anyhow::Result<()> {
    let stack = with_ten_events().await?;
    let before = config(&stack).await?;
    let publishing = stack.publisher().await?;
    publishing.published(10).await?;
    assert_eq!(publishing.handle.metrics().reconciled.get(), 0);
    assert_eq!(config(&stack).await?, before);
    publishing.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_somebody_changed_are_set_right_and_nothing_is_rebuilt() -> anyhow::Result<()> {
    let stack = with_ten_events().await?;
    let ours = config(&stack).await?;
    let changed = Config {
        max_messages: 10,
        discard: DiscardPolicy::New,
        max_age: std::time::Duration::from_secs(3_600),
        subjects: vec!["daybook.events.0.elsewhere".to_owned()],
        allow_direct: false,
        ..ours.clone()
    };
    stack.jetstream().await?.update_stream(changed).await?;

    let publishing = stack.publisher().await?;
    publishing.published(10).await?;
    assert_eq!(config(&stack).await?, ours);
    publishing.tell(stack.commit(10).await?);
    stack.stream_equals_log(&publishing).await?;
    let metrics = publishing.handle.metrics();
    assert_eq!(metrics.reconciled.get(), 1);
    assert_eq!(metrics.rebuilt.get(), 0);
    assert_eq!(metrics.unusable.get(), 0);
    publishing.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_limit_than_before_applies_to_the_stream_that_is_there() -> anyhow::Result<()> {
    let stack = with_ten_events().await?;
    let options = PublisherOptions {
        retained_events_max: Some(5),
        ..PublisherOptions::default()
    };
    let publishing = stack.publisher_with(options).await?;
    publishing.tell(stack.commit(1).await?);
    publishing.published(11).await?;
    let state = stack.raw_stream().await?.cached_info().state.clone();
    assert_eq!((state.first_sequence, state.messages), (7, 5));
    publishing.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_cannot_be_changed_are_reported_and_the_log_is_read_instead() -> anyhow::Result<()> {
    let stack = with_ten_events().await?;
    let ours = config(&stack).await?;
    let jetstream = stack.jetstream().await?;
    jetstream.delete_stream(STREAM).await?;
    let in_memory = Config {
        storage: StorageType::Memory,
        ..ours
    };
    jetstream.create_stream(in_memory).await?;

    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(5).await?);
    left_alone(&publishing).await?;
    assert_eq!(stack.raw_stream().await?.cached_info().state.messages, 0);
    let mut reader = stack.reader(0).await?;
    assert_eq!(read_to(&mut reader, 15).await?, stack.log().await?);

    jetstream.delete_stream(STREAM).await?;
    stack.stream_equals_log(&publishing).await?;
    assert_eq!(publishing.handle.metrics().unusable.get(), 0);
    publishing.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn more_replicas_than_there_are_servers_are_reported() -> anyhow::Result<()> {
    let stack = with_ten_events().await?;
    let replicas = PublisherOptions {
        replicas: 3,
        ..PublisherOptions::default()
    };
    let publishing = stack.publisher_with(replicas).await?;
    left_alone(&publishing).await?;
    assert_eq!(stack.raw_stream().await?.cached_info().state.messages, 10);
    publishing.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_not_ours_is_left_alone_and_reported() -> anyhow::Result<()> {
    for owner in [None, Some("other")] {
        let stack = Stack::start().await?;
        let jetstream = stack.jetstream().await?;
        let generation = stack.store.head(PARTITION).await?.epoch.generation;
        let metadata = owner.map(|owner| {
            [
                ("daybook-deployment".to_owned(), owner.to_owned()),
                ("daybook-generation".to_owned(), generation.to_string()),
            ]
        });
        let foreign = Config {
            name: STREAM.to_owned(),
            subjects: vec!["theirs".to_owned()],
            metadata: metadata.into_iter().flatten().collect(),
            ..Config::default()
        };
        jetstream.create_stream(foreign).await?;
        jetstream.publish("theirs", "precious".into()).await?.await?;
        let before = stack.raw_stream().await?.cached_info().clone();

        let publishing = stack.publisher().await?;
        publishing.tell(stack.commit(5).await?);
        left_alone(&publishing).await?;
        let after = stack.raw_stream().await?.cached_info().clone();
        assert_eq!((after.created, &after.config), (before.created, &before.config));
        assert_eq!(after.state.messages, 1);
        let mut reader = stack.reader(0).await?;
        assert_eq!(read_to(&mut reader, 5).await?, stack.log().await?);

        jetstream.delete_stream(STREAM).await?;
        stack.stream_equals_log(&publishing).await?;
        publishing.stop().await?;
    }
    Ok(())
}
