//! The queue of commands to append: fair between tenants, and divided into batches.
//!
//! A batch takes from each tenant in turn. No key comes twice into a batch, and no stream has a second chain in it; what
//! would break that stays for the next one, and keeps its place. A chain that does not fit is cut at its tail, which is
//! all that is ever needed: each command names the event that it was decided on. A group comes into a batch as a whole.

use std::collections::{HashMap, HashSet, VecDeque};
use std::iter;
use std::sync::Arc;

use thiserror::Error;
use uuid::Uuid;

use crate::append::events;
use crate::appender::Answer;
use crate::command::{Intent, NewCommand};

/// Limits of a batch.
#[derive(Debug, Clone, Copy)]
pub struct BatchLimits {
    /// Commands.
    pub commands_max: usize,
    /// Events; a single larger command, or group, makes a batch of its own.
    pub events_max: usize,
    /// Bytes of payload; a single larger command, or group, makes a batch of its own.
    pub payload_bytes_max: usize,
}

/// Why a command is not admitted. Try again in a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotAdmitted {
    /// The tenant has as many commands under way as one tenant may have.
    #[error("the tenant has too many commands under way")]
    TenantShareFull,
    /// There are as many commands under way as there may be.
    #[error("too many commands are under way")]
    Full,
}

/// A command that waits, and whom to tell what became of it.
pub(crate) struct Pending {
    pub(crate) command: NewCommand,
    pub(crate) answer: Box<dyn Answer>,
}

/// Commands that wait, tenant by tenant.
#[derive(Default)]
pub(crate) struct Queue {
    waiting: HashMap<Uuid, VecDeque<Pending>>,
    /// The tenants that have commands waiting, whose turn is next first.
    turns: VecDeque<Uuid>,
}

impl Queue {
    pub(crate) fn push(&mut self, pending: Pending) {
        let tenant_id = pending.command.tenant_id;
        let waiting = self.waiting.entry(tenant_id).or_default();
        if waiting.is_empty() {
            self.turns.push_back(tenant_id);
        }
        waiting.push_back(pending);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// The next batch, each chain's commands side by side; empty only when nothing waits.
    pub(crate) fn take_batch(&mut self, limits: BatchLimits) -> Vec<Pending> {
        let mut batch = Batch::new(limits);
        let mut turns = std::mem::take(&mut self.turns);
        let mut blocked = VecDeque::new();
        // Each tenant has its share; what is left over by some is shared out again among those who have more.
        loop {
            let mut have_more = VecDeque::new();
            let share = (limits.commands_max - batch.commands.len()).div_ceil(turns.len().max(1));
            while !batch.is_full
                && let Some(tenant_id) = turns.pop_front()
            {
                let waiting = self.waiting.get_mut(&tenant_id).expect("who has a turn waits");
                match batch.take_from(waiting, share) {
                    Taken::All => drop(self.waiting.remove(&tenant_id)),
                    Taken::Share => have_more.push_back(tenant_id),
                    Taken::Blocked => blocked.push_back(tenant_id),
                    // Whoever got nothing begins the next batch.
                    Taken::Nothing => turns.push_front(tenant_id),
                }
            }
            if batch.is_full || have_more.is_empty() {
                self.turns = turns;
                self.turns.append(&mut blocked);
                self.turns.append(&mut have_more);
                return batch.finish();
            }
            turns = have_more;
        }
    }
}

/// The result of taking one tenant's waiting commands into a batch.
enum Taken {
    All,
    /// As many as there may be in this turn, or as there is room for.
    Share,
    /// The rest, as far as it was looked at, cannot be in one batch with what was taken.
    Blocked,
    /// The first one does not fit in, and there is none of this tenant in the batch.
    Nothing,
}

/// A tenant's stream.
type Stream = (Uuid, Arc<str>);

/// A chain in a batch.
struct Chain {
    number: usize,
    /// The event that its next command must be decided on.
    leads_to: Option<Uuid>,
}

/// A batch while it is made.
struct Batch {
    limits: BatchLimits,
    commands: Vec<(usize, Pending)>,
    chains: usize,
    by_stream: HashMap<Stream, Chain>,
    /// Streams of which a command stays behind, so that those after it do, too.
    held_back: HashSet<Stream>,
    keys: HashSet<(Uuid, Arc<str>)>,
    tenants: HashSet<Uuid>,
    events: usize,
    payload_bytes: usize,
    is_full: bool,
}

impl Batch {
    fn new(limits: BatchLimits) -> Self {
        Self {
            limits,
            commands: Vec::new(),
            chains: 0,
            by_stream: HashMap::new(),
            held_back: HashSet::new(),
            keys: HashSet::new(),
            tenants: HashSet::new(),
            events: 0,
            payload_bytes: 0,
            is_full: false,
        }
    }

