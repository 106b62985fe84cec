//! The connection to NATS: one per process, made in the background, alive again by itself after every outage.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream;
use async_nats::{Client, ClientError, ConnectErrorKind, ConnectOptions, Event, ServerAddr, Subscriber};
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::deployment::Deployment;
use crate::message::{push_token, unescape};

/// A dead link is noticed after two to three of these.
const PING_INTERVAL: Duration = Duration::from_secs(2);

/// How long one attempt to connect may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long the server may take to answer a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// How long an exchange of at most two requests may take. The client's own timeout begins when it has taken a request, and
/// while the network is silent its queue may be full.
pub(crate) const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(5);

/// First backoff before connecting again; it doubles up to `RECONNECT_PAUSE_LAST`.
const RECONNECT_PAUSE_FIRST: Duration = Duration::from_millis(20);
const RECONNECT_PAUSE_LAST: Duration = Duration::from_millis(500);

/// Commands that wait for the connection's task; whoever sends more waits.
const CLIENT_QUEUE_COMMANDS: usize = 4_096;

/// NATS could not be used.
#[derive(Debug, Error)]
pub enum BusError {
    /// The address or its credentials cannot be used. A server that does not answer is no error: it is tried again.
    #[error("cannot use the NATS address")]
    Address(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The client refused to subscribe.
    #[error("cannot subscribe to {subject}")]
    Subscribe {
        /// The subject.
        subject: String,
        /// Why not.
        #[source]
        source: async_nats::SubscribeError,
    },
    /// The client took no command in time: its queue is full of what it cannot send.
    #[error("cannot subscribe to {subject}: the client takes no commands")]
    Stuck {
        /// The subject.
        subject: String,
    },
}

/// The connection to NATS; a clone is another handle to the same one.
#[derive(Debug, Clone)]
pub struct Bus {
    deployment: Deployment,
    client: Client,
    jetstream: jetstream::Context,
    connections: watch::Receiver<u64>,
}

impl Bus {
    /// Connects under a name that the server's operators see. Returns at once: the connection is made in the background, and
    /// made again whenever it breaks.
    ///
    /// # Errors
    /// [`BusError::Address`] when `url` is not one.
    pub async fn connect(url: &str, deployment: &Deployment, name: &str) -> Result<Self, BusError> {
        let (count, connections) = watch::channel(0);
        let count = Arc::new(count);
        let (servers, options) = servers(url)?;
        let client = options
            .name(name)
            .retry_on_initial_connect()
            .ping_interval(PING_INTERVAL)
            .connection_timeout(CONNECT_TIMEOUT)
            .request_timeout(Some(REQUEST_TIMEOUT))
            .client_capacity(CLIENT_QUEUE_COMMANDS)
            .reconnect_delay_callback(reconnect_pause)
            .event_callback(move |event| {
                report(&event);
                if matches!(event, Event::Connected) {
                    count.send_modify(|count| *count += 1);
                }
                std::future::ready(())
            })
            .connect(servers)
            .await
            .map_err(|error| BusError::Address(error.into()))?;
        let jetstream = jetstream::context::ContextBuilder::new()
            .timeout(REQUEST_TIMEOUT)
            .build(client.clone());
        Ok(Self {
            deployment: deployment.clone(),
            client,
            jetstream,
            connections,
        })
    }

    /// Whether there is a connection right now. A link that has just died may count as one for some seconds.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// How often a connection has been made; the receiver wakes at the next one.
    pub(crate) fn connections(&self) -> watch::Receiver<u64> {
        let mut connections = self.connections.clone();
        connections.mark_unchanged();
        connections
    }

    /// Subscribes on core NATS, again by itself after every outage.
    pub(crate) async fn subscribe(&self, subject: String) -> Result<Subscriber, BusError> {
        match timeout(REQUEST_TIMEOUT, self.client.subscribe(subject.clone())).await {
            Ok(subscribed) => subscribed.map_err(|source| BusError::Subscribe { subject, source }),
            Err(_elapsed) => Err(BusError::Stuck { subject }),
        }
    }

    pub(crate) fn deployment(&self) -> &Deployment {
        &self.deployment
    }

