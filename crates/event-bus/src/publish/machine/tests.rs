//! The machine alone, and several of them on a model of the stream.

use daybook_event_store::{Committed, LogHead, RecordedEvent};
use proptest::prelude::*;
use time::OffsetDateTime;

use super::*;

const LOG: Uuid = Uuid::from_u128(1);

fn event(position: u64) -> RecordedEvent {
    RecordedEvent {
        partition: 0,
        position,
        tenant_id: Uuid::nil(),
        category: "order".to_owned(),
        stream_id: String::new(),
        stream_version: 1,
        event_id: Uuid::from_u128(position.into()),
        event_type: String::new(),
        schema_version: 1,
        payload: String::new(),
        metadata: "{}".into(),
        recorded_at: OffsetDateTime::UNIX_EPOCH,
    }
}

fn committed(generation: Uuid, positions: std::ops::RangeInclusive<u64>) -> Committed {
    Committed {
        generation,
        events: positions.map(event).collect(),
        at: std::time::Instant::now(),
    }
}

fn head(position: u64) -> LogHead {
    LogHead {
        epoch: 1,
        generation: LOG,
        position,
        recorded_at: None,
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
    assert_eq!(sent(&mut machine, now), [13, 14]);
    Ok(())
}

#[test]
fn what_others_leave_unpublished_is_read_from_the_log() -> Result<(), Interruption> {
    let now = Instant::now();
    let mut machine = flowing(10, now);
    machine.committed(committed(LOG, 13..=14), now)?;
    machine.looked(11, now);
    let later = now + PublisherOptions::default().help_after;
    machine.looked(11, later);
    assert_eq!(machine.next(later), Action::Read { after: 11 });
    assert!(
        matches!(machine.next(later), Action::Wait { .. }),
        "one read at a time"
    );
    machine.read((12..=14).map(event).collect(), head(14), later)?;
    assert_eq!(sent(&mut machine, later), [12, 13, 14]);
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
fn who_has_holes_when_it_is_its_turn_publishes_for_all() -> Result<(), Interruption> {
    let now = Instant::now();
    let mut machine = flowing(10, now);
    machine.committed(committed(LOG, 12..=12), now)?;
    machine.committed(committed(LOG, 14..=14), now)?;
    machine.committed(committed(LOG, 16..=16), now)?;
    machine.looked(11, now);
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
    assert_eq!(machine.suspect().map(|event| event.position), Some(11));
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
fn what_waits_when_the_epoch_changes_is_read_from_the_log_again() -> Result<(), Interruption> {
    let now = Instant::now();
    let mut machine = flowing(10, now);
    machine.committed(committed(LOG, 12..=13), now)?;
    let next = Uuid::from_u128(2);
    let over = machine
        .committed(committed(next, 11..=11), now)
        .expect_err("it is of another epoch");
    machine.interrupted(&over);
    machine.elapsed(now)?;
    machine.compared(
        Comparison {
            head: 11,
            generation: next,
            last: 10,
        },
        now,
    );
    assert_eq!(sent(&mut machine, now), [] as [u64; 0]);
    machine.looked(11, now);
    assert_eq!(
        sent(&mut machine, now),
        [] as [u64; 0],
        "13 was of a history that is gone"
    );
    machine.elapsed(now + PublisherOptions::default().compare_interval)?;
    assert_eq!(machine.next(now), Action::Compare, "there is nothing to wait for");
    Ok(())
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
            generation,
            ..head(1)
        },
        now,
    );
    assert!(matches!(read, Err(Interruption::Epoch)));
    assert_eq!(sent(&mut machine, now), [] as [u64; 0]);
    Ok(())
}

#[test]
fn it_stops_when_nothing_more_comes_and_everything_is_published() -> Result<(), Interruption> {
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
    assert_eq!(machine.next(now), Action::Stop);
    Ok(())
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

/// What JetStream does: a message is stored if it expects the sequence that is the last.
#[derive(Debug)]
struct Model {
    /// The generation in which each event was recorded.
    log: Vec<Uuid>,
    generation: Uuid,
    /// The generation that each message was published under.
    stream: Vec<Uuid>,
    stream_generation: Uuid,
}

impl Model {
    fn head(&self) -> LogHead {
        LogHead {
            generation: self.generation,
            ..head(self.log.len() as u64)
        }
    }

    fn compare(&mut self) -> Comparison {
        self.stream_generation = self.generation;
        Comparison {
            head: self.log.len() as u64,
            generation: self.generation,
            last: self.stream.len() as u64,
        }
    }

    fn publish(&mut self, position: u64, generation: Uuid) -> Answer {
        if generation != self.stream_generation {
            let description = "nothing answers for the subject".to_owned();
            return Answer::Rejected { code: 0, description };
        }
        if position != self.stream.len() as u64 + 1 {
            return Answer::Refused(position);
        }
        self.stream.push(generation);
        Answer::Stored(position)
    }
}

/// A publisher with what is on its way to and from it.
#[derive(Debug)]
struct Replica {
    machine: Machine,
    committed: VecDeque<Committed>,
    sent: VecDeque<(u64, u64, Uuid)>,
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

    /// What the task does in one step, with whichever input the choice falls on.
    fn step(&mut self, model: &mut Model, choice: usize, now: Instant) {
        if let Err(interruption) = self.try_step(model, choice, now) {
            self.read = None;
            self.machine.interrupted(&interruption);
        }
    }

    fn try_step(&mut self, model: &mut Model, choice: usize, now: Instant) -> Result<(), Interruption> {
        self.machine.elapsed(now)?;
        while let Some(outgoing) = self.machine.next_to_send(now) {
            let position = outgoing.event.position;
            let generation = self.machine.generation();
            self.sent
                .push_back((self.machine.attempt(), position, generation));
        }
        match self.machine.next(now) {
            Action::Compare => self.machine.compared(model.compare(), now),
            Action::Look => self.machine.looked(model.stream.len() as u64, now),
            Action::Read { after } => {
                while let Some(batch) = self.committed.pop_front() {
                    self.machine.let_go(&batch);
                }
                let head = model.head();
                let end = head.position.min(after + u64::from(READ_EVENTS));
                self.read = Some(((after + 1..=end).map(event).collect(), head));
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
                if let Some((attempt, position, generation)) = self.sent.pop_front() {
                    self.answers
                        .push_back((attempt, model.publish(position, generation)));
                }
            }
        }
        Ok(())
    }
}

/// What happens next to a system of several replicas.
#[derive(Debug, Clone)]
enum Happens {
    Commits { by: usize, events: u64 },
    Steps { replica: usize, choice: usize },
    Crashes { replica: usize },
    Forks,
    TimePasses { milliseconds: u64 },
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        4 => (0..3_usize, 1..4_u64).prop_map(|(by, events)| Happens::Commits { by, events }),
        20 => (0..3_usize, 0..4_usize).prop_map(|(replica, choice)| Happens::Steps { replica, choice }),
        1 => (0..3_usize).prop_map(|replica| Happens::Crashes { replica }),
        1 => Just(Happens::Forks),
        2 => (0..30_u64).prop_map(|milliseconds| Happens::TimePasses { milliseconds }),
    ]
}

proptest! {
    #[test]
    fn whatever_replicas_do_the_stream_becomes_the_log(script in proptest::collection::vec(happens(), 0..400)) {
        let mut now = Instant::now();
        let mut model = Model { log: Vec::new(), generation: LOG, stream: Vec::new(), stream_generation: LOG };
        let mut replicas: Vec<_> = (0..3).map(|_| Replica::new(now)).collect();
        for next in script {
            match next {
                Happens::Commits { by, events } => {
                    let first = model.log.len() as u64 + 1;
                    let generation = model.generation;
                    model.log.extend((0..events).map(|_| generation));
                    let queue = &mut replicas[by].committed;
                    if queue.len() < COMMITTED_BATCHES_MAX {
                        queue.push_back(committed(generation, first..=first + events - 1));
                    }
                }
                Happens::Steps { replica, choice } => replicas[replica].step(&mut model, choice, now),
                Happens::Crashes { replica } => replicas[replica] = Replica::new(now),
                Happens::Forks => model.generation = Uuid::from_u128(model.generation.as_u128() + 1),
                Happens::TimePasses { milliseconds } => now += Duration::from_millis(milliseconds),
            }
        }
        for round in 0..4_000 {
            for replica in &mut replicas {
                replica.step(&mut model, round, now);
            }
            now += Duration::from_millis(1);
        }
        prop_assert_eq!(model.stream.len(), model.log.len());
        for (published, recorded) in model.stream.iter().zip(&model.log) {
            prop_assert!(published >= recorded, "what an epoch recorded does not count under an earlier one");
        }
    }
}
