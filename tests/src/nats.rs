//! NATS as its administrator sees it, for what no service does.

use anyhow::{Context as _, anyhow, ensure};
use async_nats::jetstream;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use daybook_event_bus::{bus, message};
use daybook_event_store::RecordedEvent;
use futures::{Stream, StreamExt as _};
use uuid::Uuid;

/// The stream of [`crate::log::PARTITION`].
pub const STREAM: &str = "daybook_EVENTS_0";

/// A client that signs in as the address says.
///
/// # Errors
/// When the server does not let it in.
pub async fn connect(url: &str) -> anyhow::Result<async_nats::Client> {
    let (servers, options) = bus::servers(url)?;
    Ok(options.connect(servers).await?)
}

/// JetStream as an administrator sees it.
///
/// # Errors
/// When the server does not let it in.
pub async fn jetstream(url: &str) -> anyhow::Result<jetstream::Context> {
    Ok(jetstream::new(connect(url).await?))
}

/// So many events of [`STREAM`] from its beginning, each with the generation that it was published in.
///
/// # Errors
/// When there is no stream; and in place of an event that is not at its position.
pub async fn events(
    jetstream: &jetstream::Context,
    count: usize,
) -> anyhow::Result<impl Stream<Item = anyhow::Result<(RecordedEvent, Uuid)>> + use<>> {
    let config = OrderedConfig {
        deliver_policy: DeliverPolicy::All,
        ..OrderedConfig::default()
    };
    let stream = jetstream.get_stream(STREAM).await?;
    let messages = stream.create_consumer(config).await?.messages().await?;
    Ok(messages.take(count).map(|message| decode(&message?)))
}

fn decode(message: &jetstream::Message) -> anyhow::Result<(RecordedEvent, Uuid)> {
    let sequence = message.info().map_err(|error| anyhow!(error))?.stream_sequence;
    let headers = message.headers.as_ref().context("a message has headers")?;
    let (event, generation) = message::decode(headers, &message.payload)?;
    ensure!(
        event.position == sequence,
        "position {} is at sequence {sequence}",
        event.position
    );
    Ok((event, generation))
}