    /// A subject of the deployment.
    pub(crate) fn subject(&self, rest: impl fmt::Display) -> String {
        format!("{}.{rest}", self.deployment)
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn jetstream(&self) -> &jetstream::Context {
        &self.jetstream
    }
}

/// The servers of an address that may name several, with commas between them, and how to sign in there: as the user of the
/// first, also on servers that it tells of. The client itself ignores credentials in addresses, and would log them. Answers
/// come to an inbox of the user's own, so that no other user need be allowed to read there.
///
/// # Errors
/// [`BusError::Address`].
pub fn servers(url: &str) -> Result<(Vec<ServerAddr>, ConnectOptions), BusError> {
    let parsed: Result<Vec<ServerAddr>, _> = url.split(',').map(str::parse).collect();
    let parsed = parsed.map_err(|error| BusError::Address(error.into()))?;
    let mut options = ConnectOptions::new();
    if let Some((user, password)) = parsed.first().and_then(credentials) {
        let mut inbox = "_INBOX_".to_owned();
        push_token(&mut inbox, &user);
        options = options
            .custom_inbox_prefix(inbox)
            .user_and_password(user, password);
    }
    let servers: Result<_, _> = parsed.into_iter().map(without_credentials).collect();
    Ok((servers.map_err(|error| BusError::Address(error.into()))?, options))
}

fn credentials(server: &ServerAddr) -> Option<(String, String)> {
    let plain = |text: &str| unescape(text).map_or_else(|| text.to_owned(), Cow::into_owned);
    let password = server.password().unwrap_or_default();
    server.username().map(|user| (plain(user), plain(password)))
}

fn without_credentials(server: ServerAddr) -> io::Result<ServerAddr> {
    let mut url = server.into_inner();
    if url.set_username("").is_err() || url.set_password(None).is_err() {
        return Err(io::Error::other("the address has no host"));
    }
    ServerAddr::from_url(url)
}

fn reconnect_pause(attempt: usize) -> Duration {
    let doublings = u32::try_from(attempt.saturating_sub(1))
        .unwrap_or(u32::MAX)
        .min(16);
    (RECONNECT_PAUSE_FIRST * 2_u32.pow(doublings)).min(RECONNECT_PAUSE_LAST)
}

fn report(event: &Event) {
    match event {
        Event::Connected => tracing::info!("connected to NATS"),
        Event::Disconnected => tracing::warn!("the connection to NATS is lost"),
        Event::SlowConsumer(subscription) => {
            tracing::warn!(
                nats.subscription = subscription,
                "messages were dropped: the reader is too slow"
            );
        }
        Event::ServerError(error) => tracing::warn!(error = %error, "NATS reports an error"),
        Event::ClientError(ClientError::Other(error)) if *error == refusal() => {
            tracing::warn!("NATS does not let this user in");
        }
        // One per attempt while the server is away; the loss itself has been reported.
        Event::ClientError(error) => tracing::debug!(error = %error, "the NATS client reports an error"),
        Event::LameDuckMode | Event::Draining | Event::Closed => {
            tracing::info!(event = %event, "NATS changes");
        }
    }
}

/// The client's words for a server that refuses user and password; it gives nothing else.
fn refusal() -> String {
    ConnectErrorKind::AuthorizationViolation.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_name_several_servers_and_shows_no_password() {
        let (servers, options) = servers("nats://user:s%3Acret@one:1,two").expect("an address");
        let servers: Vec<&str> = servers.iter().map(ServerAddr::as_url_str).collect();
        assert_eq!(servers, ["nats://one:1", "nats://two"]);
        let options = format!("{options:?}");
        assert!(
            options.contains("_INBOX_user") && !options.contains("cret"),
            "{options}"
        );
        let credentials = credentials(&"nats://user:s%3Acret@one".parse().expect("an address"));
        assert_eq!(credentials, Some(("user".to_owned(), "s:cret".to_owned())));
        assert!(super::servers("nats://one,").is_err());
    }

    #[test]
    fn the_pause_between_attempts_doubles_up_to_its_limit() {
        let pauses = [1, 2, 3, 6, 1_000_000].map(|attempt| reconnect_pause(attempt).as_millis());
        assert_eq!(pauses, [20, 40, 80, 500, 500]);
    }
}
