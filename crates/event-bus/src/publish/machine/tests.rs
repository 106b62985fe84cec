//! The machine alone, and several of them on a model of the stream.

use daybook_event_store::{Committed, EpochId, LogHead, RecordedEvent};
use proptest::prelude::*;

use super::*;
use crate::message::tests::sample;

const LOG: Uuid = Uuid::from_u128(1);

fn event(position: u64) -> RecordedEvent {
    event_of(LOG, position)
}

/// An epoch's event at a position: no other epoch has one with its id.
fn event_of(generation: Uuid, position: u64) -> RecordedEvent {
    RecordedEvent {
        position,
        event_id: Uuid::from_u128(generation.as_u128() << 64 | u128::from(position)),
        ..sample()
    }
}

fn committed(generation: Uuid, positions: std::ops::RangeInclusive<u64>) -> Committed {
    Committed {
        generation,
        events: positions.map(|position| event_of(generation, position)).collect(),
        at: std::time::Instant::now(),
    }
}

fn head(position: u64) -> LogHead {
    LogHead {
        epoch: EpochId {
            number: 1,
            generation: LOG,
        },
        position,
        recorded_at: None,
        event_id: None,
        is_standby: false,
    }
}

/// A machine whose stream is equal to the log.
fn flowing(position: u64, now: Instant) -> Machine {
    let mut machine = Machine::new(&PublisherOptions::default(), now);
    assert_eq!(machine.next(now), Action::Compare);
    machine.compared(comparison(position, position), now);
    machine
}

fn comparison(head: u64, last: u64) -> Comparison {
    Comparison {
        head,
        generation: LOG,
        last,
    }
}

fn sent(machine: &mut Machine, now: Instant) -> Vec<u64> {
    std::iter::from_fn(|| machine.next_to_send(now).map(|outgoing| outgoing.event.position)).collect()
}

#[test]
fn what_continues_the_stream_is_sent_as_it_comes() -> Result<(), Interruption> {
    let now = Instant::now();
    let mut machine = flowing(10, now);
    machine.committed(committed(LOG, 11..=13), now)?;
    assert_eq!(sent(&mut machine, now), [11, 12, 13]);
    machine.committed(committed(LOG, 12..=14), now)?;
    assert_eq!(
        sent(&mut machine, now),
        [14],
        "what came before is not sent twice"
    );
    assert_eq!(machine.answered(Answer::Stored(13), now)?.len(), 3);
    assert_eq!(machine.checked(), 13);
    Ok(())
}

#[test]
fn what_others_committed_before_is_waited_for() -> Result<(), Interruption> {
    let now = Instant::now();
    let mut machine = flowing(10, now);
    machine.committed(committed(LOG, 13..=14), now)?;
    assert_eq!(sent(&mut machine, now), [] as [u64; 0]);
    assert_eq!(machine.next(now), Action::Look);
    machine.looked(11, now);
    assert_eq!(
        machine.next(now),
        Action::Wait {
            until: now + LOOK_PAUSE_FIRST
        }
    );
    machine.looked(12, now);
    assert_eq!(
        machine.next(now),
        Action::Compare,
        "what others published is checked"
    );
    machine.compared(comparison(14, 12), now);
    assert_eq!(sent(&mut machine, now), [13, 14]);
    Ok(())
}

/// A machine that has nothing of its own to publish, beside a replica that is publishing.
fn beside_a_busy_one(now: Instant) -> Machine {
    let mut machine = flowing(10, now);
    machine.compared(comparison(13, 12), now);
    assert!(matches!(machine.next(now), Action::Wait { until } if until > now));
    machine.looked(13, now);
    machine
}

#[test]
fn who_has_nothing_to_publish_rests_while_others_publish() -> Result<(), Interruption> {
    let now = Instant::now();
    let options = PublisherOptions::default();
    let mut machine = beside_a_busy_one(now);
    machine.elapsed(now)?;
    let until = now + options.compare_interval;
    assert_eq!(machine.next(now), Action::Wait { until });
    machine.committed(committed(LOG, 14..=14), now)?;
    assert_eq!(
        (sent(&mut machine, now).len(), machine.next(now)),
        (0, Action::Look)
    );
    machine.looked(13, now);
    assert_eq!(
        machine.next(now),
        Action::Compare,
        "what others published is checked"
    );
    machine.compared(comparison(14, 13), now);
    assert_eq!(sent(&mut machine, now), [14]);
    Ok(())
}

