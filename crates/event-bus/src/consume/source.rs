//! Where a reader's events come from: a consumer on the stream, and looks at the log.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, StreamError, pull};
use daybook_event_store::{EventStore, Lineage, LogHead, ReadError, RecordedEvent};
use thiserror::Error;
use tokio::time::timeout;

use super::ReaderError;
use crate::bus::{Bus, EXCHANGE_TIMEOUT};
use crate::stream;

/// A consumer that tells nothing for twice as long is dead.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long the server keeps a pull request open.
const PULL_EXPIRES: Duration = Duration::from_secs(30);

/// After which the server forgets the consumer of a reader that is gone.
const INACTIVE_THRESHOLD: Duration = Duration::from_secs(30);

/// The stream cannot be subscribed to.
#[derive(Debug, Error)]
pub(super) enum SourceError {
    #[error("cannot make a consumer")]
    Consumer(#[source] async_nats::jetstream::stream::ConsumerError),
    #[error("cannot read from the consumer")]
    Messages(#[source] StreamError),
    #[error("the server did not answer within {EXCHANGE_TIMEOUT:?}")]
    Silent,
}

/// Subscribes to the stream from a sequence on. Beyond the stream's end that means from its next message on.
pub(super) async fn subscribe(
    bus: Bus,
    partition: i32,
    from: u64,
    prefetch_messages: usize,
) -> Result<pull::Stream, SourceError> {
    let subscribing = consume(bus, partition, from, prefetch_messages);
    timeout(EXCHANGE_TIMEOUT, subscribing)
        .await
        .unwrap_or(Err(SourceError::Silent))
}

async fn consume(
    bus: Bus,
    partition: i32,
    from: u64,
    prefetch_messages: usize,
) -> Result<pull::Stream, SourceError> {
    let config = pull::Config {
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
        ack_policy: AckPolicy::None,
        inactive_threshold: INACTIVE_THRESHOLD,
        memory_storage: true,
        num_replicas: 1,
        ..pull::Config::default()
    };
    let name = stream::name(&bus, partition);
    let made = bus.jetstream().create_consumer_on_stream(config, name).await;
    let consumer = made.map_err(SourceError::Consumer)?;
    let messages = consumer
        .stream()
        .max_messages_per_batch(prefetch_messages)
        .heartbeat(HEARTBEAT)
        .expires(PULL_EXPIRES)
        .messages();
    messages.await.map_err(SourceError::Messages)
}

/// What the log says about what comes after a position.
#[derive(Debug)]
pub(super) struct Look {
    after: u64,
    limit: u32,
    pub(super) head: LogHead,
    /// Only where it was asked for.
    pub(super) lineage: Option<Lineage>,
    pub(super) events: Vec<RecordedEvent>,
}

/// Reads the log's head, its lineage where that is wanted, and then at most `limit` events after `after`, if there are any.
pub(super) async fn look(
    store: EventStore,
    partition: i32,
    after: u64,
    limit: u32,
    wants_lineage: bool,
) -> Result<Look, ReadError> {
    let head = store.head(partition).await?;
    let lineage = match wants_lineage {
        true => Some(store.lineage(partition).await?),
        false => None,
    };
    let events = match limit {
        0 => Vec::new(),
        _ if head.position <= after => Vec::new(),
        _ => store.read_log(partition, after, limit).await?,
    };
    Ok(Look {
        after,
        limit,
        head,
        lineage,
        events,
    })
}

impl Look {
    /// Whether there may be more than was read.
    pub(super) fn is_full(&self) -> bool {
        self.limit > 0 && self.events.len() == self.limit as usize
    }

    /// Whether the log shows all that its head promises.
    pub(super) fn check(&self) -> Result<(), ReaderError> {
        let Self { after, head, .. } = *self;
        if head.position < after {
            return Err(ReaderError::AheadOfLog {
                position: after,
                head: head.position,
            });
        }
        if self.limit == 0 || head.position == after {
            return Ok(());
        }
        let expected = after + 1..;
        match self
            .events
            .iter()
            .zip(expected.clone())
            .find(|(event, position)| event.position != *position)
        {
            Some((_, position)) => Err(ReaderError::Hidden { position }),
            None if self.events.is_empty() => Err(ReaderError::Hidden { position: after + 1 }),
            None => Ok(()),
        }
    }
}
