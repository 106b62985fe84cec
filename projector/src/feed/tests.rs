//! The batches that a worker gets from the window, and when the window moves.

use super::*;
use crate::batch::Decoded;
use daybook_event_bus::consume::Source;
use daybook_event_store::RecordedEvent;
use time::OffsetDateTime;

const LOG: Uuid = Uuid::from_u128(1);

/// More than the events of these tests take.
const BYTES_MAX: usize = 1_000;

/// A batch of this many events after a position. What happened in them does not matter here.
fn batch(log_generation: Uuid, after: u64, events: u64) -> Arc<Batch> {
    let events = (after + 1..=after + events).map(|position| Decoded::new(&event(position), Source::Bus));
    Arc::new(Batch {
        log_generation,
        events: events.collect(),
        bytes: 0,
        delivered_at: std::time::Instant::now(),
    })
}

fn event(position: u64) -> RecordedEvent {
    RecordedEvent {
        partition: 0,
        position,
        tenant_id: Uuid::nil(),
        category: "order".to_owned(),
        stream_id: String::new(),
        stream_version: 1,
        event_id: Uuid::nil(),
        event_type: String::new(),
        schema_version: 1,
        payload: String::new(),
        metadata: "{}".into(),
        recorded_at: OffsetDateTime::UNIX_EPOCH,
    }
}

fn last(taken: &Taken) -> Option<u64> {
    match taken {
        Taken::Batches(batches) => batches.last().map(|batch| batch.last()),
        Taken::CaughtUp | Taken::Elsewhere => None,
    }
}

#[tokio::test]
async fn a_worker_inside_the_window_takes_all_that_has_come_since() {
    let feed = Feed::default();
    let mut worker = feed.subscribe();
    feed.0.restart(10, None);
    feed.push(batch(LOG, 10, 5)).await;
    feed.push(batch(LOG, 15, 5)).await;
    assert_eq!(last(&worker.take(10, 100, BYTES_MAX)), Some(20));
    assert_eq!(
        last(&worker.take(12, 1, BYTES_MAX)),
        Some(15),
        "whole batches, up to the maximum"
    );
    assert!(matches!(worker.take(20, 100, BYTES_MAX), Taken::CaughtUp));
}

#[tokio::test]
async fn a_worker_before_the_window_reads_alone_and_one_behind_it_waits() {
    let feed = Feed::default();
    let mut worker = feed.subscribe();
    assert!(
        matches!(worker.take(0, 100, BYTES_MAX), Taken::Elsewhere),
        "nothing feeds the window"
    );
    feed.0.restart(10, None);
    feed.push(batch(LOG, 10, 5)).await;
    assert!(matches!(worker.take(9, 100, BYTES_MAX), Taken::Elsewhere));
    assert!(matches!(worker.take(17, 100, BYTES_MAX), Taken::CaughtUp));
}

#[tokio::test]
async fn a_batch_that_does_not_continue_the_window_begins_a_new_one() {
    let feed = Feed::default();
    let mut worker = feed.subscribe();
    feed.0.restart(0, None);
    feed.push(batch(LOG, 0, 5)).await;
    feed.push(batch(Uuid::from_u128(2), 5, 5)).await;
    assert!(
        matches!(worker.take(2, 100, BYTES_MAX), Taken::Elsewhere),
        "another log"
    );
    assert_eq!(last(&worker.take(5, 100, BYTES_MAX)), Some(10));
    feed.push(batch(Uuid::from_u128(2), 20, 5)).await;
    assert!(
        matches!(worker.take(10, 100, BYTES_MAX), Taken::Elsewhere),
        "a hole"
    );
}

#[tokio::test(start_paused = true)]
async fn a_full_window_waits_for_a_worker_inside_it_but_not_for_ever() {
    let feed = Feed::default();
    let mut worker = feed.subscribe();
    feed.0.restart(0, None);
    let half = WINDOW_EVENTS_MAX as u64 / 2;
    feed.push(batch(LOG, 0, half)).await;
    feed.push(batch(LOG, half, half)).await;
    worker.take(0, 1, BYTES_MAX);
    let pushing = feed.push(batch(LOG, 2 * half, 1));
    let waited = tokio::time::timeout(PATIENCE / 2, pushing).await;
    assert!(waited.is_err(), "the worker needs the oldest batch");

    worker.take(half, 1, BYTES_MAX);
    feed.push(batch(LOG, 2 * half, 1)).await;
    assert!(
        matches!(worker.take(0, 1, BYTES_MAX), Taken::Elsewhere),
        "the oldest batch is gone"
    );
    worker.take(half, 1, BYTES_MAX);
    feed.push(batch(LOG, 2 * half + 1, half)).await;
    feed.push(batch(LOG, 3 * half + 1, 1)).await;
    assert!(
        matches!(worker.take(half, 1, BYTES_MAX), Taken::Elsewhere),
        "it went on without the worker"
    );
}