#[test]
fn who_waits_with_nothing_to_publish_looks_at_once_when_there_is_something() -> Result<(), Interruption> {
    let now = Instant::now();
    let mut machine = flowing(10, now);
    machine.compared(comparison(13, 12), now);
    machine.committed(committed(LOG, 14..=14), now)?;
    assert_eq!(machine.next(now), Action::Look);
    Ok(())
}

#[test]
fn a_replica_stops_beside_one_that_goes_on_publishing() -> Result<(), Interruption> {
    let mut now = Instant::now();
    let mut machine = beside_a_busy_one(now);
    machine.close();
    for last in 13.. {
        machine.elapsed(now)?;
        match machine.next(now) {
            Action::Stop => return Ok(()),
            Action::Compare => machine.compared(comparison(last + 1, last), now),
            Action::Look => machine.looked(last, now),
            Action::Wait { until } => now = until,
            Action::Read { .. } => panic!("somebody publishes it"),
        }
        assert!(last < 40, "it does not stop");
    }
    Ok(())
}

#[test]
fn what_others_leave_unpublished_is_read_from_the_log() -> Result<(), Interruption> {
    let now = Instant::now();
    let mut machine = flowing(10, now);
    machine.committed(committed(LOG, 13..=14), now)?;
    machine.looked(10, now);
    let later = now + PublisherOptions::default().help_after;
    machine.looked(10, later);
    assert_eq!(machine.next(later), Action::Read { after: 10 });
    assert!(
        matches!(machine.next(later), Action::Wait { .. }),
        "one read at a time"
    );
    machine.read((11..=14).map(event).collect(), head(14), later)?;
    assert_eq!(sent(&mut machine, later), [11, 12, 13, 14]);
    Ok(())
}

#[test]
fn what_is_committed_here_while_the_log_is_read_comes_from_memory() -> Result<(), Interruption> {
    let now = Instant::now();
    let mut machine = Machine::new(&PublisherOptions::default(), now);
    machine.compared(comparison(3, 0), now);
    machine.looked(0, now + PublisherOptions::default().help_after);
    assert_eq!(machine.next(now), Action::Read { after: 0 });
    assert!(!machine.takes_committed());
    machine.read((1..=3).map(event).collect(), head(5), now)?;
    assert_eq!(sent(&mut machine, now), [1, 2, 3]);
    machine.committed(committed(LOG, 4..=5), now)?;
    assert_eq!(sent(&mut machine, now), [4, 5]);
    Ok(())
}

#[test]
fn as_long_as_the_stream_goes_on_nobody_helps() -> Result<(), Interruption> {
    let now = Instant::now();
    let mut machine = flowing(10, now);
    machine.committed(committed(LOG, 100..=101), now)?;
    for last in 11..99 {
        let later = now + PublisherOptions::default().help_after * u32::try_from(last).expect("it is small");
        machine.looked(last, later);
        assert!(!matches!(machine.state, State::Filling { .. }));
    }
    Ok(())
}

#[test]
fn help_comes_when_the_stream_has_stood_still_and_not_before() -> Result<(), Interruption> {
    let help_after = PublisherOptions::default().help_after;
    let now = Instant::now();
    let mut machine = flowing(10, now);
    machine.committed(committed(LOG, 100..=101), now)?;
    machine.looked(11, now + help_after);
    machine.looked(11, now + help_after * 3 / 2);
    assert!(matches!(machine.next(now), Action::Wait { .. }));
    machine.looked(11, now + help_after * 2);
    assert_eq!(machine.next(now), Action::Compare);
    Ok(())
}

#[test]
fn no_more_is_in_flight_than_the_window_holds() -> Result<(), Interruption> {
    let now = Instant::now();
    let options = PublisherOptions {
        window_messages: 2,
        ..PublisherOptions::default()
    };
    let mut machine = Machine::new(&options, now);
    machine.compared(comparison(0, 0), now);
    machine.committed(committed(LOG, 1..=5), now)?;
    assert_eq!(sent(&mut machine, now), [1, 2]);
    machine.answered(Answer::Stored(1), now)?;
    assert_eq!(sent(&mut machine, now), [3]);
    Ok(())
}

