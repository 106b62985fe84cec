//! A model of the log: what `event_store.append` promises, in memory and without concurrency.

use std::collections::HashMap;
use std::sync::Arc;

use daybook_event_store::{
    Decision, EpochId, Intent, JudgedChain, Judgement, NewCommand, Newest, Receipt, RecordedEvent,
    Remembered, chains, groups,
};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

/// What a chain is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JudgedBy {
    /// The id of the event that it was decided on.
    EventId,
    /// The number of that event in its stream. Two processes that decide ahead reach one number by different events, so
    /// this is wrong; the simulation has to find that out.
    Version,
}

type Key = (Uuid, Arc<str>);

/// The log of one partition. The simulation checks the write side against it, and it is itself held against Postgres.
#[derive(Debug)]
pub struct Model {
    /// The only epoch of the log.
    pub epoch: EpochId,
    /// Everything that is recorded, in order.
    pub events: Vec<RecordedEvent>,
    /// What is remembered, by tenant and key.
    pub keys: HashMap<Key, Remembered>,
    judged_by: JudgedBy,
    /// Indexes into `events`.
    streams: HashMap<Key, Vec<usize>>,
    /// The version that each event would have had, also of those that were never recorded.
    claimed: HashMap<Uuid, u64>,
}

impl Model {
    /// An empty log.
    #[must_use]
    pub fn new(judged_by: JudgedBy) -> Self {
        Self {
            epoch: EpochId::default(),
            events: Vec::new(),
            keys: HashMap::new(),
            judged_by,
            streams: HashMap::new(),
            claimed: HashMap::new(),
        }
    }

    /// Appends a batch.
    ///
    /// # Panics
    /// When a key would be written twice.
    pub fn append(&mut self, commands: &[NewCommand]) -> Judgement {
        let recorded_at = OffsetDateTime::UNIX_EPOCH + Duration::milliseconds(self.events.len() as i64);
        let is_known = |command: &NewCommand| self.keys.contains_key(&key(command));
        let known: Vec<usize> = (0..commands.len())
            .filter(|index| is_known(&commands[*index]))
            .collect();
        // As in SQL, everything is judged before anything is written.
        let ranges = chains(commands);
        let newest: Vec<Newest> = ranges
            .iter()
            .map(|range| self.newest(&commands[range.start]))
            .collect();
        let mut written_ends = Vec::with_capacity(ranges.len());
        for (range, newest) in ranges.iter().zip(&newest) {
            let first_known = known.iter().copied().find(|index| range.contains(index));
            written_ends.push(match self.stands(&commands[range.start], *newest) {
                true => first_known.unwrap_or(range.end),
                false => range.start,
            });
        }
        for group in groups(commands, &ranges) {
            if group.clone().any(|chain| written_ends[chain] < ranges[chain].end) {
                group.for_each(|chain| written_ends[chain] = ranges[chain].start);
            }
        }
        let mut judged = Vec::with_capacity(ranges.len());
        for ((range, newest), written_end) in ranges.into_iter().zip(newest).zip(written_ends) {
            let first_position = self.events.len() as u64 + 1;
            for (index, command) in commands.iter().enumerate().take(range.end).skip(range.start) {
                if let Intent::Write(decision) = &command.intent {
                    self.claim(decision);
                    if index < written_end {
                        self.write(command, decision, recorded_at);
                    }
                }
            }
            judged.push(JudgedChain {
                written_end,
                newest,
                first_position,
            });
        }
        Judgement {
            epoch: self.epoch,
            recorded_at,
            chains: judged,
            known,
        }
    }

    /// What is remembered under these keys, by their index.
    #[must_use]
    pub fn remembered(&self, keys: &[Key]) -> HashMap<usize, Remembered> {
        let known = keys.iter().enumerate();
        known
            .filter_map(|(index, key)| Some((index, self.keys.get(key)?.clone())))
            .collect()
    }

    /// The events of a stream from a version on, at most `limit`.
    ///
    /// # Panics
    /// When the version is more than memory can hold.
    #[must_use]
    pub fn page(&self, tenant_id: Uuid, stream_id: &str, from: u64, limit: usize) -> Vec<RecordedEvent> {
        let stream = self.streams.get(&(tenant_id, stream_id.into()));
        let from = usize::try_from(from.saturating_sub(1)).expect("versions are small");
        let events = stream.into_iter().flatten().skip(from).take(limit);
        events.map(|index| self.events[*index].clone()).collect()
    }

    fn newest(&self, command: &NewCommand) -> Newest {
        let stream = self
            .streams
            .get(&(command.tenant_id, Arc::clone(&command.stream_id)));
        let newest = stream
            .and_then(|stream| stream.last())
            .map(|index| &self.events[*index]);
        Newest {
            event_id: newest.map(|event| event.event_id),
            version: newest.map_or(0, |event| event.stream_version),
            position: newest.map_or(0, |event| event.position),
        }
    }

    fn stands(&self, first: &NewCommand, newest: Newest) -> bool {
        match &first.intent {
            Intent::Ask => false,
            Intent::Write(decision) => match self.judged_by {
                JudgedBy::EventId => decision.decided_on == newest.event_id,
                JudgedBy::Version => self.claimed_version(decision.decided_on) == newest.version,
            },
        }
    }

    fn claimed_version(&self, event_id: Option<Uuid>) -> u64 {
        event_id.map_or(0, |id| self.claimed.get(&id).copied().unwrap_or(0))
    }

    fn claim(&mut self, decision: &Decision) {
        if self.judged_by == JudgedBy::Version {
            let before = self.claimed_version(decision.decided_on);
            for (event, version) in decision.events.iter().zip(before + 1..) {
                self.claimed.insert(event.event_id, version);
            }
        }
    }

    fn write(&mut self, command: &NewCommand, decision: &Decision, recorded_at: OffsetDateTime) {
        let before = self.newest(command);
        let stream = (command.tenant_id, Arc::clone(&command.stream_id));
        for (event, index) in decision.events.iter().zip(1..) {
            self.streams
                .entry(stream.clone())
                .or_default()
                .push(self.events.len());
            self.events.push(RecordedEvent {
                partition: 0,
                position: self.events.len() as u64 + 1,
                tenant_id: command.tenant_id,
                category: command.category.to_owned(),
                stream_id: command.stream_id.to_string(),
                stream_version: before.version + index,
                event_id: event.event_id,
                event_type: event.event_type.to_owned(),
                schema_version: event.schema_version,
                payload: event.payload.clone(),
                metadata: Arc::clone(&decision.metadata),
                recorded_at,
            });
        }
        let event_count = decision.events.len() as u64;
        let newest = self.newest(command);
        let remembered = Remembered {
            fingerprint: command.fingerprints[0],
            event_id: decision.events.first().map(|event| event.event_id),
            receipt: Receipt {
                stream_id: Arc::clone(&command.stream_id),
                stream_version: newest.version,
                partition: 0,
                first_position: newest.position - event_count.saturating_sub(1),
                event_count: u32::try_from(event_count).expect("a command has few events"),
                epoch: self.epoch,
                recorded_at,
                rejection: decision.rejection.clone(),
            },
        };
        let earlier = self.keys.insert(key(command), remembered);
        assert!(earlier.is_none(), "a key was written twice: {}", command.key);
    }
}

fn key(command: &NewCommand) -> Key {
    (command.tenant_id, Arc::clone(&command.key))
}
