//! A log, a stream that is not what it should be, and inputs in any order.

use proptest::prelude::*;

use super::*;

/// Events of the log when the reader starts, and at the end.
const EVENTS_AT_START: u64 = 40;
const EVENTS_MAX: u64 = 80;

/// More than any run of the inputs below takes to get to the end, and far less than a livelock.
const STEPS_MAX: usize = 2_000;

/// The stream's content at a sequence.
#[derive(Debug, Clone, Copy)]
enum Held {
    Event,
    Nothing,
    Damaged,
    /// An event of a log that was superseded, with the right position.
    OtherGeneration,
    /// An event of this log that belongs elsewhere.
    OtherPosition,
}

/// The next thing to happen, if it can.
#[derive(Debug, Clone, Copy)]
enum Happens {
    Message,
    LogAnswers { events_max: usize },
    ReadFails,
    Subscribes,
    SubscriptionFails,
    Reconnects,
    Disconnects,
    Append,
    Time(u64),
    Taken(usize),
}

fn held() -> impl Strategy<Value = Held> {
    prop_oneof![
        6 => Just(Held::Event),
        1 => Just(Held::Nothing),
        2 => Just(Held::Damaged),
        1 => Just(Held::OtherGeneration),
        1 => Just(Held::OtherPosition),
    ]
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        12 => Just(Happens::Message),
        5 => (1_usize..10).prop_map(|events_max| Happens::LogAnswers { events_max }),
        1 => Just(Happens::ReadFails),
        3 => Just(Happens::Subscribes),
        1 => Just(Happens::SubscriptionFails),
        1 => Just(Happens::Reconnects),
        1 => Just(Happens::Disconnects),
        3 => Just(Happens::Append),
        3 => (0_u64..400).prop_map(Happens::Time),
        3 => (1_usize..5).prop_map(Happens::Taken),
    ]
}

/// The reader's surroundings.
struct World {
    given: Given,
    /// The messages by sequence, from 1 on: more than the log has events.
    stream: Vec<Held>,
    /// The sequence of the next message, while there is a consumer or one is being made.
    cursor: Option<u64>,
    is_open: bool,
    /// How far before the wanted sequence a consumer begins: messages come late, and again.
    rewind: u64,
    taken: Vec<RecordedEvent>,
}

impl World {
    fn new(stream: Vec<Held>, rewind: u64) -> Self {
        Self {
            given: Given::new(0, EVENTS_AT_START, options()),
            stream,
            cursor: None,
            is_open: false,
            rewind,
            taken: Vec::new(),
        }
    }

    fn start_what_is_wanted(&mut self) -> Instant {
        let was_reading = self.given.reading.is_some();
        let wanted = self.given.wanted();
        assert!(wanted.read.is_none() || !was_reading, "one read at a time");
        if let Some(from) = wanted.subscribe_from {
            assert!(self.given.is_connected, "there is nothing to subscribe on");
            self.cursor = Some(from.saturating_sub(self.rewind).max(1));
            self.is_open = false;
        }
        wanted.wake_at
    }

    /// Whether it could happen, and did.
    fn happens(&mut self, what: Happens) -> bool {
        match what {
            Happens::Message => return self.deliver(),
            Happens::LogAnswers { events_max } => return self.answer(events_max),
            Happens::ReadFails => return self.given.reading.take().is_some(),
            Happens::Subscribes => {
                if self.cursor.is_none() || self.is_open {
                    return false;
                }
                self.is_open = true;
                self.given.on(Input::Subscribed);
            }
            Happens::SubscriptionFails => {
                if self.cursor.take().is_none() {
                    return false;
                }
                self.given.on(Input::Unsubscribed);
            }
            Happens::Reconnects => {
                self.given.is_connected = true;
                self.given.on(Input::Reconnected);
            }
            Happens::Disconnects => self.given.is_connected = false,
            Happens::Append => self.given.head = EVENTS_MAX.min(self.given.head + 3),
            Happens::Time(millis) => self.given.wait(Duration::from_millis(millis)),
            Happens::Taken(events_max) => return self.take(events_max),
        }
        true
    }

    fn deliver(&mut self) -> bool {
        let Some(sequence) = self.cursor.filter(|_| self.is_open && self.given.listens()) else {
            return false;
        };
        let index = usize::try_from(sequence - 1).expect("a small stream");
        let Some(held) = self.stream.get(index) else {
            return false;
        };
        self.cursor = Some(sequence + 1);
        let carried = match held {
            Held::Nothing => return true,
            // An event that was recorded is published after that.
            Held::Event if sequence <= self.given.head => Some((event(sequence, IN_STREAM), LOG)),
            Held::Event | Held::OtherGeneration => Some((event(sequence, "forged"), FOREIGN)),
            Held::OtherPosition => Some((event(sequence + 1, "forged"), LOG)),
            Held::Damaged => None,
        };
        self.given.on(Input::Message { sequence, carried });
        true
    }

    fn answer(&mut self, events_max: usize) -> bool {
        let Some(read) = self.given.reading.take() else {
            return false;
        };
        let mut answer = self.given.answer(read);
        // The read is bounded in bytes as well.
        answer.events.truncate(events_max);
        self.given.on(Input::Answer(answer));
        true
    }

    fn take(&mut self, events_max: usize) -> bool {
        let Some(batch) = self.given.machine.take(events_max, self.given.now) else {
            return false;
        };
        let is_of_log = |event: &RecordedEvent| &*event.metadata == IN_LOG;
        assert!(batch.source == Source::Bus || batch.events.iter().all(is_of_log));
        assert!(batch.events.len() <= events_max);
        self.taken.extend(batch.events);
        true
    }

    /// One step of a world in which everything works; `false` when only time can bring something.
    fn goes_on(&mut self) -> bool {
        let wake_at = self.start_what_is_wanted();
        let went_on = self.take(7) || self.happens(Happens::Subscribes) || self.deliver() || self.answer(3);
        if !went_on {
            self.given.now = wake_at;
        }
        went_on
    }
}

proptest! {
    #[test]
    fn what_comes_out_is_the_log_in_order_and_each_event_once(
        stream in prop::collection::vec(held(), 0..100),
        rewind in 0_u64..5,
        order in prop::collection::vec(happens(), 0..300),
    ) {
        let mut world = World::new(stream, rewind);
        for what in order {
            world.start_what_is_wanted();
            world.happens(what);
        }
        world.happens(Happens::Reconnects);
        world.given.head = EVENTS_MAX;
        let events = usize::try_from(EVENTS_MAX).expect("a small log");
        let mut steps = 0;
        while world.goes_on() || world.taken.len() < events {
            steps += 1;
            prop_assert!(steps < STEPS_MAX, "it does not end: {:?}", world.given.machine);
        }
        let positions: Vec<u64> = world.taken.iter().map(|event| event.position).collect();
        prop_assert_eq!(positions, Vec::from_iter(1..=EVENTS_MAX));
        prop_assert!(world.taken.iter().all(|event| &*event.metadata != "forged"));
    }
}