#[test]
fn what_others_committed_while_the_log_was_read_is_looked_for() -> Result<(), Interruption> {
    let now = Instant::now();
    let mut machine = Machine::new(&PublisherOptions::default(), now);
    machine.compared(comparison(1, 0), now);
    machine.looked(0, now + PublisherOptions::default().help_after);
    assert_eq!(machine.next(now), Action::Read { after: 0 });
    machine.read(vec![event(1)], head(2), now)?;
    assert_eq!(sent(&mut machine, now), [1]);
    machine.answered(Answer::Stored(1), now)?;
    machine.elapsed(now)?;
    let look_at = now + PublisherOptions::default().help_after / 2;
    assert_eq!(machine.next(now), Action::Wait { until: look_at });
    assert_eq!(machine.next(look_at), Action::Look);
    Ok(())
}

#[test]
fn who_has_holes_when_it_is_its_turn_publishes_for_all() -> Result<(), Interruption> {
    let now = Instant::now();
    let mut machine = flowing(10, now);
    machine.committed(committed(LOG, 12..=12), now)?;
    machine.committed(committed(LOG, 14..=14), now)?;
    machine.committed(committed(LOG, 16..=16), now)?;
    machine.compared(comparison(16, 11), now);
    assert_eq!(machine.next(now), Action::Read { after: 11 });
    Ok(())
}

#[test]
fn a_stream_that_falls_is_compared_with_the_log() -> Result<(), Interruption> {
    let now = Instant::now();
    let mut machine = flowing(10, now);
    machine.committed(committed(LOG, 12..=12), now)?;
    machine.looked(0, now);
    assert_eq!(machine.next(now), Action::Compare);
    Ok(())
}

#[test]
fn what_was_refused_is_sent_again_after_a_comparison() -> Result<(), Interruption> {
    let now = Instant::now();
    let mut machine = flowing(10, now);
    machine.committed(committed(LOG, 11..=13), now)?;
    assert_eq!(sent(&mut machine, now), [11, 12, 13]);
    let attempt = machine.attempt();
    let interruption = machine
        .answered(Answer::Refused(11), now)
        .expect_err("it was refused");
    machine.interrupted(&interruption);
    assert!(
        matches!(machine.next(now), Action::Wait { .. }),
        "two answers are due"
    );
    assert_eq!(
        machine.answered(Answer::Stored(12), now)?.len(),
        2,
        "both are in the stream"
    );
    machine.answered(Answer::Refused(13), now)?;
    machine.elapsed(now)?;
    assert_eq!(machine.next(now), Action::Compare);
    assert_ne!(machine.attempt(), attempt);
    let suspect = |generation| machine.suspect(generation, 12).map(|event| event.position);
    assert_eq!(suspect(LOG), Some(11));
    assert_eq!(
        suspect(Uuid::from_u128(2)),
        None,
        "another history has another event there"
    );
    machine.compared(comparison(13, 12), now);
    assert_eq!(sent(&mut machine, now), [13]);
    Ok(())
}

#[test]
fn answers_that_do_not_come_are_not_waited_for_for_ever() -> Result<(), Interruption> {
    let options = PublisherOptions::default();
    let now = Instant::now();
    let mut machine = flowing(10, now);
    machine.committed(committed(LOG, 11..=11), now)?;
    sent(&mut machine, now);
    let later = now + options.acknowledge_timeout;
    let silence = machine.elapsed(later).expect_err("nothing was answered");
    assert!(matches!(silence, Interruption::Silence));
    machine.interrupted(&silence);
    machine.elapsed(later)?;
    assert_eq!(machine.next(later), Action::Compare);
    machine.interrupted(&Interruption::Disconnected);
    machine.elapsed(later)?;
    assert_eq!(
        machine.next(later),
        Action::Wait {
            until: later + BACKOFF_FIRST
        }
    );
    machine.reconnected()?;
    assert_eq!(machine.next(later), Action::Compare);
    Ok(())
}

