//! NATS as its administrator sees it, for what no service does.

use anyhow::{Context as _, anyhow, bail, ensure};
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::{ServerAddr, jetstream};
use daybook_event_bus::{bus, message};
use daybook_event_store::RecordedEvent;
use futures::{Stream, StreamExt as _};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use uuid::Uuid;

use crate::wait::DEADLINE;

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

/// Publishes a message that is nothing but these headers, byte for byte: no client writes such as nobody can read.
///
/// # Errors
/// When the server does not take it.
pub async fn publish_headers(url: &str, subject: &str, headers: &[u8]) -> anyhow::Result<()> {
    let server: ServerAddr = url.parse()?;
    let user = json!({
        "verbose": false, "pedantic": false, "headers": true,
        "user": server.username(), "pass": server.password(),
    });
    let size = headers.len();
    let mut sent = format!("CONNECT {user}\r\nHPUB {subject} {size} {size}\r\n").into_bytes();
    sent.extend_from_slice(headers);
    sent.extend_from_slice(b"\r\nPING\r\n");
    let mut stream = TcpStream::connect((server.host(), server.port())).await?;
    stream.write_all(&sent).await?;
    let mut lines = BufReader::new(stream).lines();
    let answer = async {
        while let Some(line) = lines.next_line().await? {
            match line.split(' ').next() {
                Some("PONG") => return Ok(()),
                Some("-ERR") => bail!("the server does not take it: {line}"),
                _ => {}
            }
        }
        bail!("the server has closed the connection")
    };
    timeout(DEADLINE, answer).await?
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
