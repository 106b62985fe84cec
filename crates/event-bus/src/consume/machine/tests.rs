//! Every transition that matters by itself, and then any order of inputs at all.

use std::ops::RangeInclusive;

use daybook_event_store::{Epoch, EpochId};

use super::*;
use crate::message::tests::sample;

mod any_order;

const PARTITION: i32 = 3;

/// The log's generation, and one that it does not have.
const LOG: Uuid = Uuid::from_u128(1);
const FOREIGN: Uuid = Uuid::from_u128(2);

/// How the tests tell where an event came from.
const IN_LOG: &str = "log";
const IN_STREAM: &str = "stream";

/// A reader of a log with a stream, at a moment that only the test moves.
struct Given {
    machine: Machine,
    now: Instant,
    is_connected: bool,
    reading: Option<LogRead>,
    /// The position of the log's newest event.
    head: u64,
}

fn event(position: u64, from: &str) -> RecordedEvent {
    RecordedEvent {
        partition: PARTITION,
        position,
        event_id: Uuid::from_u128(position.into()),
        metadata: from.into(),
        ..sample()
    }
}

fn options() -> ReaderOptions {
    ReaderOptions {
        read_events_max: 8,
        ..ReaderOptions::default()
    }
}

fn lineage() -> Lineage {
    let first = Epoch {
        number: 1,
        generation: LOG,
        from_position: 1,
    };
    Lineage::from_iter([first])
}

/// A reader that knows the log and has subscribed; `after` has been handed out.
fn following(after: u64, head: u64) -> Given {
    let mut given = Given::new(after, head, options());
    given.wanted();
    given.answers();
    given.on(Input::Subscribed);
    given
}

impl Given {
    fn new(after: u64, head: u64, options: ReaderOptions) -> Self {
        let now = Instant::now();
        Self {
            machine: Machine::new(PARTITION, after, options, now),
            now,
            is_connected: true,
            reading: None,
            head,
        }
    }

    fn on(&mut self, input: Input) {
        self.try_on(input).expect("it is the log that was expected");
    }

    fn try_on(&mut self, input: Input) -> Result<(), ReaderError> {
        self.machine.on(input, self.now)
    }

    fn wanted(&mut self) -> Wanted {
        let wanted = self
            .machine
            .wanted(self.now, self.is_connected, self.reading.is_some());
        self.reading = self.reading.or(wanted.read);
        wanted
    }

    fn wait(&mut self, wait: Duration) {
        self.now += wait;
    }

    /// A message with what belongs at its sequence.
    fn message(&mut self, sequence: u64) {
        self.carries(sequence, event(sequence, IN_STREAM), LOG);
    }

    fn messages(&mut self, sequences: RangeInclusive<u64>) {
        sequences.for_each(|sequence| self.message(sequence));
    }

    fn damaged(&mut self, sequence: u64) {
        self.on(Input::Message {
            sequence,
            carried: None,
        });
    }

    fn carries(&mut self, sequence: u64, event: RecordedEvent, generation: Uuid) {
        let carried = Some((event, generation));
        self.on(Input::Message { sequence, carried });
    }

    /// The log answers the read that is under way.
    fn answers(&mut self) -> LogRead {
        let read = self.reading.take().expect("the log is being read");
        let answer = self.answer(read);
        self.on(Input::Answer(answer));
        read
    }

    fn answer(&self, read: LogRead) -> Answer {
        let last = self.head.min(read.after + u64::from(read.limit));
        Answer {
            read,
            head: LogHead {
                epoch: EpochId {
                    number: 1,
                    generation: LOG,
                },
                position: self.head,
                recorded_at: None,
                event_id: None,
                is_standby: false,
            },
            lineage: read.wants_lineage.then(lineage),
            events: (read.after + 1..=last)
                .map(|position| event(position, IN_LOG))
                .collect(),
        }
    }

    /// The positions that come out now.
    fn taken(&mut self) -> Vec<u64> {
        let batch = self.machine.take(usize::MAX, self.now);
        let events = batch.into_iter().flat_map(|batch| batch.events);
        events.map(|event| event.position).collect()
    }

    fn source(&mut self) -> Option<Source> {
        self.machine.take(usize::MAX, self.now).map(|batch| batch.source)
    }

    fn listens(&self) -> bool {
        self.machine.listens_beyond(usize::MAX).is_some()
    }
}

fn read(after: u64, limit: u32) -> Option<LogRead> {
    Some(LogRead {
        after,
        limit,
        wants_lineage: false,
    })
}