#[test]
fn what_waits_or_is_in_flight_when_the_epoch_changes_is_not_of_the_next_one() -> Result<(), Interruption> {
    let now = Instant::now();
    let mut machine = flowing(10, now);
    machine.committed(committed(LOG, 11..=13), now)?;
    assert_eq!(sent(&mut machine, now), [11, 12, 13]);
    machine.committed(committed(LOG, 16..=16), now)?;
    // Somebody else has gone on behind position 8, and made the stream anew.
    machine.looked(8, now);
    assert_eq!(machine.next(now), Action::Compare);
    let next = Uuid::from_u128(2);
    let found = Comparison {
        head: 10,
        generation: next,
        last: 10,
    };
    machine.compared(found, now);
    assert!(!machine.awaits_answers(), "what comes is of an earlier attempt");
    assert_eq!(sent(&mut machine, now), [] as [u64; 0]);
    machine.committed(committed(next, 11..=11), now)?;
    assert_eq!(sent(&mut machine, now), [11]);
    Ok(())
}

#[test]
fn what_is_beyond_the_head_of_the_log_is_not_waited_for() -> Result<(), Interruption> {
    let now = Instant::now();
    let mut machine = flowing(10, now);
    machine.committed(committed(LOG, 16..=20), now)?;
    machine.compared(comparison(15, 15), now);
    assert_eq!(sent(&mut machine, now), [] as [u64; 0]);
    assert!(matches!(machine.next(now), Action::Wait { until } if until > now));
    Ok(())
}

#[test]
fn a_log_that_does_not_show_its_events_is_reported() {
    let now = Instant::now();
    let mut machine = Machine::new(&PublisherOptions::default(), now);
    machine.compared(comparison(3, 0), now);
    machine.looked(0, now + PublisherOptions::default().help_after);
    assert_eq!(machine.next(now), Action::Read { after: 0 });
    let read = machine.read(Vec::new(), head(3), now);
    assert!(matches!(read, Err(Interruption::Hidden)));
}

#[test]
fn what_was_read_while_the_epoch_changed_is_not_published() -> Result<(), Interruption> {
    let now = Instant::now();
    let mut machine = Machine::new(&PublisherOptions::default(), now);
    machine.compared(comparison(1, 0), now);
    machine.looked(0, now + PublisherOptions::default().help_after);
    assert_eq!(machine.next(now), Action::Read { after: 0 });
    let generation = Uuid::from_u128(2);
    let read = machine.read(
        vec![event(1)],
        LogHead {
            epoch: EpochId {
                number: 2,
                generation,
            },
            ..head(1)
        },
        now,
    );
    assert!(matches!(read, Err(Interruption::Epoch)));
    assert_eq!(sent(&mut machine, now), [] as [u64; 0]);
    Ok(())
}

#[test]
fn it_stops_when_nothing_more_comes_and_stream_and_log_are_equal() -> Result<(), Interruption> {
    let now = Instant::now();
    let mut machine = flowing(10, now);
    machine.committed(committed(LOG, 11..=11), now)?;
    machine.close();
    assert_eq!(sent(&mut machine, now), [11]);
    machine.elapsed(now)?;
    assert!(
        matches!(machine.next(now), Action::Wait { .. }),
        "an answer is due"
    );
    machine.answered(Answer::Stored(11), now)?;
    machine.elapsed(now)?;
    assert_eq!(machine.next(now), Action::Compare, "batches may have been let go");
    machine.compared(comparison(12, 11), now);
    machine.looked(12, now);
    machine.compared(comparison(12, 12), now);
    machine.elapsed(now)?;
    assert_eq!(machine.next(now), Action::Stop);
    Ok(())
}

#[test]
fn one_that_is_to_stop_outlives_a_refusal_but_no_outage() -> Result<(), Interruption> {
    let now = Instant::now();
    let mut machine = flowing(10, now);
    machine.committed(committed(LOG, 11..=11), now)?;
    machine.close();
    sent(&mut machine, now);
    let refused = machine
        .answered(Answer::Refused(11), now)
        .expect_err("it was refused");
    machine.interrupted(&refused);
    machine.elapsed(now)?;
    assert_eq!(machine.next(now), Action::Compare);
    machine.interrupted(&Interruption::Silence);
    assert_eq!(machine.next(now), Action::Stop);
    Ok(())
}

