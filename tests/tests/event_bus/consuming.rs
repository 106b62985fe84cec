//! Consuming from a real nats-server and a real Postgres: every event once, in order, whatever happens to the stream.

use std::time::{Duration, Instant};

use daybook_devstack::NatsUser;
use daybook_event_bus::consume::{Reader, ReaderError, ReaderOptions, Source};
use daybook_event_bus::signal::{self, Applied};
use daybook_event_store::RecordedEvent;
use daybook_tests::wait;
use futures::StreamExt as _;
use sqlx::Connection as _;
use uuid::Uuid;

use super::{DEADLINE, PARTITION, Stack, attempt, next, read_to};

#[tokio::test(flavor = "multi_thread")]
async fn events_come_from_the_stream_once_each_and_in_order() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(2_000).await?);
    publishing.published(2_000).await?;

    let mut reader = stack.reader(0).await?;
    assert_eq!(read_to(&mut reader, 2_000).await?, stack.log().await?);
    assert_eq!(reader.metrics().from_log.get(), 0);

    publishing.tell(stack.commit(1).await?);
    let batch = next(&mut reader).await?;
    assert_eq!((batch.source, batch.events[0].position), (Source::Bus, 2_001));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_begins_after_the_position_that_it_was_given() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(100).await?);
    publishing.published(100).await?;
    let mut reader = stack.reader(60).await?;
    assert_eq!(read_to(&mut reader, 100).await?, stack.log().await?[60..]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hole_in_the_stream_is_filled_from_the_log() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(50).await?);
    publishing.published(50).await?;
    let stream = stack.raw_stream().await?;
    for position in [1, 20, 21, 50] {
        stream.delete_message(position).await?;
    }

    let mut reader = stack.reader(0).await?;
    assert_eq!(read_to(&mut reader, 50).await?, stack.log().await?);
    let metrics = reader.metrics();
    assert_eq!((metrics.from_log.get(), metrics.holes.get()), (4, 2));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purged_range_is_read_from_the_log() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(3_000).await?);
    publishing.published(3_000).await?;
    stack.raw_stream().await?.purge().sequence(2_501).await?;

    let mut reader = stack.reader(0).await?;
    assert_eq!(read_to(&mut reader, 3_000).await?, stack.log().await?);
    assert_eq!(reader.metrics().from_log.get(), 2_500);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_message_is_not_delivered() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(3).await?);
    publishing.published(3).await?;
    publishing.stop().await?;
    stack.publish_foreign().await?;
    let _in_its_place = stack.commit(3).await?;

    let mut reader = stack.reader(0).await?;
    assert_eq!(read_to(&mut reader, 6).await?, stack.log().await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_does_not_hold_is_never_said_to_come_from_it() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(3).await?);
    publishing.published(3).await?;
    publishing.stop().await?;
    let options = ReaderOptions {
        idle_interval: DEADLINE,
        ..ReaderOptions::default()
    };
    let mut reader = Reader::new(
        stack.bus(NatsUser::Projector).await?,
        stack.store.clone(),
        PARTITION,
        0,
        options,
    );
    read_to(&mut reader, 3).await?;

    // A hole, and what looks like an event behind it, which comes before the log has answered.
    let in_their_place = stack.commit(2).await?;
    let mut connection = stack.pool.acquire().await?;
    let mut lock = connection.begin().await?;
    sqlx::query("LOCK TABLE event_store.event")
        .execute(&mut *lock)
        .await?;
    let forged = RecordedEvent {
        event_id: Uuid::now_v7(),
        ..in_their_place.events[1].clone()
    };
    stack.publish_foreign().await?;
    stack.publish_forged(&forged, in_their_place.generation).await?;
    let metrics = reader.metrics().clone();
    let heard = wait::until("both messages", async || Ok(metrics.holes.get() == 2));
    tokio::select! {
        heard = heard => heard?,
        batch = next(&mut reader) => panic!("the log has not answered: {batch:?}"),
    }
    lock.rollback().await?;

    let mut expected = in_their_place.events.as_slice();
    while !expected.is_empty() {
        let batch = next(&mut reader).await?;
        let (in_log, rest) = expected.split_at(batch.events.len());
        assert!(batch.source == Source::Bus || batch.events == in_log);
        expected = rest;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn more_large_messages_than_the_server_may_send_ahead_all_come_from_the_stream() -> anyhow::Result<()> {
    const EVENTS: usize = 40;
    let stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    let payload = format!("\"{}\"", "x".repeat(900_000));
    let mut payloads = vec![payload; EVENTS];
    payloads.extend(vec!["1".to_owned(); EVENTS]);
    publishing.tell(stack.commit_payloads(payloads).await?);
    publishing.published(2 * EVENTS as u64).await?;

    let mut reader = stack.reader(0).await?;
    assert_eq!(read_to(&mut reader, 2 * EVENTS as u64).await?, stack.log().await?);
    assert_eq!(reader.metrics().from_log.get(), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn large_events_come_from_the_log_a_few_at_a_time_and_at_least_one() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let large = format!("\"{}\"", "x".repeat(3 << 20));
    let payloads = vec![
        large.clone(),
        large.clone(),
        large.clone(),
        large,
        format!("\"{}\"", "x".repeat(9 << 20)),
    ];
    stack.commit_payloads(payloads).await?;
    let read = async |after| stack.store.read_log(PARTITION, after, 100).await;
    assert_eq!(read(0).await?.len(), 3);
    assert_eq!(read(3).await?.len(), 2);
    assert_eq!(read(4).await?.len(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_too_large_for_a_message_is_delivered() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    let payloads = vec![
        "1".to_owned(),
        format!("\"{}\"", "x".repeat(2 << 20)),
        "3".to_owned(),
    ];
    publishing.tell(stack.commit_payloads(payloads).await?);
    publishing.published(3).await?;

    let mut reader = stack.reader(0).await?;
    assert_eq!(read_to(&mut reader, 3).await?, stack.log().await?);
    assert_eq!(publishing.handle.metrics().referenced.get(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_nats_events_come_from_the_log_and_with_it_from_the_stream_again() -> anyhow::Result<()> {
    let mut stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(10).await?);
    publishing.published(10).await?;
    let mut reader = stack.reader(0).await?;
    read_to(&mut reader, 10).await?;

    stack.nats.kill().await?;
    for position in 11..=15 {
        publishing.tell(stack.commit(1).await?);
        let batch = next(&mut reader).await?;
        assert_eq!((batch.source, batch.events[0].position), (Source::Log, position));
    }

    stack.nats.restart().await?;
    publishing.published(15).await?;
    let mut position = 15;
    wait::until("an event from the stream", async || {
        publishing.tell(stack.commit(1).await?);
        position += 1;
        let batch = next(&mut reader).await?;
        assert_eq!(batch.events[0].position, position);
        Ok(batch.source == Source::Bus)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_store_does_not_stop_the_reader() -> anyhow::Result<()> {
    let mut stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(500).await?);
    let mut reader = stack.reader(0).await?;
    read_to(&mut reader, 500).await?;

    stack.nats.delete_store().await?;
    stack.nats.restart().await?;
    publishing.tell(stack.commit(500).await?);
    assert_eq!(read_to(&mut reader, 1_000).await?, stack.log().await?[500..]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_publishes_is_delivered_all_the_same() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(1).await?);
    publishing.published(1).await?;
    publishing.stop().await?;
    let mut reader = stack.reader(0).await?;
    read_to(&mut reader, 1).await?;

    let _never_published = stack.commit(2_345).await?;
    assert_eq!(read_to(&mut reader, 2_346).await?, stack.log().await?[1..]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_log_is_reported() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(3).await?);
    let mut reader = stack.reader(0).await?;
    let before = next(&mut reader).await?.generation;

    stack.fork(3).await?;
    let error = loop {
        match attempt(&mut reader).await? {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ReaderError::GenerationChanged { expected, head: 3, .. } if expected == before));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_published_before_a_fork_still_comes_from_the_stream() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(1_000).await?);
    publishing.published(1_000).await?;
    stack.fork(1_000).await?;
    publishing.tell(stack.commit(10).await?);
    publishing.published(1_010).await?;

    // It looks at the log for nothing but the head, so that all has to come over the bus.
    let options = ReaderOptions {
        idle_interval: DEADLINE,
        ..ReaderOptions::default()
    };
    let bus = stack.bus(NatsUser::Projector).await?;
    let mut reader = Reader::new(bus, stack.store.clone(), PARTITION, 0, options);
    assert_eq!(read_to(&mut reader, 1_010).await?, stack.log().await?);
    assert_eq!(reader.metrics().holes.get(), 0);
    publishing.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_belongs_to_another_log_is_refused() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let options = ReaderOptions {
        generation: Some(Uuid::from_u128(7)),
        ..ReaderOptions::default()
    };
    let mut reader = Reader::new(
        stack.bus(NatsUser::Projector).await?,
        stack.store.clone(),
        PARTITION,
        0,
        options,
    );
    let refused = attempt(&mut reader).await?;
    assert!(matches!(refused, Err(ReaderError::GenerationChanged { .. })));

    let mut reader = stack.reader(9).await?;
    let refused = attempt(&mut reader).await?;
    assert!(matches!(
        refused,
        Err(ReaderError::AheadOfLog { position: 9, head: 0 })
    ));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_call_loses_nothing() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    for _ in 0..50 {
        publishing.tell_all(stack.commit(20).await?).await?;
    }
    publishing.published(1_000).await?;
    for position in [5, 300, 999] {
        stack.raw_stream().await?.delete_message(position).await?;
    }
    let mut reader = stack.reader(0).await?;
    let mut positions = Vec::new();
    let deadline = Instant::now() + DEADLINE;
    while positions.len() < 1_000 && Instant::now() < deadline {
        let patience = Duration::from_micros(50);
        if let Ok(batch) = tokio::time::timeout(patience, reader.next_batch(7)).await {
            positions.extend(batch?.events.iter().map(|event| event.position));
        }
    }
    assert_eq!(positions, (1..=1_000).collect::<Vec<u64>>());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_reaches_those_who_listen() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let mut signals = signal::subscribe(&stack.bus(NatsUser::Query).await?).await?;
    let applied = Applied {
        log_epoch: 1,
        projection: "order_list".to_owned(),
        partition: PARTITION,
        log_generation: Uuid::from_u128(3),
        position: 42,
    };
    let bus = stack.bus(NatsUser::Projector).await?;
    let heard = async {
        loop {
            // The subscription may not have reached the server yet.
            signal::announce(&bus, &applied).await;
            let patience = Duration::from_millis(20);
            if let Ok(signal) = tokio::time::timeout(patience, signals.next()).await {
                return signal;
            }
        }
    };
    assert_eq!(tokio::time::timeout(DEADLINE, heard).await?, Some(applied));
    Ok(())
}
