//! Answers the commands of judged batches, and hands committed events on, one batch after another.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;

use crate::append::{AppendError, JudgedChain, Judgement, chains};
use crate::appender::{Answer, AppenderMetrics, Committed, Unanswered};
use crate::command::{Decision, Intent, NewCommand, Receipt, Verdict};
use crate::event::RecordedEvent;
use crate::log::{Log, Remembered};

/// A batch and what the log says of it.
pub(crate) struct Judged {
    pub(crate) commands: Vec<NewCommand>,
    pub(crate) answers: Vec<Answer>,
    pub(crate) judgement: Judgement,
    /// When the database had answered.
    pub(crate) at: Instant,
}

pub(crate) struct Answers<L> {
    log: Arc<L>,
    partition: i32,
    committed: Option<mpsc::Sender<Committed>>,
    metrics: Arc<AppenderMetrics>,
}

impl<L: Log> Answers<L> {
    pub(crate) fn new(
        log: Arc<L>,
        partition: i32,
        committed: Option<mpsc::Sender<Committed>>,
        metrics: Arc<AppenderMetrics>,
    ) -> Self {
        Self {
            log,
            partition,
            committed,
            metrics,
        }
    }

    pub(crate) async fn run(self, mut batches: mpsc::Receiver<Judged>) {
        while let Some(batch) = batches.recv().await {
            self.answer(batch);
        }
    }

    fn answer(&self, batch: Judged) {
        let Judged {
            commands,
            answers,
            judgement,
            at,
        } = batch;
        AppenderMetrics::count(&self.metrics.batches, 1);
        AppenderMetrics::count(&self.metrics.commands, commands.len());
        let of_chain = chain_of_each(&commands);
        let mut events = Vec::new();
        let mut verdicts = Vec::with_capacity(commands.len());
        let mut known = Vec::new();
        let mut known_indexes = judgement.known.iter().copied().peekable();
        let mut placing = Placing::default();
        for (index, (command, answer)) in commands.into_iter().zip(answers).enumerate() {
            let chain = of_chain[index];
            let judged = &judgement.chains[chain];
            if known_indexes.next_if_eq(&index).is_some() {
                known.push((command, answer));
            } else if index < judged.stop {
                let (receipt, recorded) = placing.place(self.partition, &judgement, chain, judged, command);
                events.extend(recorded);
                verdicts.push((answer, Verdict::Appended(receipt)));
            } else if matches!(command.intent, Intent::Ask) {
                verdicts.push((answer, Verdict::KeyIsNew(judged.newest)));
            } else {
                AppenderMetrics::count(&self.metrics.conflicts, 1);
                verdicts.push((answer, Verdict::Conflict(judged.newest)));
            }
        }
        AppenderMetrics::count(&self.metrics.events, events.len());
        self.hand_on(&judgement, events, at);
        for (answer, verdict) in verdicts {
            answer(Ok(verdict));
        }
        if !known.is_empty() {
            AppenderMetrics::count(&self.metrics.replays, known.len());
            let (log, partition) = (Arc::clone(&self.log), self.partition);
            tokio::spawn(async move { answer_known(&*log, partition, judgement.generation, known).await });
        }
    }

    fn hand_on(&self, judgement: &Judgement, events: Vec<RecordedEvent>, at: Instant) {
        let Some(committed) = &self.committed else { return };
        if !events.is_empty() {
            // When the publisher is behind it reads these from the log.
            let _ = committed.try_send(Committed {
                generation: judgement.generation,
                events,
                at,
            });
        }
    }
}

/// The index of each command's chain.
fn chain_of_each(commands: &[NewCommand]) -> Vec<usize> {
    let mut of_each = Vec::with_capacity(commands.len());
    for (index, chain) in chains(commands).into_iter().enumerate() {
        of_each.resize(chain.end, index);
    }
    of_each
}

/// Gives the events of the chains that stand their places, in order.
#[derive(Default)]
struct Placing {
    chain: Option<usize>,
    /// Events of this chain before the next command.
    events_before: u64,
}