#[test]
fn a_reader_reads_the_log_and_subscribes_but_believes_nothing_before_it_knows_the_log() {
    let mut given = Given::new(4, 9, options());
    let first = given.wanted();
    let lineage_only = LogRead {
        after: 4,
        limit: 0,
        wants_lineage: true,
    };
    assert_eq!((first.read, first.subscribe_from), (Some(lineage_only), Some(5)));
    given.on(Input::Subscribed);
    assert!(!given.listens());
    given.answers();
    assert!(given.listens());
    assert!(given.taken().is_empty());
}

#[test]
fn without_nats_a_reader_begins_with_the_log_and_goes_on_to_its_head() {
    let mut given = Given::new(0, 20, options());
    given.is_connected = false;
    let first = given.wanted();
    assert_eq!(first.subscribe_from, None);
    given.answers();
    assert_eq!(given.taken(), Vec::from_iter(1..=8));
    assert_eq!(given.wanted().read, read(8, 8));
    given.answers();
    assert_eq!(given.wanted().read, read(16, 4));
    given.answers();
    assert_eq!(given.taken(), Vec::from_iter(9..=20));

    let idle = given.wanted();
    assert_eq!(
        (idle.read, idle.wake_at),
        (None, given.now + options().poll_interval)
    );
    given.wait(options().poll_interval);
    assert_eq!(given.wanted().read, read(20, 8));
}

#[test]
fn the_next_message_is_the_next_event() {
    let mut given = following(4, 9);
    given.messages(5..=7);
    assert_eq!(given.source(), Some(Source::Bus));
    given.messages(8..=9);
    assert_eq!(given.taken(), [8, 9]);
    assert_eq!(given.wanted().read, None);
    assert_eq!(given.machine.metrics().from_log.get(), 0);
}

#[test]
fn a_message_that_was_had_already_is_passed_over() {
    let mut given = following(4, 9);
    given.messages(5..=7);
    given.messages(3..=8);
    assert_eq!(given.taken(), [5, 6, 7, 8]);
    assert_eq!(given.machine.listens_beyond(usize::MAX), Some(8));
}

#[test]
fn a_hole_is_read_from_the_log_exactly_and_the_event_behind_it_follows() {
    let mut given = following(0, 20);
    given.messages(1..=9);
    given.taken();
    given.message(12);
    assert!(!given.listens());
    assert_eq!(given.wanted().read, read(9, 2));
    given.answers();
    assert!(given.listens());
    let batch = given.machine.take(usize::MAX, given.now).expect("a batch");
    let positions: Vec<_> = batch.events.iter().map(|event| event.position).collect();
    assert_eq!(
        (positions.as_slice(), batch.source),
        ([10, 11, 12].as_slice(), Source::Bus)
    );
}

#[test]
fn a_hole_larger_than_one_read_is_read_in_pieces_up_to_its_end() {
    let mut given = following(0, 30);
    given.message(21);
    for expected in [read(0, 8), read(8, 8), read(16, 4), None] {
        assert_eq!(given.wanted().read, expected);
        if expected.is_some() {
            given.answers();
        }
    }
    assert_eq!(given.taken(), Vec::from_iter(1..=21));
}

#[test]
fn a_read_that_gives_less_than_it_was_asked_for_is_not_taken_for_the_end() {
    let mut given = following(0, 5);
    given.message(5);
    let asked = given.wanted().read.expect("a hole");
    let mut answer = given.answer(asked);
    answer.events.truncate(3);
    given.reading = None;
    given.on(Input::Answer(answer));
    assert_eq!(given.wanted().read, read(3, 1));
    given.answers();
    assert_eq!(given.taken(), Vec::from_iter(1..=5));
}

#[test]
fn no_message_is_believed_that_is_damaged_or_of_another_place_or_generation_or_distrusted() {
    let elsewhere = RecordedEvent {
        partition: PARTITION + 1,
        ..event(1, IN_STREAM)
    };
    let unbelievable = [
        None,
        Some((elsewhere, LOG)),
        Some((event(2, IN_STREAM), LOG)),
        Some((event(1, IN_STREAM), FOREIGN)),
    ];
    for carried in unbelievable {
        let mut given = following(0, 9);
        given.on(Input::Message { sequence: 1, carried });
        assert_eq!(given.wanted().read, read(0, 1));
        given.answers();
        assert_eq!(given.source(), Some(Source::Log));
    }

    let distrustful = ReaderOptions {
        distrusted_up_to: 1,
        ..options()
    };
    let mut given = Given::new(0, 9, distrustful);
    given.wanted();
    given.answers();
    given.on(Input::Subscribed);
    assert_eq!(
        given.machine.listens_beyond(usize::MAX),
        Some(1),
        "it need not be decoded"
    );
    given.message(1);
    assert_eq!(given.wanted().read, read(0, 1));
    given.answers();
    given.message(2);
    assert_eq!(given.taken(), [1, 2]);
}