#[test]
fn one_that_is_to_stop_leaves_a_long_backlog_to_others() {
    let now = Instant::now();
    let mut machine = Machine::new(&PublisherOptions::default(), now);
    machine.close();
    machine.compared(comparison(1_000_000, 0), now);
    machine.looked(0, now + PublisherOptions::default().help_after);
    assert_eq!(machine.next(now), Action::Stop);
}

#[test]
fn memory_is_bounded_in_bytes() -> Result<(), Interruption> {
    let now = Instant::now();
    let mut machine = flowing(0, now);
    let mut position = 1;
    while position < 200 {
        // Nobody publishes the first one.
        position += 1;
        let payload = "x".repeat(1 << 20);
        let events = vec![RecordedEvent {
            payload,
            ..event(position)
        }];
        machine.committed(
            Committed {
                events,
                ..committed(LOG, 1..=1)
            },
            now,
        )?;
        assert!(machine.bytes <= MEMORY_BYTES_MAX + (2 << 20));
    }
    machine.looked(1, now);
    assert!(
        !matches!(machine.state, State::Filling { .. }),
        "what is in memory comes first"
    );
    Ok(())
}

/// A log, and a stream that does what JetStream does: a message is stored if it expects the sequence that is the last.
#[derive(Debug)]
struct Model {
    /// The id of each event.
    log: Vec<Uuid>,
    generation: Uuid,
    /// The id of each message.
    stream: Vec<Uuid>,
    stream_generation: Uuid,
    /// The length of their common part, when the log goes on in another epoch.
    fork: usize,
}

impl Model {
    fn new() -> Self {
        Self {
            log: Vec::new(),
            generation: LOG,
            stream: Vec::new(),
            stream_generation: LOG,
            fork: 0,
        }
    }

    fn head(&self) -> LogHead {
        LogHead {
            epoch: EpochId {
                number: 1,
                generation: self.generation,
            },
            ..head(self.log.len() as u64)
        }
    }

    fn commit(&mut self, events: u64) -> Committed {
        let first = self.log.len() as u64 + 1;
        let batch = committed(self.generation, first..=first + events - 1);
        self.log.extend(batch.events.iter().map(|event| event.event_id));
        batch
    }

    /// The log goes on in the next epoch, without its newest events.
    fn lose(&mut self, events: usize) {
        self.log.truncate(self.log.len().saturating_sub(events));
        let is_first = self.generation == self.stream_generation;
        self.fork = if is_first {
            self.log.len()
        } else {
            self.fork.min(self.log.len())
        };
        self.generation = Uuid::from_u128(self.generation.as_u128() + 1);
    }

    fn read(&self, after: u64) -> Vec<RecordedEvent> {
        let new = (after + 1..).zip(self.log.iter().skip(usize::try_from(after).expect("it is small")));
        new.take(READ_EVENTS as usize)
            .map(|(position, id)| RecordedEvent {
                event_id: *id,
                ..event(position)
            })
            .collect()
    }

    fn compare(&mut self) -> Comparison {
        if self.stream_generation != self.generation {
            self.stream.truncate(self.fork);
            self.stream_generation = self.generation;
        }
        Comparison {
            head: self.log.len() as u64,
            generation: self.generation,
            last: self.stream.len() as u64,
        }
    }

    fn publish(&mut self, sent: &Sent) -> Answer {
        if sent.generation != self.stream_generation {
            let description = "nothing answers for the subject".to_owned();
            return Answer::Rejected { code: 0, description };
        }
        if sent.position != self.stream.len() as u64 + 1 {
            return Answer::Refused(sent.position);
        }
        self.stream.push(sent.id);
        Answer::Stored(sent.position)
    }
}

/// A message on its way.
#[derive(Debug)]
struct Sent {
    attempt: u64,
    position: u64,
    id: Uuid,
    generation: Uuid,
}

/// A publisher with what is on its way to and from it.
#[derive(Debug)]
struct Replica {
    machine: Machine,
    committed: VecDeque<Committed>,
    sent: VecDeque<Sent>,
    answers: VecDeque<(u64, Answer)>,
    read: Option<(Vec<RecordedEvent>, LogHead)>,
}

const COMMITTED_BATCHES_MAX: usize = 3;
const READ_EVENTS: u32 = 5;