impl Placing {
    fn place(
        &mut self,
        partition: i32,
        judgement: &Judgement,
        chain: usize,
        judged: &JudgedChain,
        command: NewCommand,
    ) -> (Receipt, Vec<RecordedEvent>) {
        if self.chain != Some(chain) {
            *self = Self {
                chain: Some(chain),
                events_before: 0,
            };
        }
        let Intent::Write(decision) = command.intent else {
            unreachable!("a question is never written")
        };
        let event_count = decision.events.len() as u64;
        let next_position = judged.first_position + self.events_before;
        let receipt = Receipt {
            stream_id: Arc::clone(&command.stream_id),
            stream_version: judged.newest.version + self.events_before + event_count,
            partition,
            first_position: match (event_count, self.events_before) {
                (0, 0) => judged.newest.position,
                (0, _) => next_position - 1,
                _ => next_position,
            },
            event_count: u32::try_from(event_count).expect("a batch is bounded far below"),
            generation: judgement.generation,
            recorded_at: judgement.recorded_at,
            rejection: decision.rejection.clone(),
        };
        self.events_before += event_count;
        let place = Place {
            tenant_id: command.tenant_id,
            category: command.category,
            stream_id: &command.stream_id,
            receipt: &receipt,
        };
        let events = record(&place, decision);
        (receipt, events)
    }
}

/// Where the events of a command are.
struct Place<'a> {
    tenant_id: uuid::Uuid,
    category: &'static str,
    stream_id: &'a str,
    receipt: &'a Receipt,
}

/// The events of a command as the log now holds them.
fn record(place: &Place<'_>, decision: Decision) -> Vec<RecordedEvent> {
    let receipt = place.receipt;
    let first_version = receipt.stream_version - u64::from(receipt.event_count) + 1;
    let events = decision.events.into_iter().zip(0..);
    events
        .map(|(event, index)| RecordedEvent {
            partition: receipt.partition,
            position: receipt.first_position + index,
            tenant_id: place.tenant_id,
            category: place.category.to_owned(),
            stream_id: place.stream_id.to_owned(),
            stream_version: first_version + index,
            event_id: event.event_id,
            event_type: event.event_type.to_owned(),
            schema_version: event.schema_version,
            payload: event.payload,
            metadata: Arc::clone(&decision.metadata),
            recorded_at: receipt.recorded_at,
        })
        .collect()
}

/// Reads the receipts of known keys and answers with them.
async fn answer_known<L: Log>(
    log: &L,
    partition: i32,
    generation: uuid::Uuid,
    known: Vec<(NewCommand, Answer)>,
) {
    let keys: Vec<_> = known
        .iter()
        .map(|(command, _)| (command.tenant_id, Arc::clone(&command.key)))
        .collect();
    let read = log.remembered(partition, &keys).await;
    let (mut remembered, error) = match read {
        Ok(remembered) => (remembered, AppendError::TimedOut),
        Err(error) => (HashMap::new(), error),
    };
    let error = Arc::new(error);
    for (index, (command, answer)) in known.into_iter().enumerate() {
        answer(match remembered.remove(&index) {
            Some(remembered) => Ok(verdict_of_known(&command, remembered, partition, generation)),
            None => Err(Unanswered::Unknown(Arc::clone(&error))),
        });
    }
}

fn verdict_of_known(
    command: &NewCommand,
    remembered: Remembered,
    partition: i32,
    generation: uuid::Uuid,
) -> Verdict {
    if !command.fingerprints.contains(&remembered.fingerprint) {
        return Verdict::KeyReused;
    }
    let is_this_decision = match &command.intent {
        Intent::Write(decision) => {
            let first = decision.events.first().map(|event| event.event_id);
            first.is_some() && first == remembered.event_id
        }
        Intent::Ask => false,
    };
    let receipt = Receipt {
        stream_id: remembered.stream_id,
        stream_version: remembered.stream_version,
        partition,
        first_position: remembered.first_position,
        event_count: remembered.event_count,
        generation,
        recorded_at: remembered.recorded_at,
        rejection: remembered.rejection,
    };
    // The answer to an earlier attempt got lost.
    if is_this_decision {
        Verdict::Appended(receipt)
    } else {
        Verdict::Replayed(receipt)
    }
}