#[test]
fn holes_that_follow_on_one_another_are_read_in_pieces_that_double() {
    let mut given = following(0, 1_000);
    let mut limits = Vec::new();
    for sequence in 1..=40 {
        given.damaged(sequence);
        if let Some(read) = given.wanted().read {
            limits.push(read.limit);
            given.answers();
        }
    }
    assert_eq!(limits, [1, 1, 2, 4, 8, 8, 8, 8]);
    assert_eq!(given.taken(), Vec::from_iter(1..=40));

    given.message(41);
    given.damaged(42);
    assert_eq!(given.wanted().read, read(41, 1), "this one is alone");
}

#[test]
fn messages_that_come_while_a_hole_is_read_make_it_larger() {
    let mut given = following(0, 9);
    given.damaged(1);
    given.wanted();
    given.damaged(2);
    given.damaged(3);
    assert!(given.listens());
    given.message(4);
    given.answers();
    assert_eq!(given.wanted().read, read(1, 2));
    given.answers();
    assert_eq!(given.taken(), [1, 2, 3, 4]);
}

#[test]
fn the_head_is_read_however_many_messages_come_that_are_passed_over() {
    let mut given = following(4, 9);
    let halfway = options().idle_interval / 2;
    given.wait(halfway);
    given.message(2);
    given.wait(halfway);
    given.message(3);
    assert_eq!(given.wanted().read, read(4, 8));
}

#[test]
fn a_message_beyond_the_head_makes_no_hole() {
    let mut given = following(4, 4);
    given.message(9);
    assert_eq!(given.wanted().read, read(4, 4));
    given.answers();
    assert!(given.taken().is_empty() && given.listens());
    assert_eq!(given.wanted().read, None);
    given.damaged(1_000_000);
    given.wanted();
    given.answers();
    assert_eq!(given.wanted().read, None);
}

#[test]
fn an_event_that_was_recorded_since_the_read_is_not_forgotten_behind_a_hole() {
    let mut given = following(4, 5);
    given.damaged(5);
    given.wanted();
    given.message(6);
    given.answers();
    assert_eq!(given.taken(), [5, 6]);
}

#[test]
fn a_hole_that_is_found_while_the_log_is_read_is_not_forgotten() {
    let mut given = following(4, 5);
    given.damaged(5);
    given.wanted();
    given.head = 6;
    given.damaged(6);
    let before = Answer {
        head: LogHead {
            position: 5,
            ..given.answer(read(4, 1).expect("a read")).head
        },
        ..given.answer(given.reading.expect("it reads"))
    };
    given.reading = None;
    given.on(Input::Answer(before));
    assert_eq!(given.wanted().read, read(5, 1));
    given.answers();
    assert_eq!(given.taken(), [5, 6]);
}

#[test]
fn an_epoch_that_was_opened_between_head_and_lineage_is_read_again() {
    let mut given = Given::new(4, 9, options());
    given.wanted();
    let read = given.reading.take().expect("it reads");
    let answer = given.answer(read);
    let next = |number, generation, from_position| daybook_event_store::Epoch {
        number,
        generation,
        from_position,
    };
    let epochs = [next(1, LOG, 1), next(2, FOREIGN, 10)];
    given.on(Input::Answer(Answer {
        lineage: Some(epochs.into_iter().collect()),
        ..answer
    }));
    given.on(Input::Subscribed);
    assert!(!given.listens(), "messages of the next epoch are not of this one");
    assert!(given.wanted().read.is_some_and(|read| read.wants_lineage));
}

#[test]
fn a_stream_that_has_what_is_next_is_followed_however_far_the_log_is() {
    let mut given = following(0, 100_000);
    given.wait(options().idle_interval);
    given.wanted();
    given.answers();
    let last = given.taken().last().copied().expect("events");
    given.messages(last + 1..=last + 10);
    assert_eq!(given.wanted().read, None);
}

#[test]
fn events_that_came_from_the_stream_meanwhile_are_not_taken_from_the_log_again() {
    let mut given = following(4, 9);
    given.wait(options().idle_interval);
    assert_eq!(given.wanted().read, read(4, 8));
    given.messages(5..=7);
    given.answers();
    assert_eq!(given.taken(), [5, 6, 7, 8, 9]);
    given.messages(8..=9);
    assert!(given.taken().is_empty());
}