impl Replica {
    fn new(now: Instant) -> Self {
        let options = PublisherOptions {
            window_messages: 7,
            read_events_max: READ_EVENTS,
            ..PublisherOptions::default()
        };
        Self {
            machine: Machine::new(&options, now),
            committed: VecDeque::new(),
            sent: VecDeque::new(),
            answers: VecDeque::new(),
            read: None,
        }
    }

    /// One step of the task, with whichever input the choice falls on.
    fn step(&mut self, model: &mut Model, choice: usize, now: Instant) {
        if let Err(interruption) = self.try_step(model, choice, now) {
            self.read = None;
            self.machine.interrupted(&interruption);
        }
    }

    fn try_step(&mut self, model: &mut Model, choice: usize, now: Instant) -> Result<(), Interruption> {
        self.machine.elapsed(now)?;
        let (attempt, generation) = (self.machine.attempt(), self.machine.generation());
        while let Some(outgoing) = self.machine.next_to_send(now) {
            self.sent.push_back(Sent {
                attempt,
                position: outgoing.event.position,
                id: outgoing.event.event_id,
                generation,
            });
        }
        match self.machine.next(now) {
            Action::Compare => self.machine.compared(model.compare(), now),
            Action::Look => self.machine.looked(model.stream.len() as u64, now),
            Action::Read { after } => {
                while let Some(batch) = self.committed.pop_front() {
                    self.machine.leave_to_log(&batch);
                }
                self.read = Some((model.read(after), model.head()));
            }
            Action::Wait { .. } => return self.take(model, choice, now),
            Action::Stop => panic!("it was not closed"),
        }
        Ok(())
    }

    fn take(&mut self, model: &mut Model, choice: usize, now: Instant) -> Result<(), Interruption> {
        match choice % 4 {
            0 => {
                if let Some((attempt, answer)) = self.answers.pop_front()
                    && attempt == self.machine.attempt()
                {
                    self.machine.answered(answer, now)?;
                }
            }
            1 => {
                if let Some((events, head)) = self.read.take() {
                    self.machine.read(events, head, now)?;
                }
            }
            2 if self.machine.takes_committed() => {
                if let Some(batch) = self.committed.pop_front() {
                    self.machine.committed(batch, now)?;
                }
            }
            _ => {
                if let Some(sent) = self.sent.pop_front() {
                    self.answers.push_back((sent.attempt, model.publish(&sent)));
                }
            }
        }
        Ok(())
    }
}

/// The next thing to happen to a system of several replicas.
#[derive(Debug, Clone)]
enum Happens {
    Commits { by: usize, events: u64 },
    Steps { replica: usize, choice: usize },
    Crashes { replica: usize },
    Loses { events: usize },
    TimePasses { milliseconds: u64 },
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        4 => (0..3_usize, 1..4_u64).prop_map(|(by, events)| Happens::Commits { by, events }),
        20 => (0..3_usize, 0..4_usize).prop_map(|(replica, choice)| Happens::Steps { replica, choice }),
        1 => (0..3_usize).prop_map(|replica| Happens::Crashes { replica }),
        1 => (0..4_usize).prop_map(|events| Happens::Loses { events }),
        2 => (0..30_u64).prop_map(|milliseconds| Happens::TimePasses { milliseconds }),
    ]
}

proptest! {
    #[test]
    fn whatever_replicas_do_the_stream_becomes_the_log(script in proptest::collection::vec(happens(), 0..400)) {
        let mut now = Instant::now();
        let mut model = Model::new();
        let mut replicas: Vec<_> = (0..3).map(|_| Replica::new(now)).collect();
        for next in script {
            match next {
                Happens::Commits { by, events } => {
                    let batch = model.commit(events);
                    let queue = &mut replicas[by].committed;
                    if queue.len() < COMMITTED_BATCHES_MAX {
                        queue.push_back(batch);
                    }
                }
                Happens::Steps { replica, choice } => replicas[replica].step(&mut model, choice, now),
                Happens::Crashes { replica } => replicas[replica] = Replica::new(now),
                Happens::Loses { events } => model.lose(events),
                Happens::TimePasses { milliseconds } => now += Duration::from_millis(milliseconds),
            }
        }
        for round in 0..6_000 {
            for replica in &mut replicas {
                replica.step(&mut model, round, now);
            }
            now += Duration::from_millis(1);
        }
        prop_assert_eq!(model.stream, model.log);
    }
}
