//! Publishing on a real nats-server and a real Postgres: the stream ends up equal to the log, whatever happens.

use std::time::Duration;

use anyhow::ensure;
use daybook_event_bus::publish::PublisherOptions;
use daybook_event_store::RecordedEvent;
use daybook_tests::nats;
use daybook_tests::wait::{self, DEADLINE};
use futures::StreamExt as _;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::{PARTITION, Stack, log_of_its_own, read_to};

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_events_are_published_in_order() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    for _ in 0..100 {
        publishing.tell_all(stack.commit(50).await?).await?;
    }
    stack.stream_equals_log(&publishing).await?;
    publishing.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn two_publishers_of_one_log_make_one_stream() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let publishers = [stack.publisher().await?, stack.publisher().await?];
    for number in 0..400 {
        let committed = stack.commit(1 + number % 7).await?;
        // Each knows of a part only, and some commits reach nobody.
        if number % 31 != 0 {
            publishers[number * 7 % 3 % 2].tell(committed);
        }
    }
    for publishing in &publishers {
        stack.stream_equals_log(publishing).await?;
        assert_eq!(publishing.handle.metrics().rebuilt.get(), 0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_publishers_that_both_know_everything_make_one_stream() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let publishers = [stack.publisher().await?, stack.publisher().await?];
    for _ in 0..100 {
        let committed = stack.commit(20).await?;
        let generation = committed.generation;
        let copy = daybook_event_store::Committed {
            generation,
            events: committed.events.clone(),
            at: committed.at,
        };
        publishers[0].tell(committed);
        publishers[1].tell(copy);
    }
    for publishing in &publishers {
        stack.stream_equals_log(publishing).await?;
        assert_eq!(publishing.handle.metrics().rebuilt.get(), 0);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stopped_replica_committed_another_publishes() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let stopped = stack.publisher().await?;
    let helper = stack.publisher().await?;
    stopped.tell(stack.commit(3).await?);
    stopped.published(3).await?;
    helper.published(3).await?;

    stopped.crash().await;
    let _never_published = stack.commit(4).await?;
    helper.tell(stack.commit(5).await?);

    stack.stream_equals_log(&helper).await?;
    assert_eq!(helper.handle.metrics().refilled.get(), 9);
    helper.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_published_is_found_by_comparing() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let _never_published = stack.commit(2_500).await?;
    let publishing = stack.publisher().await?;
    stack.stream_equals_log(&publishing).await?;
    assert_eq!(publishing.handle.metrics().refilled.get(), 2_500);

    let _never_published = stack.commit(1).await?;
    stack.stream_equals_log(&publishing).await?;
    publishing.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_store_is_filled_again() -> anyhow::Result<()> {
    let mut stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(1_200).await?);
    publishing.published(1_200).await?;

    stack.nats.delete_store().await?;
    // Nobody waits for NATS: commits go on, and what the publisher is told meanwhile is let go.
    for _ in 0..100 {
        publishing.tell(stack.commit(3).await?);
    }
    stack.nats.restart().await?;

    wait::until("a refilled stream", async || {
        Ok(stack
            .raw_stream()
            .await
            .is_ok_and(|stream| stream.cached_info().state.messages == 1_500))
    })
    .await?;
    stack.stream_equals_log(&publishing).await?;
    assert_eq!(publishing.handle.metrics().rebuilt.get(), 0);
    publishing.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_beyond_the_log_is_made_anew_behind_the_log() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(10).await?);
    publishing.published(10).await?;

    stack.publish_foreign().await?;
    wait::until("a rebuilt stream", async || {
        Ok(publishing.handle.metrics().rebuilt.get() == 1)
    })
    .await?;

    publishing.tell(stack.commit(5).await?);
    stack.stream_equals_log(&publishing).await?;
    publishing.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_message_in_the_place_of_an_event_is_found() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    // Nothing but the refusal can tell.
    let compare_interval = Duration::from_secs(3_600);
    let publishing = stack
        .publisher_with(PublisherOptions {
            compare_interval,
            ..PublisherOptions::default()
        })
        .await?;
    publishing.tell(stack.commit(10).await?);
    publishing.published(10).await?;

    let committed = stack.commit(5).await?;
    stack.publish_foreign().await?;
    // The first of these is refused, and the rest fits behind the foreign message.
    publishing.tell(committed);

    wait::until("a rebuilt stream", async || {
        Ok(publishing.handle.metrics().rebuilt.get() == 1)
    })
    .await?;
    stack.stream_equals_log(&publishing).await?;
    assert!(publishing.handle.metrics().refused.get() >= 1);
    let info = stack.raw_stream().await?.cached_info().clone();
    assert_eq!(
        info.state.first_sequence, 11,
        "what is before it is not published again"
    );
    publishing.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_headers_cannot_be_read_is_foreign() -> anyhow::Result<()> {
    let no_header = b"NATS/1.0\r\nno colon\r\n\r\n".as_slice();
    let no_text = b"NATS/1.0\r\nname: \xff\r\n\r\n";
    for headers in [no_header, no_text] {
        let stack = Stack::start().await?;
        let publishing = stack.publisher().await?;
        publishing.tell(stack.commit(10).await?);
        publishing.published(10).await?;
        let mut reader = stack.reader(0).await?;

        let committed = stack.commit(5).await?;
        stack.publish_headers(headers).await?;
        publishing.tell(committed);
        // The first of them is refused, and the rest fits behind the foreign message.
        wait::until("a rebuilt stream", async || {
            Ok(publishing.handle.metrics().rebuilt.get() == 1)
        })
        .await?;
        stack.stream_equals_log(&publishing).await?;
        assert_eq!(read_to(&mut reader, 15).await?, stack.log().await?);
        publishing.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_message_in_the_place_of_what_another_replica_committed_is_found() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(10).await?);
    publishing.published(10).await?;

    let _of_a_replica_that_died = stack.commit(1).await?;
    stack.publish_foreign().await?;
    publishing.tell(stack.commit(1).await?);
    wait::until("a rebuilt stream", async || {
        Ok(publishing.handle.metrics().rebuilt.get() == 1)
    })
    .await?;
    stack.stream_equals_log(&publishing).await?;
    publishing.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_goes_on_in_the_next_epoch_of_the_log() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(10).await?);
    publishing.published(10).await?;
    let made = stack.raw_stream().await?.cached_info().created;

    stack.fork(10).await?;
    publishing.tell(stack.commit(5).await?);
    stack.stream_equals_log(&publishing).await?;

    let info = stack.raw_stream().await?.cached_info().clone();
    let generation = stack.store.head(PARTITION).await?.epoch.generation.to_string();
    assert_eq!((info.created, info.state.first_sequence), (made, 1));
    assert_eq!(info.config.metadata.get("daybook-generation"), Some(&generation));
    assert_eq!(publishing.handle.metrics().rebuilt.get(), 0);
    publishing.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_fork_only_what_lies_above_it_is_published_again() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(1_000).await?);
    publishing.published(1_000).await?;
    let before = publishing.handle.metrics().published.get();

    stack.fork(990).await?;
    wait::until("a stream from the fork on", async || {
        let info = stack.raw_stream().await;
        Ok(info.is_ok_and(|stream| stream.cached_info().state.first_sequence == 991))
    })
    .await?;
    publishing.tell(stack.commit(1).await?);
    stack.stream_equals_log(&publishing).await?;
    // One that is refused because another copy of it was stored counts as well.
    let again = publishing.handle.metrics().published.get() - before;
    assert!((11..=22).contains(&again), "{again}");
    publishing.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_set_back_is_found_by_the_stream_that_is_ahead_of_it() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(100).await?);
    publishing.published(100).await?;
    publishing.crash().await;
    let before = stack.store.head(PARTITION).await?;

    stack.set_back(60).await?;
    let publishing = stack.publisher().await?;
    wait::until("another epoch", async || {
        Ok(stack.store.head(PARTITION).await?.epoch > before.epoch)
    })
    .await?;
    publishing.tell(stack.commit(30).await?);
    stack.stream_equals_log(&publishing).await?;

    let lineage = stack.store.lineage(PARTITION).await?;
    assert_eq!(lineage.valid_up_to(before.epoch.generation), Some(60));
    let info = stack.raw_stream().await?.cached_info().clone();
    assert_eq!((info.state.first_sequence, info.state.messages), (61, 30));
    publishing.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_were_deleted_do_not_move_the_fork() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    // An epoch of this very database: it was copied from a template.
    stack.fork(0).await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(100).await?);
    publishing.published(100).await?;
    publishing.crash().await;
    let before = stack.store.head(PARTITION).await?;

    let stream = stack.raw_stream().await?;
    for erased in 20..80 {
        stream.delete_message(erased).await?;
    }
    stack.set_back(90).await?;
    let publishing = stack.publisher().await?;
    wait::until("another epoch", async || {
        Ok(stack.store.head(PARTITION).await?.epoch > before.epoch)
    })
    .await?;
    let lineage = stack.store.lineage(PARTITION).await?;
    assert_eq!(lineage.valid_up_to(before.epoch.generation), Some(90));
    publishing.stop().await
}

