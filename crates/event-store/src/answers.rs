//! Answers the commands of judged batches, and hands committed events on, one batch after another.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use uuid::Uuid;

use crate::append::{AppendError, JudgedChain, Judgement, chains};
use crate::appender::{Answer, AppenderMetrics, Backoff, Committed, Unanswered};
use crate::command::{Decision, Intent, NewCommand, Receipt, Verdict};
use crate::event::RecordedEvent;
use crate::lineage::EpochId;
use crate::log::{Log, Remembered};

/// A batch and what the log says of it.
pub(crate) struct Judged {
    pub(crate) commands: Vec<NewCommand>,
    pub(crate) answers: Vec<Box<dyn Answer>>,
    pub(crate) judgement: Judgement,
    /// When the database had answered.
    pub(crate) at: Instant,
}

pub(crate) struct Answers<L> {
    log: Arc<L>,
    partition: i32,
    /// For how long receipts are read again.
    retry_for: Duration,
    committed: Option<mpsc::Sender<Committed>>,
    metrics: AppenderMetrics,
}

impl<L: Log> Answers<L> {
    pub(crate) fn new(
        log: Arc<L>,
        partition: i32,
        retry_for: Duration,
        committed: Option<mpsc::Sender<Committed>>,
        metrics: AppenderMetrics,
    ) -> Self {
        Self {
            log,
            partition,
            retry_for,
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
        self.metrics.batches.inc();
        self.metrics.commands.inc_by(commands.len() as u64);
        let mut events = Vec::new();
        let mut verdicts = Vec::with_capacity(commands.len());
        let mut known = Vec::new();
        let mut known_indexes = judgement.known.iter().copied().peekable();
        let chains = chains(&commands);
        let mut batch = (0..).zip(commands.into_iter().zip(answers));
        for (chain, judged) in chains.into_iter().zip(&judgement.chains) {
            let mut events_before = 0;
            for (index, (command, answer)) in batch.by_ref().take(chain.len()) {
                if known_indexes.next_if_eq(&index).is_some() {
                    known.push((command, answer));
                    continue;
                }
                let verdict = match command.intent {
                    Intent::Write(decision) if index < judged.written_end => {
                        let place = Place {
                            partition: self.partition,
                            judgement: &judgement,
                            judged,
                            events_before,
                        };
                        events_before += decision.events.len() as u64;
                        let receipt = place.receipt(command.stream_id, &decision);
                        events.extend(recorded(command.tenant_id, command.category, &receipt, decision));
                        Verdict::Appended(receipt)
                    }
                    Intent::Write(_) => {
                        self.metrics.conflicts.inc();
                        Verdict::Conflict(judged.newest)
                    }
                    Intent::Ask => Verdict::KeyIsNew(judged.newest),
                };
                verdicts.push((answer, verdict));
            }
        }
        self.metrics.events.inc_by(events.len() as u64);
        self.publish(&judgement, events, at);
        for (answer, verdict) in verdicts {
            answer.answer(Ok(verdict));
        }
        for (_, answer) in &mut known {
            answer.key_is_known();
        }
        if !known.is_empty() {
            self.metrics.replays.inc_by(known.len() as u64);
            let backoff = Backoff::new(self.retry_for);
            let (log, metrics) = (Arc::clone(&self.log), self.metrics.clone());
            let (partition, epoch) = (self.partition, judgement.epoch);
            tokio::spawn(async move {
                answer_known(&*log, partition, epoch, known, backoff, &metrics).await;
            });
        }
    }

    fn publish(&self, judgement: &Judgement, events: Vec<RecordedEvent>, at: Instant) {
        let Some(committed) = &self.committed else { return };
        if !events.is_empty() {
            // When the publisher is behind it reads these from the log.
            let _ = committed.try_send(Committed {
                generation: judgement.epoch.generation,
                events,
                at,
            });
        }
    }
}

/// The place in the log of a command whose chain was written.
struct Place<'a> {
    partition: i32,
    judgement: &'a Judgement,
    judged: &'a JudgedChain,
    /// Events of its chain before it.
    events_before: u64,
}

impl Place<'_> {
    fn receipt(&self, stream_id: Arc<str>, decision: &Decision) -> Receipt {
        let (newest, event_count) = (self.judged.newest, decision.events.len() as u64);
        let next_position = self.judged.first_position + self.events_before;
        Receipt {
            stream_id,
            stream_version: newest.version + self.events_before + event_count,
            partition: self.partition,
            first_position: match (event_count, self.events_before) {
                (0, 0) => newest.position,
                (0, _) => next_position - 1,
                _ => next_position,
            },
            event_count: u32::try_from(event_count).expect("a batch is bounded far below"),
            epoch: self.judgement.epoch,
            recorded_at: self.judgement.recorded_at,
            rejection: decision.rejection.clone(),
        }
    }
}

/// The events of a command as the log now holds them.
fn recorded(
    tenant_id: Uuid,
    category: &'static str,
    receipt: &Receipt,
    decision: Decision,
) -> impl Iterator<Item = RecordedEvent> {
    let first_version = receipt.stream_version - u64::from(receipt.event_count) + 1;
    let metadata = decision.metadata;
    decision
        .events
        .into_iter()
        .zip(0..)
        .map(move |(event, index)| RecordedEvent {
            partition: receipt.partition,
            position: receipt.first_position + index,
            tenant_id,
            category: category.to_owned(),
            stream_id: receipt.stream_id.to_string(),
            stream_version: first_version + index,
            event_id: event.event_id,
            event_type: event.event_type.to_owned(),
            schema_version: event.schema_version,
            payload: event.payload,
            metadata: Arc::clone(&metadata),
            recorded_at: receipt.recorded_at,
        })
}

/// Reads the receipts of known keys and answers with them. The commands are recorded: a single read that fails must not
/// leave all their callers without an answer.
async fn answer_known<L: Log>(
    log: &L,
    partition: i32,
    epoch: EpochId,
    known: Vec<(NewCommand, Box<dyn Answer>)>,
    mut backoff: Backoff,
    metrics: &AppenderMetrics,
) {
    let keys: Vec<_> = known
        .iter()
        .map(|(command, _)| (command.tenant_id, Arc::clone(&command.key)))
        .collect();
    let (mut remembered, error) = loop {
        match log.remembered(partition, epoch, &keys).await {
            Ok(remembered) => break (remembered, AppendError::Forgotten),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    receipts = keys.len(),
                    "the database did not give receipts",
                );
                if !backoff.pause(&metrics.receipt_retries).await {
                    break (HashMap::new(), error);
                }
            }
        }
    };
    let error = Arc::new(error);
    for (index, (command, answer)) in known.into_iter().enumerate() {
        answer.answer(match remembered.remove(&index) {
            Some(remembered) => Ok(verdict_of_known(&command, remembered)),
            None => Err(Unanswered::Unknown(Arc::clone(&error))),
        });
    }
}

fn verdict_of_known(command: &NewCommand, remembered: Remembered) -> Verdict {
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
    // The answer to an earlier attempt got lost.
    if is_this_decision {
        Verdict::Appended(remembered.receipt)
    } else {
        Verdict::Replayed(remembered.receipt)
    }
}