#[test]
fn a_subscription_that_is_silent_while_the_log_goes_on_is_made_anew() {
    let mut given = following(4, 5);
    given.wait(options().idle_interval);
    given.wanted();
    given.answers();
    assert!(given.listens());

    given.head = 6;
    given.wait(options().silence_max);
    given.wanted();
    given.answers();
    assert!(!given.listens());
    assert_eq!(given.wanted().subscribe_from, Some(7));
}

#[test]
fn a_subscription_that_gives_something_is_not_silent() {
    let mut given = following(4, 5);
    given.wait(options().idle_interval);
    given.wanted();
    given.answers();
    given.message(5);

    given.head = 6;
    given.wait(options().silence_max);
    given.wanted();
    given.answers();
    assert!(given.listens());
}

#[test]
fn a_stream_that_cannot_be_subscribed_to_is_tried_again_after_a_pause_and_the_log_is_polled_meanwhile() {
    let mut given = following(4, 4);
    given.on(Input::Unsubscribed);
    let now = given.now;
    let wanted = given.wanted();
    assert_eq!(
        (wanted.subscribe_from, wanted.wake_at),
        (None, now + options().poll_interval)
    );
    given.wait(SUBSCRIBE_PAUSE);
    let wanted = given.wanted();
    assert_eq!((wanted.subscribe_from, wanted.read), (Some(5), read(4, 8)));
    assert_eq!(given.wanted().subscribe_from, None, "it is under way");
}

#[test]
fn a_connection_that_was_made_anew_is_subscribed_on_at_once() {
    let mut given = following(4, 4);
    given.on(Input::Reconnected);
    assert!(!given.listens());
    given.is_connected = false;
    assert_eq!(given.wanted().subscribe_from, None);
    given.is_connected = true;
    assert_eq!(given.wanted().subscribe_from, Some(5));
}

#[test]
fn no_more_messages_are_taken_while_enough_is_ready() {
    let mut given = following(0, 9);
    given.messages(1..=3);
    assert_eq!(given.machine.listens_beyond(3), None);
    assert_eq!(given.machine.listens_beyond(4), Some(3));

    let large = RecordedEvent {
        payload: "x".repeat(ReaderOptions::default().ready_bytes),
        ..event(4, IN_STREAM)
    };
    given.carries(4, large, LOG);
    assert_eq!(given.machine.listens_beyond(usize::MAX), None);
    assert_eq!(given.taken(), [1, 2, 3, 4]);
    assert_eq!(given.machine.listens_beyond(usize::MAX), Some(4));
}

#[test]
fn a_batch_has_at_most_as_many_events_as_are_wanted_and_keeps_the_rest() {
    let mut given = following(0, 9);
    given.messages(1..=3);
    let batch = given.machine.take(2, given.now).expect("a batch");
    assert_eq!(batch.events.len(), 2);
    assert_eq!(given.taken(), [3]);
}

#[test]
fn a_log_of_another_generation_is_refused() {
    let mut given = Given::new(
        0,
        9,
        ReaderOptions {
            generation: Some(FOREIGN),
            ..options()
        },
    );
    let asked = given.wanted().read.expect("the first read");
    let answer = given.answer(asked);
    let refused = given.try_on(Input::Answer(answer));
    assert!(matches!(
        refused,
        Err(ReaderError::GenerationChanged {
            expected: FOREIGN,
            found: LOG,
            head: 9
        })
    ));
    given.reading = None;
    assert!(given.wanted().read.is_some_and(|read| read.wants_lineage));
}

#[test]
fn a_log_that_ends_before_the_reader_or_hides_events_is_reported() {
    let mut given = Given::new(9, 4, options());
    let asked = given.wanted().read.expect("the first read");
    let answer = given.answer(asked);
    let refused = given.try_on(Input::Answer(answer));
    assert!(matches!(
        refused,
        Err(ReaderError::AheadOfLog { position: 9, head: 4 })
    ));

    for hide in [
        |events: &mut Vec<_>| events.clear(),
        |events: &mut Vec<_>| drop(events.remove(1)),
    ] {
        let mut given = following(0, 9);
        given.message(4);
        let asked = given.wanted().read.expect("a hole");
        let mut answer = given.answer(asked);
        hide(&mut answer.events);
        let hidden = if answer.events.is_empty() { 1 } else { 2 };
        let refused = given.try_on(Input::Answer(answer));
        assert!(matches!(refused, Err(ReaderError::Hidden { position }) if position == hidden));
    }
}