#[tokio::test(start_paused = true)]
async fn the_slowest_worker_does_not_set_the_pace_of_the_others() {
    let feed = Feed::default();
    let (mut fast, mut slow) = (feed.subscribe(), feed.subscribe());
    feed.0.restart(0, None);
    let quarter = WINDOW_EVENTS_MAX as u64 / 4;
    let began = tokio::time::Instant::now();
    for number in 0..100 {
        slow.take(number.max(1) - 1, 1, BYTES_MAX);
        assert!(
            matches!(fast.take(number * quarter, 1, BYTES_MAX), Taken::CaughtUp),
            "it never reads alone"
        );
        feed.push(batch(LOG, number * quarter, quarter)).await;
    }
    assert_eq!(began.elapsed(), Duration::ZERO, "nobody was waited for");
    assert!(matches!(slow.take(99, 1, BYTES_MAX), Taken::Elsewhere));
}

#[tokio::test]
async fn what_all_workers_have_is_not_kept() {
    let feed = Feed::default();
    let (mut first, mut second) = (feed.subscribe(), feed.subscribe());
    feed.0.restart(0, None);
    first.take(0, 100, BYTES_MAX);
    second.take(0, 100, BYTES_MAX);
    for number in 0..3 {
        feed.push(batch(LOG, number * 5, 5)).await;
    }
    assert_eq!(feed.0.window().events, 15, "both need them");
    first.take(15, 100, BYTES_MAX);
    second.take(10, 100, BYTES_MAX);
    feed.push(batch(LOG, 15, 5)).await;
    assert_eq!(feed.0.window().events, 10, "one needs the third still");
}

#[tokio::test]
async fn a_window_of_large_events_is_moved_early() {
    let feed = Feed::default();
    let mut worker = feed.subscribe();
    feed.0.restart(0, None);
    for position in 0..3 {
        worker.take(position.min(1), 100, BYTES_MAX);
        let large = Batch {
            bytes: WINDOW_BYTES_MAX / 2,
            ..Arc::into_inner(batch(LOG, position, 1)).expect("nobody else has it")
        };
        feed.push(Arc::new(large)).await;
    }
    assert!(matches!(worker.take(0, 100, BYTES_MAX), Taken::Elsewhere));
    assert_eq!(last(&worker.take(1, 100, WINDOW_BYTES_MAX)), Some(3));
}

#[tokio::test]
async fn a_worker_takes_no_more_bytes_than_it_may_have_in_its_hands_but_one_batch_at_least() {
    let feed = Feed::default();
    let mut worker = feed.subscribe();
    feed.0.restart(0, None);
    for position in 0..4 {
        let large = Batch {
            bytes: 600,
            ..Arc::into_inner(batch(LOG, position, 1)).expect("nobody else has it")
        };
        feed.push(Arc::new(large)).await;
    }
    let mut taken = |bytes_max| last(&worker.take(0, 100, bytes_max));
    assert_eq!(
        [taken(100), taken(1_200), taken(1_799)],
        [Some(1), Some(2), Some(2)]
    );
}

#[tokio::test]
async fn when_the_last_worker_leaves_nothing_is_kept_and_nothing_more_is_wanted() {
    let feed = Feed::default();
    let (mut first, mut second) = (feed.subscribe(), feed.subscribe());
    let wanted = feed.0.is_wanted.subscribe();
    assert!(!*wanted.borrow(), "a worker without a lease wants nothing");
    feed.0.restart(0, None);
    first.take(0, 100, BYTES_MAX);
    second.take(0, 100, BYTES_MAX);
    feed.push(batch(LOG, 0, 5)).await;
    first.step_aside();
    assert_eq!(
        (last(&second.take(0, 100, BYTES_MAX)), *wanted.borrow()),
        (Some(5), true)
    );
    drop(second);
    assert!(matches!(first.take(0, 100, BYTES_MAX), Taken::Elsewhere));
    assert!(*wanted.borrow());
    first.step_aside();
    assert!(!*wanted.borrow());
}

#[tokio::test]
async fn a_worker_that_stepped_aside_holds_nothing_up() {
    let feed = Feed::default();
    let mut worker = feed.subscribe();
    feed.0.restart(0, None);
    let full = WINDOW_EVENTS_MAX as u64;
    feed.push(batch(LOG, 0, full)).await;
    worker.take(0, 1, BYTES_MAX);
    worker.step_aside();
    tokio::time::timeout(PATIENCE / 2, feed.push(batch(LOG, full, 1)))
        .await
        .expect("there is room");
}