    /// Takes up to `share` commands of one tenant, in order, but for those that must stay behind; the last ones may be a group
    /// that goes beyond it. It looks at no more than that, so that a crowd of commands that must stay behind costs other tenants
    /// nothing.
    fn take_from(&mut self, waiting: &mut VecDeque<Pending>, share: usize) -> Taken {
        let mut stay = Vec::new();
        let mut taken = 0;
        let mut has_room = true;
        while taken + stay.len() < share
            && has_room
            && !self.is_full
            && let Some(pending) = waiting.pop_front()
        {
            let others = others_of_group(&pending, waiting);
            let unit = || iter::once(&pending).chain(&others).map(|one| &one.command);
            let chain = unit().map(|command| self.chain_for(command)).reduce(Option::and);
            match chain.flatten() {
                Some(chain) if self.has_room_for(unit) => {
                    taken += 1 + others.len();
                    self.add(chain, pending);
                    for other in others {
                        self.add(self.chains, other);
                    }
                }
                may_come => {
                    has_room = may_come.is_none();
                    stay.push(pending);
                    stay.extend(others);
                }
            }
        }
        let is_blocked = !stay.is_empty();
        for pending in stay.into_iter().rev() {
            waiting.push_front(pending);
        }
        let Some(next) = waiting.front() else {
            return Taken::All;
        };
        match (has_room, is_blocked) {
            (false, _) if self.tenants.insert(next.command.tenant_id) => Taken::Nothing,
            (true, true) => Taken::Blocked,
            _ => Taken::Share,
        }
    }

    /// The chain that a command belongs to, which may be a new one; `None` when it must stay behind.
    fn chain_for(&mut self, command: &NewCommand) -> Option<usize> {
        let has_key = self.keys.contains(&(command.tenant_id, Arc::clone(&command.key)));
        let Intent::Write(decision) = &command.intent else {
            return (!has_key).then_some(self.chains);
        };
        let stream = (command.tenant_id, Arc::clone(&command.stream_id));
        let chain = match self.by_stream.get(&stream) {
            _ if has_key || self.held_back.contains(&stream) => None,
            None => Some(self.chains),
            Some(_) if command.group.is_some() => None,
            Some(chain) => (chain.leads_to == decision.decided_on).then_some(chain.number),
        };
        if chain.is_none() {
            self.held_back.insert(stream);
        }
        chain
    }

    fn has_room_for<'a, U: Iterator<Item = &'a NewCommand>>(&mut self, unit: impl Fn() -> U) -> bool {
        let has_room = self.commands.is_empty()
            || (self.commands.len() + unit().count() <= self.limits.commands_max
                && self.events + unit().map(|command| events(command).len()).sum::<usize>()
                    <= self.limits.events_max
                && self.payload_bytes + unit().map(payload_bytes).sum::<usize>()
                    <= self.limits.payload_bytes_max);
        self.is_full |= !has_room;
        has_room
    }

    fn add(&mut self, chain: usize, pending: Pending) {
        let command = &pending.command;
        self.keys.insert((command.tenant_id, Arc::clone(&command.key)));
        self.tenants.insert(command.tenant_id);
        self.events += events(command).len();
        self.payload_bytes += payload_bytes(command);
        if let Intent::Write(decision) = &command.intent {
            let stream = (command.tenant_id, Arc::clone(&command.stream_id));
            if command.group.is_some() {
                // What was decided on it goes into the next batch: it may not stand.
                self.held_back.insert(stream);
            } else {
                let (number, leads_to) = (chain, decision.leads_to());
                self.by_stream.insert(stream, Chain { number, leads_to });
            }
        }
        self.chains = self.chains.max(chain + 1);
        self.commands.push((chain, pending));
        self.is_full = self.commands.len() >= self.limits.commands_max;
    }