/// Who compares the stream with a log that was set back and has gone on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finder {
    /// A process that has just started.
    New,
    /// One that knows the stream, when its connection to NATS comes back.
    Reconnected,
}

/// The log is set back from 100 events to 60, and so many are recorded before anybody compares it with the stream.
async fn a_log_goes_on_after_it_was_set_back(events: usize, finder: Finder) -> anyhow::Result<()> {
    let mut stack = Stack::start().await?;
    // An epoch of this very database: it was copied from a template.
    stack.fork(0).await?;
    let options = PublisherOptions {
        compare_interval: Duration::from_secs(3_600),
        ..PublisherOptions::default()
    };
    let publishing = stack.publisher_with(options).await?;
    publishing.tell(stack.commit(100).await?);
    publishing.published(100).await?;
    let publishing = match finder {
        Finder::New => {
            publishing.crash().await;
            None
        }
        Finder::Reconnected => Some(publishing),
    };
    let before = stack.store.head(PARTITION).await?;

    stack.set_back(60).await?;
    let _while_nobody_looks = stack.commit(events).await?;
    stack.nats.restart().await?;
    let publishing = match publishing {
        None => stack.publisher().await?,
        Some(publishing) => publishing,
    };
    wait::until("another epoch", async || {
        Ok(stack.store.head(PARTITION).await?.epoch > before.epoch)
    })
    .await?;
    stack.stream_equals_log(&publishing).await?;
    let lineage = stack.store.lineage(PARTITION).await?;
    assert_eq!(lineage.valid_up_to(before.epoch.generation), Some(60));
    let state = stack.raw_stream().await?.cached_info().state.clone();
    assert_eq!((state.first_sequence, state.messages), (61, events as u64));
    publishing.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_went_on_after_it_was_set_back_forks_where_the_histories_part() -> anyhow::Result<()> {
    a_log_goes_on_after_it_was_set_back(30, Finder::New).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_outgrew_the_stream_after_it_was_set_back_forks_where_the_histories_part()
-> anyhow::Result<()> {
    a_log_goes_on_after_it_was_set_back(80, Finder::New).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_knows_the_stream_finds_by_it_that_the_log_was_set_back_and_outgrew_it()
-> anyhow::Result<()> {
    a_log_goes_on_after_it_was_set_back(80, Finder::Reconnected).await
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_messages_beyond_the_log_cost_nothing_that_is_recorded() -> anyhow::Result<()> {
    // Where the stream holds ten messages, the foreign ones have driven out all events.
    for (retained_events_max, first) in [(None, 11), (Some(10), 16)] {
        let stack = Stack::start().await?;
        // An epoch of this very database: it was copied from a template.
        stack.fork(0).await?;
        let options = PublisherOptions {
            compare_interval: Duration::from_secs(3_600),
            retained_events_max,
            ..PublisherOptions::default()
        };
        let publishing = stack.publisher_with(options).await?;
        publishing.tell(stack.commit(10).await?);
        publishing.published(10).await?;
        let before = stack.store.head(PARTITION).await?;

        let committed = stack.commit(5).await?;
        for _ in 0..20 {
            stack.publish_foreign().await?;
        }
        publishing.tell(committed);
        stack.stream_equals_log(&publishing).await?;
        let lineage = stack.store.lineage(PARTITION).await?;
        assert!(lineage.has(before.epoch.generation, 15), "{lineage:?}");
        let state = stack.raw_stream().await?.cached_info().state.clone();
        assert_eq!(
            state.first_sequence, first,
            "what is before them is not published again"
        );
        publishing.stop().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_with_the_id_of_an_event_and_other_content_is_foreign() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(10).await?);
    publishing.published(10).await?;

    let committed = stack.commit(1).await?;
    let forged = RecordedEvent {
        payload: r#"{"forged": true}"#.to_owned(),
        ..committed.events[0].clone()
    };
    stack.publish_forged(&forged, committed.generation).await?;
    publishing.tell(committed);
    stack.stream_equals_log(&publishing).await?;
    publishing.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_made_anew_holds_the_newest_events_only() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let _before_there_was_a_stream = stack.commit(100).await?;
    let options = PublisherOptions {
        refilled_events_max: 30,
        ..PublisherOptions::default()
    };
    let publishing = stack.publisher_with(options).await?;
    publishing.published(100).await?;
    publishing.tell(stack.commit(50).await?);
    publishing.published(150).await?;
    let held = stack.stream().await?;
    assert_eq!(held, stack.store.read_log(PARTITION, 70, 100).await?);
    publishing.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_publishes_for_a_log_that_was_superseded_leaves_the_stream_alone() -> anyhow::Result<()> {
    let mut stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(10).await?);
    publishing.published(10).await?;

    // Another log goes on in the place of this one, as a promoted standby does while the old primary lives.
    let (_, mut other) = log_of_its_own().await?;
    stack.exchange(&mut other);
    stack.commit(1).await?;
    stack.fork(0).await?;
    let of_new = stack.publisher().await?;
    stack.stream_equals_log(&of_new).await?;
    let epoch = stack.store.head(PARTITION).await?.epoch;

    stack.exchange(&mut other);
    publishing.tell(stack.commit(10).await?);
    wait::until("the other epoch is seen", async || {
        Ok(publishing.seen.latest() == epoch)
    })
    .await?;
    stack.exchange(&mut other);
    of_new.tell(stack.commit(5).await?);
    stack.stream_equals_log(&of_new).await?;
    assert_eq!(publishing.handle.metrics().rebuilt.get(), 0);
    publishing.crash().await;
    of_new.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unanswering_server_is_outlived() -> anyhow::Result<()> {
    let mut stack = Stack::start().await?;
    let publishing = stack.publisher().await?;
    publishing.tell(stack.commit(10).await?);
    publishing.published(10).await?;

    stack.nats.pause();
    publishing.tell(stack.commit(10).await?);
    wait::until("an interruption", async || {
        Ok(publishing.handle.metrics().resyncs.get() >= 2)
    })
    .await?;
    stack.nats.resume();

    stack.stream_equals_log(&publishing).await?;
    publishing.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_may_begin_late_in_a_long_log() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let _before_there_was_a_stream = stack.commit(100).await?;
    let options = PublisherOptions {
        retained_events_max: Some(30),
        ..PublisherOptions::default()
    };
    let publishing = stack.publisher_with(options).await?;
    publishing.published(100).await?;
    publishing.tell(stack.commit(5).await?);
    publishing.published(105).await?;

    let held = stack.stream().await?;
    assert_eq!(held, stack.store.read_log(PARTITION, 75, 100).await?);
    publishing.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_observer_is_told_of_each_event_that_was_published_straight_away() -> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let (mut registry, latency) = (Registry::default(), Histogram::new([5.0]));
    registry.register("latency", "", latency.clone());
    // Nothing is read from the log but on start.
    let options = PublisherOptions {
        latency: Some(latency),
        compare_interval: Duration::from_secs(3_600),
        ..PublisherOptions::default()
    };
    let publishing = stack.publisher_with(options).await?;
    publishing.tell(stack.commit(1).await?);
    publishing.published(1).await?;
    publishing.tell(stack.commit(3).await?);
    publishing.published(4).await?;
    publishing.stop().await?;

    let mut text = String::new();
    encode(&mut text, &registry)?;
    let counts = [3, 4].map(|count| {
        format!("latency_bucket{{le=\"5.0\"}} {count}\nlatency_bucket{{le=\"+Inf\"}} {count}\n")
    });
    assert!(counts.iter().any(|count| text.contains(count)), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_with_nothing_to_do_reads_no_message_again_and_finds_that_the_log_was_set_back()
-> anyhow::Result<()> {
    let stack = Stack::start().await?;
    let options = PublisherOptions {
        compare_interval: Duration::from_millis(20),
        ..PublisherOptions::default()
    };
    let publishing = stack.publisher_with(options).await?;
    publishing.tell(stack.commit(3).await?);
    publishing.published(3).await?;
    let administrator = nats::connect(&stack.nats.url()).await?;
    let requests = administrator.subscribe("$JS.API.STREAM.>").await?;
    // The message that was sent last may yet be looked at once.
    let requests = requests.skip(5).take(20);
    let subjects = requests.map(|request| request.subject.to_string()).collect();
    let subjects: Vec<String> = tokio::time::timeout(DEADLINE, subjects).await?;
    ensure!(
        subjects.iter().all(|subject| subject.contains("STREAM.INFO")),
        "{subjects:?}"
    );

    // Another event stands where the newest one stood.
    let before = stack.store.head(PARTITION).await?;
    stack.set_back(2).await?;
    let _never_told = stack.commit(1).await?;
    wait::until("the next epoch", async || {
        Ok(stack.store.head(PARTITION).await?.epoch > before.epoch)
    })
    .await?;
    wait::until("the stream that carries it", async || {
        Ok(stack.stream_equals_log(&publishing).await.is_ok())
    })
    .await?;
    publishing.stop().await
}