    /// The commands, chain by chain.
    fn finish(self) -> Vec<Pending> {
        let mut commands = self.commands;
        commands.sort_by_key(|(chain, _)| *chain);
        commands.into_iter().map(|(_, pending)| pending).collect()
    }
}

/// Takes the rest of a command's group, which is right behind it.
fn others_of_group(first: &Pending, waiting: &mut VecDeque<Pending>) -> Vec<Pending> {
    let mut others = Vec::new();
    if first.command.group.is_some() {
        let is_of_group = |next: &mut Pending| next.command.group == first.command.group;
        while let Some(other) = waiting.pop_front_if(is_of_group) {
            others.push(other);
        }
    }
    others
}

fn payload_bytes(command: &NewCommand) -> usize {
    events(command).iter().map(|event| event.payload.len()).sum()
}

#[cfg(test)]
mod tests {
    use crate::command::{Decision, NewEvent};

    use super::*;

    const LIMITS: BatchLimits = BatchLimits {
        commands_max: 4,
        events_max: 100,
        payload_bytes_max: 100,
    };

    /// A queue of commands that open streams of their own: whose, under which key, and with how many bytes.
    fn queue(commands: &[(u128, &str, usize)]) -> Queue {
        let mut queue = Queue::default();
        for (number, (tenant, key, payload_bytes)) in commands.iter().enumerate() {
            let event = NewEvent {
                event_id: Uuid::nil(),
                event_type: "test.happened",
                schema_version: 1,
                payload: "1".repeat(*payload_bytes),
            };
            let command = NewCommand {
                tenant_id: Uuid::from_u128(*tenant),
                key: (*key).into(),
                fingerprints: vec![0],
                stream_id: format!("stream-{number}").into(),
                category: "test",
                group: None,
                intent: Intent::Write(Decision {
                    decided_on: None,
                    metadata: "{}".into(),
                    events: vec![event],
                    rejection: None,
                }),
            };
            let answer: Box<dyn Answer> = Box::new(|_| {});
            queue.push(Pending { command, answer });
        }
        queue
    }

    /// The next batch, by tenants and keys.
    fn batch(queue: &mut Queue) -> Vec<(u128, String)> {
        let batch = queue.take_batch(LIMITS).into_iter();
        batch
            .map(|pending| {
                (
                    pending.command.tenant_id.as_u128(),
                    pending.command.key.to_string(),
                )
            })
            .collect()
    }

    fn keys(queue: &mut Queue) -> Vec<String> {
        batch(queue).into_iter().map(|(_, key)| key).collect()
    }

    #[test]
    fn a_crowd_of_commands_that_must_stay_behind_is_not_looked_through_for_each_batch() {
        let mut commands = vec![(1, "same", 1); 9];
        commands.extend([(1, "other", 1), (2, "of another tenant", 1)]);
        let mut queue = queue(&commands);
        assert_eq!(
            batch(&mut queue),
            [(1, "same".to_owned()), (2, "of another tenant".to_owned())],
            "the crowd costs its own tenant the rest of the batch, and nobody else"
        );
        for _ in 0..5 {
            assert_eq!(keys(&mut queue), ["same"]);
        }
        assert_eq!(keys(&mut queue), ["same", "other"]);
        assert_eq!(keys(&mut queue), ["same"]);
        assert_eq!(keys(&mut queue), ["same"]);
        assert!(queue.is_empty());
    }

    #[test]
    fn whoever_finds_no_room_begins_the_next_batch_however_many_others_wait() {
        let mut commands = Vec::new();
        for round in ["1", "2", "3"] {
            commands.extend([(1, round, 20), (2, round, 20), (3, round, 20)]);
        }
        commands.push((4, "large", 90));
        let mut queue = queue(&commands);
        assert_eq!(batch(&mut queue).len(), 3);
        assert_eq!(keys(&mut queue), ["large"]);
    }

    #[test]
    fn what_some_tenants_leave_of_a_batch_is_shared_out_among_the_others() {
        let mut queue = queue(&[(1, "1", 1), (1, "2", 1), (1, "3", 1), (1, "4", 1), (2, "5", 1)]);
        assert_eq!(keys(&mut queue), ["1", "2", "5", "3"]);
        assert_eq!(keys(&mut queue), ["4"]);
        assert!(queue.is_empty());
    }
}
